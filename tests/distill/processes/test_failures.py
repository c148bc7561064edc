"""Whatever goes wrong in one process or in all: one line says so, with the rank where not all have it."""

import signal
import socket

import numpy as np
import pytest
from PIL import Image

from distill import __main__ as cli


def error_of(group) -> str:
    """The one error that all processes together have said."""
    codes, said = group.wait(), group.said()
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert set(codes[1:]) <= {codes[0], 128 + signal.SIGTERM} and codes[0], said
    return f"{codes[0]} {error}"


def test_what_all_find_is_said_once_and_of_no_rank(place, start):
    group = start(2, ["eval", place.root / "none.pth", "--data", f"npz:{place.root / 'set'}"])
    assert error_of(group).startswith("2 error: " + str(place.root / "none.pth"))


def test_a_number_of_processes_that_leaves_no_whole_batch_is_refused(place, start):
    group = start(2, place.train("few", 2, "--teacher", "none", batch=80))
    said = "100 training images are fewer than one step of 80 x 2. Give a smaller --batch"
    assert error_of(group) == f"2 error: npz:{place.root / 'set' / 'train.npz'}: {said}"


def test_processes_that_cannot_share_the_batch_of_a_run_are_refused(place, start):
    assert start(1, place.train("odd", 1, "--teacher", "none", "--epochs", "1", batch=6)).wait() == [0]
    before = (place.root / "odd" / "last.pth").read_bytes()
    group = start(4, ["train", "--resume", place.root / "odd"])
    assert "the run has 6 images in a batch, which 4 processes cannot share evenly" in error_of(group)
    assert (place.root / "odd" / "last.pth").read_bytes() == before


@pytest.fixture
def photos(tmp_path):
    """A folder of images, the last of which in training cannot be read."""
    for split, count in (("train", 16), ("val", 4)):
        for number in range(count):
            path = tmp_path / "photos" / split / "ab"[number % 2] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(path)
    path.parents[2].joinpath("train", "b", "15.png").write_bytes(b"not an image")
    return tmp_path / "photos"


def test_an_image_that_one_process_cannot_read_ends_all(place, start, photos):
    words = place.train("bad", 2, "--teacher", "none", "--data", photos, "--epochs", "9")
    error = error_of(start(2, words))
    assert error.startswith("2 error: rank ") and "15.png" in error
    assert (place.root / "bad" / "last.pth").is_file()


def test_versions_that_differ_are_named(place, start):
    """Two processes with another package of the same name: by a folder in front of the others."""
    pillow = place.root / "other" / "pillow-0.0.1.dist-info"
    pillow.mkdir(parents=True)
    (pillow / "METADATA").write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 0.0.1\n")
    group = start(2, place.train("mixed", 2, "--teacher", "none"), paths={1: [str(pillow.parent)]})
    assert "rank 0 has pillow" in (error := error_of(group)) and "rank 1 has 0.0.1" in error
    assert not (place.root / "mixed").exists()


def test_a_port_that_is_in_use_is_named(monkeypatch, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        here = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in here.items():
            monkeypatch.setenv(name, str(value))
        assert cli.main(["eval", "best.pth", "--data", "digits"]) == 3
    said = f"error: port {port} of 127.0.0.1 is in use by another program"
    assert capsys.readouterr().err.startswith(said)
