"""Learning from a file without Kafka: by the stream's own code, in one process, with figures and how sure they are."""
