"""Options: declared once beside the code that they steer; flags, file, environment and docs follow from that."""
