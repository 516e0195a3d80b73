"""Placement by simulation: which instances, with how many threads and what steps, meet which targets at which rate."""
