"""Templates of teams: each a Markdown file, shipped with this program or written by its user.

Above is the service; below, the shelf of such files, the model and the errors.
"""
