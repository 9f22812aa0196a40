"""Quantized checkpoints as sources of plain weights, decoded one by one when they are read."""
