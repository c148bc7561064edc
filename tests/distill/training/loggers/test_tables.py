"""summary.csv and metrics.jsonl."""

import csv
import json

from distill.training.loggers.base import Run
from distill.training.loggers.tables import Tables


def rows_of(folder):
    with open(folder / "summary.csv", newline="") as file:
        table = list(csv.DictReader(file))
    return table, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_leaves_no_line_twice(tmp_path):
    first = Tables()
    first.begin(Run("a", tmp_path, {}, [], 0))
    assert not (tmp_path / "metrics.jsonl").exists()
    for epoch in (1, 2):
        first.scalars(epoch, {"epoch": epoch, "loss": 1 / epoch})
    second = Tables()
    second.begin(Run("a", tmp_path, {}, [{"epoch": 1, "loss": 1.0}], 1))
    second.scalars(2, {"epoch": 2, "loss": 0.25})
    table, lines = rows_of(tmp_path)
    assert lines == [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.25}]
    assert table == [{"epoch": "1", "loss": "1.0"}, {"epoch": "2", "loss": "0.25"}]


def test_a_column_that_an_earlier_version_did_not_have_is_empty_there(tmp_path):
    tables = Tables()
    tables.begin(Run("a", tmp_path, {}, [{"epoch": 1}], 1))
    tables.scalars(2, {"epoch": 2, "new": 3, "classes": {"ant": 1}})
    assert rows_of(tmp_path)[1][1]["classes"] == {"ant": 1}
    assert rows_of(tmp_path)[0] == [{"epoch": "1", "new": ""}, {"epoch": "2", "new": "3"}]
