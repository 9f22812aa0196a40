"""How codes, scales and zero points are chosen, one file or folder each."""
