"""A server under a mixed load for long: what must hold at the end, counted."""
