"""Whether the model is right, and the stream what it was: figures, their log, drift, alarms."""
