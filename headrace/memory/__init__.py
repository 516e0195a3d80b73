"""Pages: who holds which, and the one mapping that their bytes live in."""
