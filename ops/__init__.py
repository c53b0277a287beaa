"""The one command-line tool, `freshet`, and all that runs the other processes: broker, topics, supervision, checks."""
import os

# Processes are started from ones that hold gRPC channels. gRPC would begin its threads anew in the fork, before that becomes
# another program; they would poll descriptors that were closed, and abort it: 8 of 150 times.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
