"""Makes quantised models: recipes, calibration, and the folder that they are written to."""
