"""Calibration sets: a user's text, a data set, stored tokens, or what the model itself writes."""
