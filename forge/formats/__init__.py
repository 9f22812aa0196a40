"""Byte layouts of quantized weights, one file each; see ``contract``."""
