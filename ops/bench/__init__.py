"""What `freshet bench …` measures: one file a measurement; each prints ratios of one run.

measuring: what several of them use. joining, learning, scoring: what runs while it is measured. peers: other people's
libraries and the plainest server.
"""
