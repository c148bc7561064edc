"""Sources that timm reads: the pixels are those of the one decoder, as for a plain folder."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import turned
from PIL import Image

from distill.data import loaders, open_data
from runtime import DataError

DEEP = np.array([[0, 257 * 7, 257 * 8], [257 * 128, 257 * 200, 65535]], np.uint16)
LEVELS = [[0, 7, 8], [128, 200, 255]]
"""DEEP in 8 bits."""


def encoded(orientation=1):
    return turned.png(DEEP, turned.tiff(orientation))


def gray(image):
    return np.asarray(image)[..., 0].tolist()


@pytest.mark.parametrize("spec", ["torch/image_folder:{}", "{}", "{}.tar"])
def test_gray_of_16_bits_is_scaled_and_its_orientation_kept(spec, tmp_path):
    folder = tmp_path / "photos"
    for label in ("ant", "bee"):
        (folder / label).mkdir(parents=True)
        (folder / label / "1.png").write_bytes(encoded(6))
    with tarfile.open(f"{folder}.tar", "w") as archive:
        archive.add(folder, arcname=".")
    image = open_data(spec.format(folder), "val").image(0)
    assert gray(image) == LEVELS
    assert gray(loaders.Preprocess((3, 3, 2), crop_pct=1.0, exif="apply").rgb(image)) == [
        [128, 0],
        [200, 7],
        [255, 8],
    ]


def test_a_stream_gives_the_same(tmp_path):
    pytest.importorskip("webdataset")
    with tarfile.open(tmp_path / "val-0.tar", "w") as archive:
        for name, content in (("0.png", encoded()), ("0.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    shard = '{"name": "validation", "filenames": ["val-0.tar"], "shard_lengths": [1], "num_samples": 1}'
    (tmp_path / "_info.json").write_text(f'{{"splits": {{"validation": {shard}}}}}')
    images = open_data(f"wds/made:{tmp_path}", "val", 2)
    ((image, label, bad),) = loaders.StreamItems(images, lambda image, _: image, 0, 1, skip_bad=False)
    assert (gray(image), label, bad) == (LEVELS, 0, [])


def test_what_cannot_be_read_is_named_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for label in ("ant", "bee"):
        Path(label).mkdir()
        Image.new("RGB", (4, 4)).save(f"{label}/1.png")
    Path("bee/1.png").write_bytes(b"junk")
    with pytest.raises(DataError) as caught:
        open_data("torch/image_folder:.", "val").image(1)
    assert str(caught.value).count("not a readable image") == 1 and "bee/1.png" in str(caught.value)
