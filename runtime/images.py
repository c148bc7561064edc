"""Labeled images by name, without torch: a folder tree, npz arrays, or scikit-learn's digits.

In:  a spec (`DIR`, `npz:FILE`, `digits`) and a split (`train` or `val`).
Out: an `ImageSet`: class names, labels (N,) int64, image i as a PIL RGB image, its name and its SHA-256.
Elsewhere: every other source timm reads (distill.data); augmentation (distill.data.augment); resize, crop,
scale (runtime.preprocess).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError, MissingError
from .preprocess import open_rgb, require_file

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation", "test"),
}


class ImageSet:
    """N images with labels; `image(i)` decodes, everything else is cheap."""

    def __init__(self, name: str, class_names: Sequence[str], labels: np.ndarray) -> None:
        self.name = name
        self.class_names = [str(c) for c in class_names]
        self.labels = np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Any:
        """PIL image, mode RGB. Raises DataError naming the image when it cannot be read."""
        raise NotImplementedError

    def item_name(self, index: int) -> str:
        """A name a person can find the image by."""
        return f"{self.name}[{index}]"

    def item_bytes(self, index: int) -> bytes:
        """What identifies the image's content: the encoded file, or the pixels."""
        return np.asarray(self.image(index)).tobytes()

    def item_sha256(self, index: int) -> str:
        """SHA-256 of the image's content."""
        return hashlib.sha256(self.item_bytes(index)).hexdigest()

    def fingerprint(self) -> str:
        """SHA-256 over class names, item names and labels: changes when an image is added, removed or
        relabeled.
        """
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        digest.update(self.labels.tobytes())
        for index in range(len(self)):
            digest.update(os.path.basename(self.item_name(index)).encode())
        return digest.hexdigest()


class FolderSet(ImageSet):
    """`ROOT/CLASS/image.jpg`, at any depth: an image's class is the folder it is in, classes in natural
    order (2 before 10), both as timm reads them. Raises DataError for an image beside the class folders.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        files = [
            Path(folder) / file
            for folder, _, names in os.walk(self.root, followlinks=True)
            for file in names
            if os.path.splitext(file)[1].lower() in EXTENSIONS
        ]
        if not files:
            raise DataError(
                f"{root}: no images found ({', '.join(EXTENSIONS)}). Expected {root}/CLASS/image.jpg"
            )
        self.files = sorted(files, key=lambda path: natural_key(str(path)))
        loose = next((file for file in self.files if file.parent == self.root), None)
        if loose:
            raise DataError(f"{loose}: is not in a class folder. Expected {root}/CLASS/image.jpg")
        names = [file.parent.name for file in self.files]
        class_names = sorted(set(names), key=natural_key)
        index = {name: i for i, name in enumerate(class_names)}
        super().__init__(str(root), class_names, np.array([index[name] for name in names]))

    def image(self, index: int) -> Any:
        return open_rgb(self.files[index])

    def item_name(self, index: int) -> str:
        return str(self.files[index])

    def item_bytes(self, index: int) -> bytes:
        require_file(self.files[index])
        return self.files[index].read_bytes()


class ArraySet(ImageSet):
    """Images held in memory: x uint8 (N, H, W, 3) or (N, H, W), y integer (N,)."""

    def __init__(self, name: str, x: np.ndarray, y: np.ndarray, class_names: Sequence[str]) -> None:
        super().__init__(name, class_names, y)
        self.x = x

    def image(self, index: int) -> Any:
        return open_rgb(self.x[index])

    def item_bytes(self, index: int) -> bytes:
        return np.asarray(self.x[index]).tobytes()

    def fingerprint(self) -> str:
        """SHA-256 over class names, labels and pixels."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        digest.update(self.labels.tobytes())
        digest.update(np.ascontiguousarray(self.x).data)
        return digest.hexdigest()


