"""What `freshet bench join` runs, and the events that it is given."""
