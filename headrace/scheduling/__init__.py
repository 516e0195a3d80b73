"""What goes into the next step and who holds pages: pure policy without torch, I/O or a clock of its own."""
