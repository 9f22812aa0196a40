"""Find what speaks against a merge from headers and configurations alone."""
