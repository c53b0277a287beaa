"""What freshet asks of the machine under it: ports, children that end with their parent, threads that wait briefly."""
