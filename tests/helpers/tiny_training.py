"""A training that takes seconds: a narrow network, small images, one epoch, on the CPU."""

from pathlib import Path

import numpy as np

TINY = [
    "--student-args",
    "width=0.25",
    "--img-size",
    "16",
    "--batch",
    "4",
    "--epochs",
    "1",
    "--device",
    "cpu",
]


def write_noise(folder: Path, train: int, val: int) -> None:
    """train.npz and val.npz of so many 16 x 16 images of noise, of four classes in turn."""
    folder.mkdir()
    for seed, (split, count) in enumerate((("train", train), ("val", val))):
        x = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)
        np.savez(folder / f"{split}.npz", x=x, y=np.arange(count) % 4)
