"""Write a chart as PNG, by a renderer that brings its own font and needs no network.

vl-convert carries resvg and the Liberation fonts inside of its wheel, so the same chart gives the
same picture on a machine without any font.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from forge.core.errors import MissingExtraError, OutputError

_SCALE: Final = 2.0
"""Pixels for each unit of the drawing, for screens and slides of today."""


def write_png(svg: str, path: Path) -> None:
    """Write an SVG file's text as a PNG file.

    Args:
        svg: One of ``all_charts``.
        path: Where to write; an existing file is replaced.

    Raises:
        MissingExtraError: The renderer is not installed.
        OutputError: The drawing cannot be rendered, or the file cannot be written.
    """
    try:
        import vl_convert
    except ImportError as error:
        msg = (
            f"{path.name} needs a renderer that is not installed. Run pip install 'forge[report]', "
            "or take the SVG file beside it."
        )
        raise MissingExtraError(msg) from error
    try:
        content = vl_convert.svg_to_png(svg, scale=_SCALE)
    except (RuntimeError, ValueError) as error:
        # Below the first line the renderer prints the stack of its own process.
        reason = str(error).partition("\n")[0]
        msg = f"{path} cannot be rendered from its drawing: {reason}"
        raise OutputError(msg) from error
    try:
        path.write_bytes(content)
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror}. Choose another place for the report."
        raise OutputError(msg) from error
