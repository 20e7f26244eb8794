"""Machines that a runner directory starts: ours to look after, not to put together."""
