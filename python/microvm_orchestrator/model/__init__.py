"""The words of the product as types: tasks, runs, leases, events. No I/O, frozen, one noun each."""
