"""Load and run every checkpoint that forge emits, on a CPU as well."""
