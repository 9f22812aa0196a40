"""Activation-aware quantization: scales that calibration finds are folded into what feeds a linear.

One decoder block at a time: ``skeleton`` gives it weights and arguments, ``capture`` runs it and
reduces what its linears read to statistics, ``scales`` searches, ``fold`` applies and proves, and
``rounding`` cuts and rounds. ``run`` is the way through. ``plan`` needs headers only.

Reference: Lin et al., "AWQ: Activation-aware Weight Quantization", arXiv 2306.00978.
"""
