"""Images are decoded in the formats that are meant, whatever a file is called.

EPS is the test: Pillow starts Ghostscript (`gs` on the PATH) to read it. A stand-in writes down that it was
started.
"""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import turned
from PIL import Image, ImageFile

import runtime
from distill.data import loaders, open_data
from runtime.cli.front_door import main
from runtime.images import EXTENSIONS, FolderSet, decode
from runtime.images.decode import FORMATS, open_rgb, stored_orientation
from runtime.preprocess import Preprocess

pytestmark = pytest.mark.usefixtures("without_report")

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """photos/{train,val}/{ant,bee}/*.png, one of them EPS; a `gs` first on the PATH that leaves STARTED."""
    stand_in = tmp_path / "bin" / "gs"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/sh\ntouch {tmp_path}/STARTED\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None, raising=False)  # looked for once per process
    monkeypatch.chdir(tmp_path)
    dice = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("ant", "bee"):
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            for number in range(4):
                pixels = dice.integers(0, 256, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / label / f"{number}.png")
        (tmp_path / "photos" / split / "bee" / "photo.png").write_bytes(EPS)
    return tmp_path


def was_started(place: Path) -> bool:
    return (place / "STARTED").exists()


def test_pillow_alone_would_start_ghostscript(place):
    """Else the tests below would show nothing."""
    with pytest.raises(OSError), Image.open("photos/val/bee/photo.png") as opened:
        opened.load()
    assert was_started(place)


def test_a_path_and_bytes(place):
    for image in ("photos/val/bee/photo.png", EPS):
        with pytest.raises(
            runtime.DataError, match=r"not a readable image \(expected PNG, JPEG, WEBP, BMP\)"
        ):
            open_rgb(image)
    assert not was_started(place)


@pytest.mark.parametrize("spec", ["photos", "torch/image_folder:photos"])
def test_training_names_the_image(spec, place, capsys):
    argv = [
        "train",
        "--data",
        spec,
        "--student",
        "resnet20",
        "--student-args",
        "width=0.25",
        "--img-size",
        "16",
    ]
    argv += ["--batch", "4", "--epochs", "1", "--teacher", "none", "--device", "cpu", "--output", "run"]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "not a readable image" in said and ("photo.png" in said or "torch/" in said)
    assert not was_started(place)


def test_a_tar_and_a_stream(place):
    def write(archive, name, content):
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))

    with tarfile.open("set.tar", "w") as archive:
        write(archive, "ant/1.png", EPS)
        write(archive, "bee/1.png", EPS)
    with pytest.raises(runtime.DataError, match="not a readable image"):
        open_data("set.tar", "val").image(0)
    pytest.importorskip("webdataset")
    with tarfile.open("val-0.tar", "w") as archive:
        write(archive, "0.png", EPS)
        write(archive, "0.cls", b"0")
    shard = {"name": "validation", "filenames": ["val-0.tar"], "shard_lengths": [1], "num_samples": 1}
    Path("_info.json").write_text(f'{{"splits": {{"validation": {shard}}}}}'.replace("'", '"'))
    images = open_data(f"wds/made:{place}", "val", 2)
    items = loaders.StreamItems(images, lambda image: image, 0, 1, skip_bad=True)
    list(items)
    assert not was_started(place)
    with Image.open("photos/val/bee/photo.png") as opened:  # outside, Pillow is as it was
        assert opened.format == "EPS"


@pytest.mark.parametrize("kind", ["EPS", "GIF", "TIFF", "PPM", "ICO", "TGA", "PDF"])
def test_other_formats_are_refused_under_every_name(kind, tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, kind)
    for suffix in EXTENSIONS:
        path = tmp_path / f"photo{suffix}"
        path.write_bytes(content.getvalue())
        with pytest.raises(runtime.DataError, match=f"photo{suffix}: not a readable image"):
            open_rgb(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_meant_is_read_under_every_name(kind, tmp_path):
    """A PNG called .JPEG is in ImageNet."""
    for suffix in EXTENSIONS:
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / f"photo{suffix}", kind)
        assert open_rgb(tmp_path / f"photo{suffix}").size == (8, 8)


