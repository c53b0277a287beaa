"""Ways from data to weights that are measured: from memory, from Kafka, in the whole loop."""
