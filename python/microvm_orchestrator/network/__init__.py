"""Networks between machines: in userspace or in the kernel, behind one protocol."""
