"""Machines that are QEMU processes of this host."""
