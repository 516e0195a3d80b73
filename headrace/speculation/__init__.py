"""Speculation: who guesses the next tokens of a stream, for a step to verify."""