def open_images(spec: str, split: str) -> ImageSet:
    """The labeled images that `spec` names.

    spec: `digits`; `npz:FILE`; or a folder. split: `train` or `val`; a folder without a sub-folder of that
    meaning (SPLIT_FOLDERS) is used as it is. Raises DataError when it is missing, empty, or has fewer than
    two classes.
    """
    images: ImageSet
    if spec == "digits":
        images = _digits(split)
    elif spec.startswith("npz:"):
        images = _npz(spec[len("npz:") :], split)
    else:
        images = FolderSet(_split_folder(Path(spec), split))
    if len(images.class_names) < 2:
        raise DataError(
            f"{images.name}: one class ({images.class_names[0]!r}) cannot be classified. "
            "Expected at least two class folders"
        )
    return images


def has_own_split(spec: str, split: str) -> bool:
    """Whether `spec` keeps `split` apart from the other one (a sub-folder, a split file, the digits)."""
    if spec == "digits":
        return True
    if spec.startswith("npz:"):
        path = Path(spec[len("npz:") :])
        return path.is_dir() or "{split}" in str(path)
    return _split_folder(Path(spec), split) != Path(spec)


def natural_key(text: str) -> list[Any]:
    """Sort key that reads runs of digits as numbers: class2 before class10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text.lower())]


def _split_folder(root: Path, split: str) -> Path:
    if not root.exists():
        raise DataError(
            f"{root}: no such folder. Expected an image folder with one sub-folder per class, npz:FILE, or"
            " digits"
        )
    if not root.is_dir():
        raise DataError(f"{root}: not a folder. Expected an image folder, npz:FILE, or digits")
    found = {
        each: next((root / name for name in names if (root / name).is_dir()), None)
        for each, names in SPLIT_FOLDERS.items()
    }
    if found[split] is None and any(found.values()):  # else the whole root would mix both splits
        raise DataError(
            f"{root}: has a folder of {'val' if split == 'train' else 'training'} images but none for"
            f" {split}. Expected one of {', '.join(SPLIT_FOLDERS[split])} in it, or a folder of class folders"
        )
    return found[split] or root


def _npz(location: str, split: str) -> ArraySet:
    path = _npz_file(location, split)
    if path.exists() and not path.is_file():
        raise DataError(f"npz:{path}: not a regular file. Expected arrays x (N, H, W, 3) uint8 and y (N,)")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(
            f"npz:{path}: no such file. Expected arrays x (N, H, W, 3) uint8 and y (N,)"
        ) from None
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"npz:{path}: cannot be read ({error})") from error
    except Exception as error:  # zipfile.BadZipFile and zlib.error have no common base
        raise DataError(f"npz:{path}: not an npz file ({error})") from error
    if "x" not in arrays or "y" not in arrays:
        raise DataError(f"npz:{path}: has arrays {sorted(arrays)}; expected x (N, H, W, 3) uint8 and y (N,)")
    x, y = arrays["x"], arrays["y"]
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        raise DataError(
            f"npz:{path}: x is {x.dtype} {x.shape}, y is {y.dtype} {y.shape}; "
            "expected x uint8 (N, H, W, 3) and y integer (N,)"
        )
    if not len(x):
        raise DataError(f"npz:{path}: holds no images")
    names = (
        arrays["class_names"].tolist()
        if "class_names" in arrays
        else [str(i) for i in range(int(y.max()) + 1)]
    )
    if y.min() < 0 or y.max() >= len(names):
        raise DataError(f"npz:{path}: labels run from {y.min()} to {y.max()}, class_names has {len(names)}")
    return ArraySet(f"npz:{path}", x, y, names)


def _npz_file(location: str, split: str) -> Path:
    path = Path(location)
    names = SPLIT_FOLDERS[split]
    if "{split}" in location:
        candidates = [Path(location.replace("{split}", name)) for name in names]
    elif path.is_dir():
        candidates = [path / f"{name}.npz" for name in names]
    else:
        return path
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is None:
        raise DataError(
            f"npz:{location}: no {split} split. Expected one of {', '.join(map(str, candidates))}"
        )
    return found


def _digits(split: str) -> ArraySet:
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
