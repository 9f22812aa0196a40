"""forge: from checkpoints to published model variants.

``import forge`` loads nothing heavy. The Python API is ``forge.api``; the command line is
``forge.cli``.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
