"""The command line: arguments in, one call into a room, an answer out. No logic of its own."""
