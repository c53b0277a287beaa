"""From a slate to an answer, by exactly one version."""
