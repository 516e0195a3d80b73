"""Measuring: load, statistics, machine facts, and the experiments that ``headrace reproduce`` runs."""
