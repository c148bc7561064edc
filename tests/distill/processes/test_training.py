"""Several processes train as one: with the same images in a step the weights are those of a single one."""

import os

import pytest
from small_runs import NORMS, Place
from tiny_training import write_noise

IS_LARGE = bool(os.environ.get("L2S_LARGE"))
"""Whether the tests of this folder are as large as docs/scale.md says, not as quick as they can be."""
SIZES = (2, 4) if IS_LARGE else (2,)
STEPS = 30 if IS_LARGE else 12


def trainings(place, size):
    """The words of each training, for so many processes."""
    teacher = ["--teacher-ckpt", place.root / "plain1" / "best.pth"]
    of = {
        "plain": ["--teacher", "none"],
        "kl": [*teacher, "--model-ema", *SPARSE],
        "feature": [*teacher, "--kd-loss", "none", "--feature-loss", "fitnets", "--sync-bn"],
        "stored": ["--teacher-labels", place.root / "labels"],
        "norms": ["--teacher", "none", *NORMS, "--sync-bn"],
    }
    if size > 1:
        of["early"] = ["--teacher", "none", "--early-stop", "1", "--lr", "1e-30", "--epochs", "5"]
        of["compressed"] = ["--teacher", "none", "--ddp-compress", "bf16"]
    return {name: place.train(f"{name}{size}", size, *words) for name, words in of.items()}


SPARSE = ["--sparsity", "0.5", "--sparse-update-every", "4", "--sparse-growth", "gradient"]
"""Half of the weights masked, some of them exchanged twice."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    write_noise(root / "set", train=STEPS // 2 * 16 + 4, val=21)
    return Place(root)


@pytest.fixture(scope="module")
def trained(place, start):
    """{size: what these processes printed}, after all trainings; every one ended well."""
    first, *others = trainings(place, 1).values()
    groups = {1: start(1, first, place.label("plain1", "labels"), *others)}
    assert groups[1].wait() == [0], groups[1].said()
    for size in SIZES:
        groups[size] = start(size, *trainings(place, size).values())
        assert groups[size].wait() == [0] * size, groups[size].said()
    return groups


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["plain", "kl", "feature", "stored", "norms"])
def test_all_steps_are_those_of_one_process(place, trained, name, size):
    assert place.last(f"{name}{size}").state["updates"] == STEPS
    assert place.distance(f"{name}1", f"{name}{size}") < 1e-5


def test_masks_are_those_of_one_process(place, trained):
    one, two = (place.last(f"kl{size}").state["sparse"]["masks"] for size in (1, 2))
    assert one.keys() == two.keys() and one
    assert all(one[name].equal(two[name]) for name in one)


def test_all_processes_end_early_together(place, trained):
    """At such a rate no epoch is better than the first one."""
    assert len(place.records("early2")) == 2
    assert trained[2].said().count("--early-stop 1") == 1


def test_compressed_gradients_end_near_those_that_are_not(place, trained):
    assert 1e-7 < place.distance("plain1", "compressed2") < 0.05


def test_only_one_process_speaks_and_counts_all_images(place, trained):
    said, alone = trained[2].said(), trained[1].said()
    assert (alone.count("plain: epoch 2/2"), said.count("plain: epoch 2/2")) == (2, 3)  # and compressed
    assert f"{STEPS // 2} steps of 16 images (4 at once in each of 2 processes), 4 images left over" in said
    assert trained[2].said("out").count("plain2/best.pth: top-1") == 1
    for name in ("plain", "kl"):
        one, two = (place.records(f"{name}{size}") for size in (1, 2))
        for ours, theirs in zip(one, two, strict=True):
            assert theirs["val_images"] == 21  # 3 batches for 2 processes
            assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-5)
            assert theirs["val_loss_nats"] == pytest.approx(ours["val_loss_nats"], rel=1e-5)
            assert theirs["val_top1_percent"] == ours["val_top1_percent"]
