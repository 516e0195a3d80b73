"""What travels over HTTP: bodies, answers, their bounds, and the decoder that enforces them."""
