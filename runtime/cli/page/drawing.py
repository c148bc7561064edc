"""Drawings for a page, as SVG that takes text and axes in the color of the page around it; and as PNG.

In:  a function that draws on matplotlib's axes.
Out: an SVG element as text, to be put into HTML as it is: names in it are escaped; or the bytes of a PNG.
Elsewhere: what is drawn (distill.run.report.figures, bench.results.figures), the page
(runtime.cli.page.html).
"""

from __future__ import annotations

import io
import logging
import re
import warnings
import zlib
from typing import Any

COLORS = ("#3b82f6", "#ea7317", "#16a34a", "#a855f7", "#ef4444", "#0d9488", "#ca8a04", "#db2777")
"""Of lines and cells, in their order: readable on white and on black."""
PAGE_COLOR = "#010203"
"""Stands for the page's own text color until the drawing is finished."""
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called $x$
    "font.size": 9.0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": PAGE_COLOR,
    "axes.edgecolor": PAGE_COLOR,
    "axes.labelcolor": PAGE_COLOR,
    "xtick.color": PAGE_COLOR,
    "ytick.color": PAGE_COLOR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
LONGEST_NAME = 24


def cut(name: str, longest: int = LONGEST_NAME) -> str:
    """A name that is not too long for a legend."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def drawing(draw: Any, size: tuple[float, float], label: str) -> str:
    """What `draw` puts on its axes, as an SVG element. size: (width, height) in inches; label: what it shows,
    for who does not see it.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it says that it lists its fonts
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with warnings.catch_warnings(), matplotlib.rc_context(STYLE):
        warnings.simplefilter("ignore")  # letters that its own font lacks are drawn by the browser's
        figure = Figure(figsize=size, layout="constrained")
        canvas: Any = FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        content = io.StringIO()
        canvas.print_svg(content, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(content.getvalue()).replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _inline(svg: str) -> str:
    """The element alone, in the page's color and font, with ids that are in no other drawing of the page."""
    mark = f"f{zlib.crc32(svg.encode()):08x}-"
    svg = svg[svg.index("<svg") :].strip().replace(PAGE_COLOR, "currentColor")
    for what in (
        r"<metadata>.*?</metadata>",
        r"<defs>\s*<style.*?</style>\s*</defs>",  # would be the style of the whole page
        r'(?<=<g) id="[^"]*"',
        r' xmlns(:\w+)?="[^"]*"',
        r"font-family: [^;]*; ",
    ):
        svg = re.sub(what, "", svg, flags=re.DOTALL)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{mark}", svg)


def png(draw: Any, size: tuple[float, float]) -> bytes:
    """The same as a PNG file, black on white."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    black = {name: "#000000" if value == PAGE_COLOR else value for name, value in STYLE.items()}
    with warnings.catch_warnings(), matplotlib.rc_context(black | {"figure.facecolor": "white"}):
        warnings.simplefilter("ignore")
        figure = Figure(figsize=size, layout="constrained", dpi=150)
        canvas: Any = FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        content = io.BytesIO()
        canvas.print_png(content)
    return content.getvalue()
