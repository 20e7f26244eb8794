"""Hosts of a fleet in SQLite (placeholder while it is written)."""

from __future__ import annotations


class SqliteHosts:
    """Verbs for hosts."""
