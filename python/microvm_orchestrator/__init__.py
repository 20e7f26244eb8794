"""Disposable machines for AI agents, behind one durable task graph."""

__version__ = "0.1.0"
