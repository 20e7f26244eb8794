"""Commands in machines: begun once, followed by the daemon, looked at by anyone who may."""
