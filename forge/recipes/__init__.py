"""Strict reading of merge recipes: every mistake at once, with its line. Plain data, no torch."""
