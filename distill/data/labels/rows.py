"""One stored answer: the largest logits of an image, what the others add up to, and a checksum of its pixels.

In:  logits (N, K) and pixels of a batch; or rows of a file.
Out: a numpy structured array of N rows; or logits (N, K) float32 again.
Elsewhere: the files (distill.data.labels.store), making them (distill.run.labeling).

Stored are log-probabilities, which 16 bits hold well where it matters, and the logarithm of the sum that they
were divided by, so that logits come back. With fewer than all classes the rest's probability is spread evenly
over the others, as TinyViT does (Wu et al., ECCV 2022); because logits are stored and not probabilities, any
temperature works.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEAST = -60_000.0
"""Lowest log-probability: the range of 16 bits ends a little below, and a logit of minus infinity would make
NaN of a loss."""


@dataclass(frozen=True)
class Layout:
    """What a row holds: the `top` largest of `classes`, all of them where the two are equal."""

    classes: int
    top: int

    @property
    def is_whole(self) -> bool:
        """Is every class stored?"""
        return self.top == self.classes

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The fields of a row, little-endian, without gaps."""
        fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = [
            ("checksum", "<u4"),
            ("log_sum", "<f4"),
            ("log_p", "<f2", (self.top,)),
        ]
        if not self.is_whole:
            fields += [("log_rest", "<f2"), ("ids", "<u2" if self.classes <= 2**16 else "<u4", (self.top,))]
        return np.dtype(fields)

    def pack(self, logits: Tensor, pixels: Tensor) -> np.ndarray:
        """Rows (N,) of `dtype` from logits (N, classes) and the images (N, C, H, W) that they answer."""
        z = logits.detach().double().cpu()
        rows = np.zeros(len(z), self.dtype)
        log_sum = z.logsumexp(dim=1)
        rows["checksum"], rows["log_sum"] = checksums(pixels), log_sum.numpy()
        log_p = (z - log_sum[:, None]).clamp_min(LEAST)
        if self.is_whole:
            rows["log_p"] = log_p.numpy()
            return rows
        values, ids = log_p.topk(self.top, dim=1)
        others = (z - log_sum[:, None]).scatter(1, ids, -torch.inf)
        rows["log_p"], rows["ids"] = values.numpy(), ids.numpy()
        rows["log_rest"] = others.logsumexp(dim=1).clamp_min(LEAST).numpy()
        return rows

    def unknown_class(self, rows: np.ndarray) -> int | None:
        """The largest class that rows (N,) name, where there is no such class."""
        largest = -1 if self.is_whole else int(rows["ids"].max(initial=0))
        return largest if largest >= self.classes else None

    def unpack(self, rows: np.ndarray) -> Tensor:
        """Logits (N, classes) float32 of rows (N,), which name no unknown class."""
        log_sum = torch.from_numpy(rows["log_sum"].astype(np.float32))[:, None]
        log_p = torch.from_numpy(rows["log_p"].astype(np.float32))
        if self.is_whole:
            return log_p + log_sum
        ids = torch.from_numpy(rows["ids"].astype(np.int64))
        rest = torch.from_numpy(rows["log_rest"].astype(np.float32))
        return spread(ids, log_p, rest, self.classes) + log_sum


def spread(ids: Tensor, log_p: Tensor, log_rest: Tensor, classes: int) -> Tensor:
    """Log-probabilities (N, classes) from those of `ids` (N, k), k < classes, and that of all others together
    (N,), spread evenly over them.
    """
    each = log_rest - float(np.log(classes - ids.shape[1]))
    return each[:, None].expand(-1, classes).scatter(1, ids, log_p)


def checksums(pixels: Tensor) -> np.ndarray:
    """(N,) uint32: CRC-32 of each image's float32 values in the order channel, row, column."""
    images = pixels.detach().float().cpu().contiguous().numpy().astype("<f4", copy=False)
    return np.array([zlib.crc32(image) for image in images], np.uint32)
