"""Random layouts of folders, lists and links: a person would name each class, or it is said why not.

A layout is grown together with what a person would say of it: (split, file) -> class, or None where it can be
read in two ways.
"""

import random
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from runtime import DataError
from runtime.images import has_own_split, open_images

NAMES = [
    "ant",
    "Bee",
    "1",
    "01",
    "café",
    "②",
    "red panda",
    "n01440764",
    "cat",
    "Cat",
    "a,b",
    "x#y",
    "日本",
    "-",
]
SYSTEM = [
    ".x.png",
    "._1.png",
    "Thumbs.db",
    ".cache/1.png",
    "@eaDir/1.png",
    "__MACOSX/ant/._1.png",
    ".git/a.png",
]
NOT_IMAGES = {
    "notes.txt": ".txt",
    "2.tif": ".tif",
    "more.zip": ".zip",
    "x.tar.gz": ".gz",
    "model.pth": ".pth",
}
SPLITS = [
    ("train", "val"),
    ("Training", "Validation"),
    ("TRAIN", "test"),
    ("train", "valid"),
    ("training", "eval"),
]


class Layout:
    """A layout on disk, and what a person would say of it."""

    def __init__(self, root, png, seed):
        self.root, self.png, self.chance = root, png, random.Random(seed)
        self.classes = self.chance.sample(NAMES, self.chance.randint(2, 5))
        self.said = {"train": {}, "val": {}}
        """Split -> path -> class."""
        self.left_out = Counter()
        self.is_clear = True
        self.kind = self.chance.choice(KINDS)
        self.kind(self)

    def write(self, path):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.png)
        return str(path)

    def class_folders(self, below, splits, inner=""):
        """below/CLASS/inner/0.png and so on, with what else may be there."""
        for name in self.classes:
            for number in range(self.chance.randint(1, 3)):
                path = self.write(Path(below, name, inner, f"{number}.png"))
                for split in splits:
                    self.said[split][path] = name
        self.clutter(Path(below), Path(below, self.classes[0], inner))

    def clutter(self, *folders):
        """Hidden and system files, other files, archives, links that lead back up or nowhere."""
        for folder in folders:
            for name in self.chance.sample(SYSTEM, self.chance.randint(0, 2)):
                self.write(folder / name)
            for name in self.chance.sample(sorted(NOT_IMAGES), self.chance.randint(0, 2)):
                self.write(folder / name)
                self.left_out[NOT_IMAGES[name]] += 1
            for name, target in (("up", ".."), ("self", "."), ("gone.png", "nowhere")):
                if self.chance.random() < 0.15:
                    (self.root / folder / name).symlink_to(target)

    def links(self, below, splits):
        """A class whose folder, and one whose image is a link to somewhere else."""
        if self.chance.random() < 0.5:
            self.write(f"../elsewhere-{self.root.name}/z.png")
            (self.root / below / "linked").symlink_to(self.root.parent / f"elsewhere-{self.root.name}")
            for split in splits:
                self.said[split][str(self.root / below / "linked" / "z.png")] = "linked"
        if self.chance.random() < 0.3:
            path = self.root / below / self.classes[-1] / "alike.png"
            path.symlink_to(self.root / below / self.classes[0] / "0.png")
            for split in splits:
                self.said[split][str(path)] = self.classes[-1]


def flat(layout):
    layout.class_folders("", ["train", "val"])
    layout.links("", ["train", "val"])


def one_inner_folder(layout):
    layout.class_folders("", ["train", "val"], "images")


def two_splits(layout):
    for split, word in zip(("train", "val"), layout.chance.choice(SPLITS), strict=True):
        layout.class_folders(word, [split])
        layout.links(word, [split])
    layout.clutter(Path())


def training_alone(layout):
    layout.class_folders("train", ["train"])


def two_lists(layout):
    """Images in one folder with two lists beside it, or in class folders, which the lists split."""
    suffix, blank = layout.chance.choice([(".csv", ","), (".tsv", "\t"), (".csv", ";")])
    header = layout.chance.choice(["", f"path{blank}label\n"])
    by_class = layout.chance.random() < 0.5
    number = 0
    for split, word in zip(("train", "val"), layout.chance.choice(SPLITS), strict=True):
        rows = []
        for name in layout.classes:
            for _ in range(layout.chance.randint(1, 3)):
                number += 1
                place = f"{name}/{number}.png" if by_class else f"img/{number}.png"
                layout.said[split][layout.write(place)] = name
                cells = [f'"{cell}"' if blank in cell else cell for cell in (place, name)]
                rows.append(blank.join(cells))
        (layout.root / f"{word}{suffix}").write_text(header + "\n".join(rows) + "\n")
    layout.clutter(Path())
    layout.left_out.clear()


def years(layout):
    for year in (2024, 2025):
        layout.class_folders(str(year), [])
    layout.is_clear = False


def two_depths(layout):
    flat(layout)
    layout.write(Path(layout.classes[0], "augmented", "1.png"))
    layout.is_clear = False


def loose_images(layout):
    flat(layout)
    layout.write("0.png")
    layout.is_clear = False


def one_folder_by_two_names(layout):
    layout.class_folders("", [])
    (layout.root / "again").symlink_to(layout.classes[0])
    layout.is_clear = False


def a_class_in_an_archive(layout):
    layout.class_folders("", [])
    layout.write("packed/images.zip")
    layout.is_clear = False


KINDS = [flat, flat, one_inner_folder, two_splits, two_splits, training_alone, two_lists, two_lists, years]
KINDS += [two_depths, loose_images, one_folder_by_two_names, a_class_in_an_archive]


def require_as_said(layout, split):
    images = open_images(str(layout.root), split)
    found = {images.item_name(i): images.class_names[label] for i, label in enumerate(images.labels)}
    assert found == layout.said[split]
    assert set(images.class_names) == set(layout.said[split].values())


@pytest.mark.parametrize("part", range(4))
def test_every_layout_is_read_as_a_person_would_or_refused(tmp_path, part):
    Image.new("RGB", (2, 2)).save(tmp_path / "1.png")
    png, read = (tmp_path / "1.png").read_bytes(), Counter()
    for seed in range(part * 100, part * 100 + 100):
        layout = Layout(tmp_path / f"set{seed}", png, seed)
        kind = layout.kind.__name__
        try:
            if not layout.is_clear:
                with pytest.raises(DataError, match=str(layout.root)):
                    open_images(str(layout.root), "train")
            else:
                require_as_said(layout, "train")
                own = has_own_split(str(layout.root), "val")
                assert own == (kind in ("two_splits", "two_lists"))
                if layout.said["val"]:
                    require_as_said(layout, "val")
                else:
                    with pytest.raises(DataError, match="none for val"):
                        open_images(str(layout.root), "val")
        except (AssertionError, DataError, pytest.fail.Exception) as error:
            tree = "\n".join(sorted(map(str, layout.root.rglob("*"))))
            raise AssertionError(f"layout {seed}, {kind}\n{tree}") from error
        read[kind] += 1
    assert len(read) >= 9 and sum(read.values()) == 100


def test_what_is_beside_the_images_is_counted(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "1.png")
    png = (tmp_path / "1.png").read_bytes()
    for seed in range(60):
        layout = Layout(tmp_path / f"set{seed}", png, seed)
        if layout.kind in (flat, one_inner_folder):
            images = open_images(str(layout.root), "train")
            found = Counter({each.reason.split(" ")[0]: each.count for each in images.left_out})
            assert {suffix: found[suffix] for suffix in layout.left_out} == dict(layout.left_out)
