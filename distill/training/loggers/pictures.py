"""Several images as one picture, with a line of words below each.

In:  images of PIL, or a batch of a training.
Out: (H, W, 3) uint8.
Elsewhere: who shows them (distill.training.loggers), the pictures of a report (distill.run.report.gallery).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from runtime.preprocess import Preprocess

SIDE = 128
"""Pixels of the longer side of an image."""
COLUMNS = 6
MOST = 24
GAP = 4
LINE = 14
"""Pixels of a line of words."""
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def of_batch(batch: Tensor, preprocess: Preprocess) -> list[Image.Image]:
    """batch (N, 3, H, W), normalized as `preprocess` says; at most MOST of it."""
    pixels = batch[:MOST].detach().float().cpu().numpy().transpose(0, 2, 3, 1)
    levels = 255 * (pixels * np.asarray(preprocess.std) + np.asarray(preprocess.mean))
    return [Image.fromarray(each) for each in np.clip(np.rint(levels), 0, 255).astype(np.uint8)]


def sheet(images: Sequence[Image.Image], words: Sequence[str] = ()) -> np.ndarray:
    """The images in rows of COLUMNS, each on a square with its words below; small ones are enlarged."""
    images = images[:MOST]
    columns = min(COLUMNS, len(images))
    width, height = SIDE + GAP, SIDE + GAP + (LINE if words else 0)
    whole = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default()
    for place, image in enumerate(images):
        left, top = place % columns * width, place // columns * height
        small = _fitted(image)
        whole.paste(small, (left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2))
        if words:
            draw.text((left, top + SIDE), _shortened(words[place], draw, font), "black", font)
    return np.asarray(whole)


def _fitted(image: Image.Image) -> Image.Image:
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    return image.convert("RGB").resize(size, how)


def _shortened(words: str, draw: ImageDraw.ImageDraw, font: Font) -> str:
    """As much as fits below an image; letters that the font may lack become question marks."""
    words = words.encode("latin-1", "replace").decode("latin-1")
    while draw.textlength(words, font) > SIDE:
        words = words[:-1]
    return words
