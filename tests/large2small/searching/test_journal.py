"""A journal that is read again says what was written; anything else is refused."""

import json

import pytest

from large2small.searching.journal import Exported, Failed, Labeled, Timed, Trained, opened
from runtime import ArtifactError, UsageError

SETTINGS = {"training": "distill train --data digits", "engine": "fp32"}
STEPS = {
    "time a @32": Timed(4.0, 1.25, 1.2, None),
    "train a @32, 3 epochs": Trained(60.5, 71.25, 500, 3),
    "labels 32, 3 epochs": Labeled(10.0, 3),
    "export a @32, 3 epochs": Exported(5.5, None),
    "time b @32": Failed(2.0, "b cannot be built"),
}


@pytest.fixture
def folder(tmp_path):
    journal = opened(tmp_path / "s", SETTINGS)
    for key, step in STEPS.items():
        journal.keep(key, step)
    return tmp_path / "s"


def test_the_file_is_the_one_written_by_hand(folder):
    written = json.loads((folder / "journal.json").read_text())
    assert written["large2small_search"] == 1 and written["settings"] == SETTINGS
    assert written["steps"]["train a @32, 3 epochs"] == {
        "kind": "trained",
        "seconds": 60.5,
        "top1_percent": 71.25,
        "images": 500,
        "epochs": 3,
    }
    assert written["steps"]["time b @32"] == {"kind": "failed", "seconds": 2.0, "reason": "b cannot be built"}


def test_what_is_read_again_is_what_was_kept(folder):
    journal = opened(folder, SETTINGS)
    assert journal.steps == STEPS and journal.seconds == 4.0 + 60.5 + 10.0 + 5.5 + 2.0
    assert journal.find("time a @32", Timed) == STEPS["time a @32"]
    assert journal.find("time b @32", Timed) is None and journal.find("time c @32", Timed) is None
    journal.forget_failures()
    assert set(STEPS) - set(journal.steps) == {"time b @32"}


def test_other_settings_are_refused_by_name(folder):
    with pytest.raises(UsageError, match=r"another engine \(fp32; here int8\)"):
        opened(folder, SETTINGS | {"engine": "int8"})


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not a search"):
        opened(tmp_path, SETTINGS)
    with pytest.raises(UsageError, match="not a search"):
        opened(tmp_path / "thesis.tex", SETTINGS)


def damaged(values):
    yield []
    yield {"steps": {}}
    yield values | {"large2small_search": 2}
    for key in values["steps"]:
        for name in values["steps"][key]:
            for wrong in ([], -1, "x" if name not in ("reason",) else 7, True, 1e300):
                yield values | {"steps": {key: values["steps"][key] | {name: wrong}}}


def test_a_damaged_journal_is_refused_in_one_line(folder):
    path = folder / "journal.json"
    for values in damaged(json.loads(path.read_text())):
        path.write_text(json.dumps(values))
        with pytest.raises(ArtifactError, match=r"journal\.json: ") as caught:
            opened(folder, SETTINGS)
        assert "\n" not in str(caught.value)
    path.write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        opened(folder, SETTINGS)
