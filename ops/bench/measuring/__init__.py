"""What measurements have in common: turns, seconds by stage, work beside, the error of a difference."""
