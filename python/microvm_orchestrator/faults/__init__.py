"""Faults that are injected on purpose: written down before, verified after, and healed for sure."""
