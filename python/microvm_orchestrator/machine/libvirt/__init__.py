"""Machines that libvirt runs: whole systems on disks of their own, and so the nodes of clusters."""
