"""The verbs of `freshet bench`, one file each."""
