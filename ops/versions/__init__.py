"""Versions of a model: orders about them, what is different between two, in a file, over Kafka, how full their table is."""
