"""The one command-line tool, `freshet`, and all that runs the other processes: broker, topics, supervision, checks."""
