"""Everything that was measured, in one SQLite file. Standard library only."""
