"""Turn a checkpoint into quantized variants: calibrate, search, round, lay out, write."""
