"""Agents that live: each has a machine of its own, hears messages in their order, and answers.

Above are the host and the service; below, the machines, the commands in them, and the drivers.
"""
