"""What `freshet bench score` runs: servers, the load on them, and their latencies as a picture."""
