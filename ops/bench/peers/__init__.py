"""The libraries that `freshet bench models` measures beside: each in a process of its own, in an environment of their own.

A peer is a module here, run as `python -m ops.bench.peers.NAME FOLDER`. It finds task.json and the rows in the folder, and
leaves said.npy there: what it said of each row before it learnt it. Of freshet nothing is imported there that brings a
protobuf: these libraries have their own. `plain` is the one that is no library: the model as most people would serve it.
"""
