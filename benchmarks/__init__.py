"""Measurements of forge beside its peer and beside the storage; see ``docs/benchmarks.md``."""
