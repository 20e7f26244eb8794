"""What may leave a machine: one endpoint per run, which adds the keys that guests never see."""
