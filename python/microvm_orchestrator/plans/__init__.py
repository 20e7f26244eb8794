"""Task files read and put in order: from Markdown to tasks, dependencies and waves.

`plan.py` is the way in. Below it, `markdown.py` tells headings, list items and code apart,
`sections.py` decides which of them are tasks, `details.py` reads what is said inside of each,
`names.py` finds out which task a name means, `files.py` whether two globs can name one file, and
`order.py` makes the waves. Nothing here does any I/O or keeps anything: the same text gives the
same plan. Above sits service/plans.py.
"""
