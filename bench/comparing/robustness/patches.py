"""Parts of an image taken away, moved or cut off: what an answer depends on.

In:  an image (H, W, 3) uint8 at the network's input size, a generator of random numbers.
Out: an image of the same shape.
Elsewhere: which of them are asked about (bench.comparing.robustness.views), curves
(bench.comparing.robustness.figures).
"""

from __future__ import annotations

import numpy as np

Random = np.random.Generator


def occluded(image: np.ndarray, share: float, grid: int, color: np.ndarray, random: Random) -> np.ndarray:
    """A share of the cells of a grid x grid mesh, drawn at random, filled with a color (3,) uint8. The same
    generator draws the same cells and more of them for a larger share.
    """
    height, width = image.shape[:2]
    rows, columns = (np.linspace(0, side, grid + 1).round().astype(int) for side in (height, width))
    found: np.ndarray = image.copy()
    for cell in random.permutation(grid * grid)[: round(share * grid * grid)]:
        row, column = divmod(int(cell), grid)
        found[rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = color
    return found


def shuffled(image: np.ndarray, grid: int, random: Random) -> np.ndarray:
    """The cells of a grid x grid mesh in random order. What a side leaves over when it is divided by `grid`
    stays, at the bottom and to the right.
    """
    high, wide = image.shape[0] // grid, image.shape[1] // grid
    inner = image[: high * grid, : wide * grid]
    cells = inner.reshape(grid, high, grid, wide, 3).swapaxes(1, 2).reshape(grid * grid, high, wide, 3)
    moved = cells[random.permutation(grid * grid)]
    found: np.ndarray = image.copy()
    found[: high * grid, : wide * grid] = (
        moved.reshape(grid, grid, high, wide, 3).swapaxes(1, 2).reshape(inner.shape)
    )
    return found


def shifted(image: np.ndarray, pixels: int, random: Random) -> np.ndarray:
    """Moved so far down, up or sideways, or both, where the farther of the two is `pixels`; mirrored at the
    border.
    """
    far = np.arange(-pixels, pixels + 1)
    ring = [(int(dy), int(dx)) for dy in far for dx in far if max(abs(dy), abs(dx)) == pixels]
    dy, dx = ring[random.integers(len(ring))]
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="reflect")
    height, width = image.shape[:2]
    return padded[pixels - dy : pixels - dy + height, pixels - dx : pixels - dx + width]


def cropped(image: np.ndarray, kept: float, random: Random) -> np.ndarray:
    """A part with `kept` of both sides, anywhere in the image, enlarged to its size (bilinear)."""
    from PIL import Image as pil

    height, width = image.shape[:2]
    high, wide = max(round(height * kept), 1), max(round(width * kept), 1)
    top, left = random.integers(height - high + 1), random.integers(width - wide + 1)
    part = pil.fromarray(image[top : top + high, left : left + wide])
    return np.asarray(part.resize((width, height), pil.Resampling.BILINEAR))
