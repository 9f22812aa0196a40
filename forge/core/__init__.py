"""Errors, dtypes, catalogs and fingerprints. Standard library only."""
