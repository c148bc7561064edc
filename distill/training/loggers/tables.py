"""The run's own tables: summary.csv and metrics.jsonl in the run folder, a line for each epoch.

In:  the figures of an epoch.
Out: both files, whole at any moment; a resumed run leaves no line twice.
Elsewhere: which figures (distill.training.records).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime import files

from .base import Outcome, Run


class Tables:
    """A `Logger` that every training has."""

    name = "tables"

    def __init__(self) -> None:
        self.folder, self.rows = Path(), list[Mapping[str, Any]]()

    def begin(self, run: Run) -> str:
        self.folder, self.rows = run.folder, list(run.rows)
        write(self.folder, self.rows)
        return ""

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        self.rows.append(values)
        write(self.folder, self.rows)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Tables hold no pictures."""

    def end(self, outcome: Outcome) -> None:
        """Everything is written."""


def write(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Both files from all rows, mappings only in metrics.jsonl; nothing before the first epoch."""
    if not rows:
        return
    columns = list(
        dict.fromkeys(column for row in rows for column in row if not isinstance(row[column], Mapping))
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(folder / "summary.csv", text.getvalue())
    files.write_text(folder / "metrics.jsonl", "".join(files.json_text(row) + "\n" for row in rows))
