"""Clusters: machines and networks that are defined, started, saved and ended together."""
