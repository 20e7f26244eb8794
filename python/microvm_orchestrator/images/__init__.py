"""Images: what a machine boots, each in a folder named by its content.

`build` makes the embedded guest from Debian's packages without privilege and without Nix: packages
are resolved and fetched by apt into a cache, their trees are merged here, and what comes out is a
kernel, a small initial file system and a compressed root. Nothing of a package runs with more
rights than ours, and none of its scripts run at all. Above stands the service; below, `proc`.
"""
