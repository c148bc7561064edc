"""Commands besides training share their work, too, and give what one process gives, byte for byte."""

import json

import numpy as np
import pytest


@pytest.fixture(scope="module")
def done(place, start):
    """What one and two processes printed, each after the same commands: {size: lines of stdout}."""
    root = place.root
    first = start(1, place.train("run", 1, "--teacher", "none"))
    assert first.wait() == [0], first.said()
    found = {}
    for size in (1, 2):
        out = root / str(size)
        label = [*place.label("run", f"{size}/labels")[:-1], out / "labels"]
        evaluated = ["eval", root / "run" / "best.pth", "--batch", "4", "--json"]
        seen = ["erf", root / "run" / "best.pth", "--batch", "3", "--num-images", "10", "--json"]
        group = start(size, label, evaluated, [*seen, "--output", out / "erf"])
        assert group.wait() == [0] * size, group.said()
        found[size] = group.said("out")
    return found


def test_labels_are_those_of_one_process(place, done):
    """Two epochs of 12 batches, and 12 is more than a turn of two has."""
    one, two = (
        {file.name: file.read_bytes() for file in (place.root / str(size) / "labels").iterdir()}
        for size in (1, 2)
    )
    assert one == two and len(one) == 3


def test_labels_that_other_processes_began_are_finished(place, done, start):
    """With an odd number of batches missing: 7 of 12 are there."""
    folder, whole = place.root / "begun", place.root / "1" / "labels"
    folder.mkdir()
    (folder / "labels.json").write_bytes((whole / "labels.json").read_bytes())
    rows = (whole / "epoch-0001.rows").read_bytes()
    (folder / "epoch-0001.rows.part").write_bytes(rows[: len(rows) // 12 * 7 + 5])
    group = start(2, place.label("run", "begun"))
    assert group.wait() == [0, 0], group.said()
    assert "goes on with epoch 1, batch 8" in group.said()
    assert all((folder / file.name).read_bytes() == file.read_bytes() for file in whole.iterdir())


def test_accuracies_are_those_of_one_process(done):
    one, two = (json.loads(done[size].splitlines()[2]) for size in (1, 2))
    assert one == two and one["images"] == 21


def test_receptive_fields_are_those_of_one_process(place, done):
    one, two = (place.root / str(size) / "erf" for size in (1, 2))
    assert (one / "erf.json").read_bytes() == (two / "erf.json").read_bytes()
    scores = [np.load(folder / "erf.npz") for folder in (one, two)]
    assert all(np.array_equal(scores[0][name], scores[1][name]) for name in scores[0].files)
