"""All processes on one machine: started, supervised, checked beforehand, shown to work."""
