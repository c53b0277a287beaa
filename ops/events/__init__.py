"""Events sent into the log: those of a file, and once more those that were dead letters or lost their labels."""
