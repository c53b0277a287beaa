"""Whatever Kafka there is: connecting to it, what its port wants, freshet's topics in it."""
