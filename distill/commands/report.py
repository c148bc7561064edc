"""`distill report`: one HTML file that shows a run, or several side by side.

In:  run folders.
Out: RUN/report.html, or the file of --output.
Elsewhere: the page (distill.run.report.page).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from runtime.cli.settings import Flag
from runtime.cli.terminal import loading
from runtime.errors import UsageError

SUMMARY = "show a run, or several side by side, in one HTML file"
DESCRIPTION = """distill train makes RUN/report.html by itself. An existing report is replaced.

examples:
  {prog} runs/student
  {prog} runs/a runs/b --output compared.html
  {prog} runs/student --data photos"""


@dataclass(frozen=True)
class Options:
    """Flags of `distill report`."""

    runs: Annotated[tuple[Path, ...], Flag("RUN", positional=True)]
    """Folders of one or more runs, as distill train --output named them."""
    output: Annotated[Path | None, Flag("FILE.html", aliases=("-o",))] = None
    """File to write; by default report.html in the run's folder, or for several runs in this folder."""
    data: Annotated[str, Flag("DATA")] = ""
    """Validation images; by default those that each run was validated with."""

    device: Annotated[str, Flag("DEVICE")] = "auto"
    """Device for predictions: cpu, cuda, cuda:INDEX; auto: cuda where there is one."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UsageError("no run given. Expected one or more folders of runs")
        if self.output and self.output.suffix not in (".html", ".htm"):
            raise UsageError(f"--output {self.output}: expected a name that ends in .html")
        places = [run.resolve() for run in self.runs]
        twice = next((run for run in self.runs if places.count(run.resolve()) > 1), None)
        if twice:
            raise UsageError(f"{twice}: given twice. Name each run once")


def run(options: Options) -> None:
    """Write the report, and print where it is."""
    with loading("loading torch"):
        from ..run.report import page

    folders = [path.parent if path.name == "best.pth" else path for path in options.runs]
    alone = folders[0] if len(folders) == 1 else Path()
    if odd := next((folder for folder in folders if folder.is_file()), None):
        raise UsageError(f"{odd}: is a file. Expected the folder of a run")
    output = options.output or alone / "report.html"
    with loading("making the report"):
        page.write(folders, output, options.data, device=options.device)
    print(output)
