"""What the running processes wrote, read: their journals, the log of windows, alarms, how fresh answers are."""
