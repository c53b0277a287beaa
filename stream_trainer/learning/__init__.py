"""From batches to weights. torch and numpy alone."""
