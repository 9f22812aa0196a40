"""Loops over quantized weights. Each is a word kernel: see ``native.word_kernel``."""
