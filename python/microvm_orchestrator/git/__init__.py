"""Git across the boundary: a mirror of our own per repository, and what enters and leaves it.

We read the user's repository and write to it only when a result lands there; we never run git in
a folder a guest can write. Read `mirror.py` first; `incoming.py` is where the attacker comes in.
Above stand repos, runs and lifecycle; below, proc.
"""
