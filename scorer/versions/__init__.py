"""How versions come from the store, or from Kafka, to every worker, whole and in order."""
