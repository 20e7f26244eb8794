"""Programs that do a task in a machine: what each is given, and what it says, in words of ours.

Pure translation, without store or machines; roles alone are read from files. Above stands the
lifecycle of a run, which puts the files into the guest, starts the program and feeds what it says
to its reader; below, the model.
"""
