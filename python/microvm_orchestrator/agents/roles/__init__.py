"""Roles of agents: each a Markdown file, shipped with this program or written by its user.

Above is the service; below, the model and the errors.
"""
