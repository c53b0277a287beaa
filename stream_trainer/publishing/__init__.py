"""When weights go live: versions and checkpoints, the gate before them, going back."""
