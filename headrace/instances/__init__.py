"""Many engine processes of one model as one: dispatch, moves of running requests, faults."""
