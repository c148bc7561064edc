"""What the environment says of several processes, and which images are whose."""

import pytest

from distill import __main__ as cli
from distill.processes import world
from distill.processes.together import share_of
from runtime.errors import UsageError

GOOD = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def announced(monkeypatch, **changed):
    for name, value in (GOOD | changed).items():
        monkeypatch.setenv(name, value)
    return world.announced()


def test_torchrun_says_how_many_there_are(monkeypatch):
    assert announced(monkeypatch) == 2
    assert announced(monkeypatch, WORLD_SIZE="1", RANK="0", LOCAL_RANK="0") == 1


@pytest.mark.parametrize(
    "changed",
    [{"RANK": "2"}, {"RANK": "-1"}, {"RANK": "one"}, {"WORLD_SIZE": "0"}, {"MASTER_PORT": "?"}],
    ids=str,
)
def test_numbers_that_do_not_go_together_are_refused(monkeypatch, changed):
    with pytest.raises(UsageError, match="Start with torchrun"):
        announced(monkeypatch, **changed)


@pytest.mark.parametrize("images", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_place_of_a_batch_is_that_of_one_process(images, size):
    shares = [share_of(images, rank, size) for rank in range(size)]
    assert sorted(place for share in shares for place in share) == list(range(images * size))


@pytest.mark.parametrize("size", [2, 3, 8])
def test_images_that_are_mixed_with_each_other_are_in_the_same_process(size):
    """Mixing pairs the first with the last: place i of all with n - 1 - i, in a share as well."""
    for rank in range(size):
        mine = share_of(6, rank, size)
        assert [6 * size - 1 - place for place in mine] == list(reversed(mine))


@pytest.mark.parametrize(
    "words",
    [
        ["attack", "best.pth", "--data", "digits", "--output", "x.npz"],
        ["parity", "best.pth", "best.onnx", "--data", "digits"],
        ["export", "onnx", "best.pth"],
        ["bench", "latency", "--engine", "x.onnx"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_commands_that_do_not_share_their_work_are_refused(monkeypatch, capsys, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith("error: WORLD_SIZE=2: ") and said.count("\n") == 1 and "works in one process" in said
    )
    monkeypatch.setenv("LOCAL_RANK", "1")  # the first process of the machine has said it
    assert cli.main(words) == 2
    assert capsys.readouterr().err == ""
