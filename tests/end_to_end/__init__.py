"""Whole commands on whole folders, as a user runs them."""
