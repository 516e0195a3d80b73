"""The loop of one instance, the process around it, and its client."""
