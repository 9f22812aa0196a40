"""Comparisons with other programs, run as black boxes."""
