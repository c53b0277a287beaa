"""What a person at a terminal sees: bars, tables, logs."""