@pytest.fixture
def no_pixels(monkeypatch):
    """Decoding fails the test."""
    for kind in (ImageFile.ImageFile, Image.Image):
        monkeypatch.setattr(kind, "load", lambda _: pytest.fail("decoded"))


@pytest.mark.parametrize(
    "size", [(1, 178_956_970), (13_300, 13_300), (8192, 8193), (60_000, 60_000), (1, 5_000_000)]
)
def test_an_image_of_too_many_pixels_is_refused_by_its_header(size, place, no_pixels, capsys):
    """By every reader: a picture, bytes, a file, a data set, timm's, and the commands."""
    Path("photos/val/ant/0.png").write_bytes(turned.png_header(*size))
    expected = r"0\.png: .* pixels; expected an image of at most 67,108,864"
    for read in (open_rgb, Preprocess(), Preprocess(exif="apply")):
        with pytest.raises(runtime.DataError, match=expected):
            read("photos/val/ant/0.png")
    for spec in ("photos", "torch/image_folder:photos"):
        images = open_data(spec, "val")
        with pytest.raises(runtime.DataError, match=expected):
            images.image(0)
    with pytest.raises(runtime.DataError, match=r"^\d\d bytes: .* at most 67,108,864"):
        open_rgb(turned.png_header(*size))
    assert stored_orientation("photos/val/ant/0.png") == 1


def test_images_and_arrays_in_memory_have_the_same_limit(place, monkeypatch):
    monkeypatch.setattr(decode, "MOST_PIXELS", 16 * 16 - 1)
    with Image.open("photos/val/ant/0.png") as opened:
        for image in (opened, np.zeros((16, 16), np.uint8), np.zeros((16, 16, 3), np.uint8)):
            with pytest.raises(runtime.DataError, match=r"16 x 16 pixels; expected .* at most 255"):
                open_rgb(image)
        with decode.only_formats(), pytest.raises(Image.DecompressionBombError):
            Image.open("photos/val/ant/0.png")
        assert open_rgb(np.zeros((15, 17), np.uint8)).size == (17, 15)
    np.savez("d.npz", x=np.zeros((2, 16, 16, 3), np.uint8), y=np.arange(2))
    with pytest.raises(runtime.DataError, match=r"npz:d\.npz: 16 x 16 pixels"):
        open_data("npz:d.npz", "val")


def test_the_check_of_a_data_set_names_what_is_too_large(place, capsys):
    Path("photos/val/bee/photo.png").unlink()
    Path("photos/val/ant/0.png").write_bytes(turned.png_header(13_300, 13_300))
    assert main(["check", "photos"]) == 1
    said = capsys.readouterr()
    assert "val: 1 unreadable images: photos/val/ant/0.png" in said.out + said.err


def test_a_file_too_large_for_an_image_is_not_read(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "1.png").open("wb") as file:
            file.truncate(2**30 + 1)
    images = FolderSet(tmp_path)
    for read in (images.image, images.item_sha256, images.item_bytes):
        with pytest.raises(runtime.DataError, match=r"1\.png: 1,073,741,825 bytes; expected an image of"):
            read(0)


def test_what_is_not_a_file_is_not_waited_for(tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "bee").mkdir()
    os.mkfifo(tmp_path / "ant" / "1.png")
    (tmp_path / "bee" / "1.png").symlink_to("/dev/zero")
    images = FolderSet(tmp_path)
    for index in range(2):
        for read in (images.image, images.item_sha256):
            with pytest.raises(runtime.DataError, match=r"1\.png: not a regular file"):
                read(index)
    with pytest.raises(runtime.DataError, match="not a regular file"):
        Preprocess()(tmp_path / "ant" / "1.png")
