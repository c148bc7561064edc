"""Handwritten digits, for the demo and for trying things without images.

In:  the split that is wanted.
Out: an `ArraySet` of scikit-learn's bundled digits; MissingError without scikit-learn.
Elsewhere: images of one's own (runtime.images.folder, runtime.images.npz).
"""

from __future__ import annotations

import numpy as np

from ..errors import MissingError
from .sets import ArraySet


def open_digits(split: str) -> ArraySet:
    """1,797 handwritten digits of 8 x 8 pixels (UCI, bundled with scikit-learn), enlarged to 32 x 32.

    Every fourth image of a class is val: 1,352 for training, 445 for validation.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingError(
            '--data digits needs scikit-learn. Install it: pip install "large2small[demo]"'
        ) from None
    from PIL import Image as pil

    bunch = load_digits()
    small = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    x = np.stack(
        [
            np.asarray(pil.fromarray(image).resize((32, 32), pil.Resampling.BICUBIC).convert("RGB"))
            for image in small
        ]
    )
    y = bunch.target.astype(np.int64)
    rank_in_class = np.array([np.count_nonzero(y[:i] == y[i]) for i in range(len(y))])
    chosen = (rank_in_class % 4 == 3) == (split == "val")
    return ArraySet(f"digits:{split}", x[chosen], y[chosen], [str(i) for i in range(10)])
