"""Statistics of a model for the merge methods that weight by them: ``forge calibrate``."""
