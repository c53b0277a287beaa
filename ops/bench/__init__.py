"""What `freshet bench …` measures: one file a measurement; each prints ratios of one run."""
