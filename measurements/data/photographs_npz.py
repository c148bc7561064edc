"""Turn labeled ImageNet photographs into the arrays that `--data npz:FOLDER` reads.

    python measurements/data/photographs_npz.py SOURCE FOLDER

In:  SOURCE, a folder with images/*.jpg and labels.csv (file, class_index, source). Pictures of source nips17
     are not from ImageNet's training set, those of source imagenet_train are.
Out: FOLDER/train.npz (imagenet_train: to calibrate on) and FOLDER/val.npz (nips17: to measure on): x (N, 288,
     288, 3) uint8, the middle of each picture; y (N,); class_names (1000,).
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from timm.data import ImageNetInfo

SIDE = 288


def main(source: Path, folder: Path) -> None:
    """Write both splits."""
    info = ImageNetInfo()
    names = np.array([info.index_to_label_name(i) for i in range(1000)])
    rows = list(csv.DictReader((source / "labels.csv").open(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    for split, kind in (("train", "imagenet_train"), ("val", "nips17")):
        chosen = [row for row in rows if row["source"] == kind]
        pictures = [
            ImageOps.fit(Image.open(source / "images" / row["file"]).convert("RGB"), (SIDE, SIDE))
            for row in chosen
        ]
        np.savez(
            folder / f"{split}.npz",
            x=np.stack([np.asarray(picture) for picture in pictures]),
            y=np.array([int(row["class_index"]) for row in chosen]),
            class_names=names,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder with images/ and labels.csv")
    parser.add_argument("folder", type=Path, help="folder to write train.npz and val.npz to")
    options = parser.parse_args()
    main(options.source, options.folder)
