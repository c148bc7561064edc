"""Turn CIFAR-10 tile sheets into the arrays that `--data npz:FOLDER` reads.

    python measurements/data/cifar10_npz.py SHEETS FOLDER

In:  SHEETS, a folder with train_{0..4}.webp, test.webp (lossless sheets, 100 tiles of 32 x 32 a row) and
     labels.npz (y_train, y_test, class_names).
Out: FOLDER/train.npz and FOLDER/test.npz with x (N, 32, 32, 3) uint8, y (N,), class_names.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image


def tiles(path: Path) -> np.ndarray:
    """(N, 32, 32, 3) uint8 from one sheet, row by row."""
    sheet = np.asarray(Image.open(path).convert("RGB"))
    rows, columns = sheet.shape[0] // 32, sheet.shape[1] // 32
    return sheet.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


def main(sheets: Path, folder: Path) -> None:
    """Write both splits."""
    labels = np.load(sheets / "labels.npz")
    names = np.array([str(name) for name in labels["class_names"]])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "train.npz",
        x=np.concatenate([tiles(sheets / f"train_{i}.webp") for i in range(5)]),
        y=labels["y_train"],
        class_names=names,
    )
    np.savez(folder / "test.npz", x=tiles(sheets / "test.webp"), y=labels["y_test"], class_names=names)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sheets", type=Path, help="folder with the tile sheets and labels.npz")
    parser.add_argument("folder", type=Path, help="folder to write train.npz and test.npz to")
    options = parser.parse_args()
    main(options.sheets, options.folder)
