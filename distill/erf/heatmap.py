"""Heat maps side by side, drawn with Pillow: no plotting package is needed for one figure.

In:  `Column`s of `Panel`s: matrices (H, W) with values 0 to 1, captions, centered squares, color-bar ticks.
Out: one RGB image, a column per network, a panel per row.
Elsewhere: what the matrices mean (distill.erf.field), writing files (runtime.files).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MAP = 420
"""Side of a drawn map, pixels; a larger matrix is averaged down to it, a smaller one enlarged without
smoothing."""
BAR, GAP, LINE = 14, 26, 21
"""Width of a color bar, space between things, height of a line of text; pixels."""
COLUMN = MAP + BAR + 78
"""Width of a column with its color bar and ticks, pixels."""
INK, FAINT, PAPER = (24, 24, 28), (96, 98, 106), (255, 255, 255)
OUTLINES = ((255, 255, 255), (96, 224, 255), (120, 255, 140), (255, 140, 235))
"""Colors of the squares, smallest first; a fifth square begins again."""
ANCHORS = ((0.14, 0.04, 275), (0.36, 0.14, 300), (0.56, 0.19, 360), (0.76, 0.16, 410), (0.97, 0.07, 468))
"""The color scale from low to high: OKLab lightness, chroma, hue in degrees."""


@dataclass(frozen=True)
class Square:
    """A centered square around pixel (H // 2, W // 2), and what the legend says about it."""

    side: int | None
    """Pixels of the matrix, odd; None: nothing to draw, the legend says so."""
    text: str


@dataclass(frozen=True)
class Panel:
    """One map with its squares and color bar."""

    caption: str
    values: np.ndarray
    """(H, W), 0 to 1."""
    squares: Sequence[Square] = ()
    ticks: Sequence[tuple[float, str]] = field(default=((0.0, "0"), (1.0, "1")))
    """(value from 0 to 1, its text beside the color bar)."""


@dataclass(frozen=True)
class Column:
    """The panels of one network, below its name."""

    title: str
    subtitle: str
    panels: Sequence[Panel]


def figure(columns: Sequence[Column]) -> Image.Image:
    """All columns side by side; columns with fewer panels stay empty below."""
    legends = max(len(panel.squares) for column in columns for panel in column.panels)
    row = LINE + MAP + LINE * ((legends + 1) // 2) + GAP
    rows = max(len(column.panels) for column in columns)
    canvas = Image.new("RGB", (GAP + len(columns) * (COLUMN + GAP), GAP + 3 * LINE + rows * row), PAPER)
    pen = ImageDraw.Draw(canvas)
    for number, column in enumerate(columns):
        left = GAP + number * (COLUMN + GAP)
        _text(pen, (left, GAP - 8), column.title, 22, COLUMN)
        _text(pen, (left, GAP + LINE), column.subtitle, 14, COLUMN, FAINT)
        for place, panel in enumerate(column.panels):
            _draw(canvas, pen, panel, left, GAP + 3 * LINE + place * row)
    return canvas


def colors(values: np.ndarray) -> np.ndarray:
    """(...) from 0 to 1 -> (..., 3) uint8 sRGB; lightness grows evenly, so equal steps look equal (OKLab,
    Ottosson 2020).
    """
    lightness, chroma, hue = (
        np.interp(np.clip(values, 0, 1), np.linspace(0, 1, len(ANCHORS)), channel)
        for channel in np.transpose(ANCHORS)
    )
    a, b = chroma * np.cos(np.deg2rad(hue)), chroma * np.sin(np.deg2rad(hue))
    cones = (
        np.stack(
            [
                lightness + 0.3963377774 * a + 0.2158037573 * b,
                lightness - 0.1055613458 * a - 0.0638541728 * b,
                lightness - 0.0894841775 * a - 1.2914855480 * b,
            ],
            -1,
        )
        ** 3
    )
    linear = cones @ np.array(
        [
            [4.0767416621, -1.2684380046, -0.0041960863],
            [-3.3077115913, 2.6097574011, -0.7034186147],
            [0.2309699292, -0.3413193965, 1.7076147010],
        ]
    )
    linear = np.clip(linear, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * srgb).astype(np.uint8)


def _draw(canvas: Image.Image, pen: ImageDraw.ImageDraw, panel: Panel, left: int, top: int) -> None:
    _text(pen, (left, top), panel.caption, 15, COLUMN)
    top += LINE
    height, width = panel.values.shape
    scale = MAP / max(height, width)
    values = Image.fromarray(panel.values.astype(np.float32))  # the numbers are resized, not their colors
    size = max(1, round(width * scale)), max(1, round(height * scale))
    values = values.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)
    canvas.paste(Image.fromarray(colors(np.asarray(values))), (left, top))
    for number, square in enumerate(panel.squares):
        color = OUTLINES[number % len(OUTLINES)]
        if square.side is not None:
            center = left + (width // 2 + 0.5) * scale, top + (height // 2 + 0.5) * scale
            half = square.side * scale / 2
            _outline(
                pen, [center[0] - half, center[1] - half, center[0] + half - 1, center[1] + half - 1], color
            )
        x, y = left + number % 2 * (COLUMN // 2), top + MAP + 4 + number // 2 * LINE
        pen.rectangle([x, y + 3, x + 13, y + 16], fill=color, outline=INK)
        _text(pen, (x + 20, y), square.text, 14, COLUMN // 2 - 22)
    _color_bar(canvas, pen, panel.ticks, left + MAP + 10, top)


def _outline(pen: ImageDraw.ImageDraw, box: Sequence[float], color: tuple[int, int, int]) -> None:
    """A colored line with a dark one around it, so that it is seen on bright and dark parts of a map."""
    left, top, right, bottom = (round(v) for v in box)
    right, bottom = max(right, left), max(bottom, top)  # less than a pixel of the picture
    pen.rectangle([left - 1, top - 1, right + 1, bottom + 1], outline=INK)
    pen.rectangle([left, top, right, bottom], outline=color, width=2)


def _color_bar(
    canvas: Image.Image, pen: ImageDraw.ImageDraw, ticks: Sequence[tuple[float, str]], left: int, top: int
) -> None:
    ramp = np.repeat(np.linspace(1, 0, MAP)[:, None], BAR, axis=1)
    canvas.paste(Image.fromarray(colors(ramp)), (left, top))
    for value, text in ticks:
        y = top + round((1 - value) * (MAP - 1))
        pen.line([left + BAR, y, left + BAR + 4, y], fill=INK)
        _text(pen, (left + BAR + 7, min(max(y - 9, top), top + MAP - 17)), text, 13, 60)


def _text(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    width: int,
    color: tuple[int, int, int] = INK,
) -> None:
    """One line; what does not fit into `width` pixels is cut in the middle, where names of files differ
    least.
    """
    font = ImageFont.load_default(size)
    whole, keep = text, len(text)
    while keep > 8 and pen.textlength(text, font=font) > width:
        keep -= 1
        text = f"{whole[: keep // 2]}...{whole[-(keep - keep // 2) :]}"
    pen.text(place, text, fill=color, font=font)
