"""The command line: a client of the daemon's socket, one file per noun."""
