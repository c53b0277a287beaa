"""From events to labelled examples: the join, what it holds in memory, and the second pass over the log."""
