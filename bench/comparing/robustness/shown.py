"""The table of robustness for a person.

In:  a `Report`.
Out: rich tables with their conditions below.
Elsewhere: the figures (bench.comparing.robustness.figures), the flags (bench.commands.robustness).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ... import report
from ...accuracy import NAMED
from ...subject import Description
from .figures import Percent, Robustness
from .views import Asked


@dataclass(frozen=True, eq=False)
class Report:
    """What the command found."""

    subjects: list[Description]
    """The one that all are measured against first."""
    found: list[Robustness]
    asked: Asked
    data: str
    split: str
    skipped: list[str]
    fingerprint: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "data": self.data,
            "split": self.split,
            "n": self.found[0].images,
            "skipped": len(self.skipped),
            "skipped_images": self.skipped[:NAMED],
            "relative_to": self.subjects[0].file,
            "asked": asdict(self.asked) | {"grid": self.asked.grid},
            "artifacts": [
                subject.to_dict() | found.to_dict()
                for subject, found in zip(self.subjects, self.found, strict=True)
            ],
            "fingerprint": self.fingerprint,
        }


def tables(found: Report) -> Any:
    """A row per artifact; below, where corruptions were asked for, a row per corruption."""
    names = report.short_names([subject.file for subject in found.subjects])
    made = [_summary(names, found.found)]
    if found.found[0].corruptions:
        made.append(_corruptions(names, found.found))
    return report.with_notes(made, _notes(names, found))


def _summary(names: Sequence[str], found: Sequence[Robustness]) -> Any:
    columns: dict[str, Callable[[Robustness], str]] = {
        "clean\nerror %": lambda each: report.number(each.clean_error.percent),
        "corrupted\nerror %": lambda each: _value(each.mean_error),
        "mCE\n%": lambda each: _value(each.mce),
        "relative\nmCE %": lambda each: report.number(each.relative_mce_percent),
        "occlusion\narea %": lambda each: _area(each, "occlusion"),
        "shuffle\narea %": lambda each: _area(each, "shuffle"),
        "steady,\nshifts %": lambda each: _steady(each, "shifts"),
        "steady,\ncrops %": lambda each: _steady(each, "crops"),
    }
    made = report.table(f"robustness, n={found[0].images}", left=["artifact"], right=list(columns))
    for name, each in zip(names, found, strict=True):
        made.add_row(report.plain_text(name), *(cell(each) for cell in columns.values()))
    return made


def _value(figure: Percent | None) -> str:
    return report.number(figure.percent if figure else None)


def _area(found: Robustness, part: str) -> str:
    return _value(found.curves[part].area) if part in found.curves else report.UNKNOWN


def _steady(found: Robustness, part: str) -> str:
    return report.number(found.steady[part].mean) if part in found.steady else report.UNKNOWN


def _corruptions(names: Sequence[str], found: Sequence[Robustness]) -> Any:
    numbers = [f"[{place}]" for place in range(1, len(names) + 1)]
    made = report.table("error %, mean over the severities (CE %)", left=["corruption"], right=numbers)
    for name in found[0].corruptions:
        each = [one.corruptions[name] for one in found]
        made.add_row(
            name.replace("_", " "),
            *(f"{report.number(c.mean_error_percent, 1)} ({report.number(c.ce_percent, 0)})" for c in each),
        )
    return made


def _notes(names: Sequence[str], found: Report) -> list[str]:
    lines = []
    if found.found[0].corruptions:
        lines.append(", ".join(f"[{place}] {name}" for place, name in enumerate(names, 1)))
        lines.append(
            f"severities {', '.join(map(str, found.asked.severities))} with the constants of"
            f" {'CIFAR-10-C' if found.asked.constants == 'cifar' else 'ImageNet-C'}; CE, mCE: error / that of"
            f" {names[0]}; mCE over {len(found.asked.corruptions)} corruptions, so not comparable with"
            " published ones over 15"
        )
    lines += [line for name, each in zip(names, found.found, strict=True) for line in _intervals(name, each)]
    if found.skipped:
        lines.append(f"{len(found.skipped)} unreadable images left out")
    ran = dict.fromkeys(subject.ran_on for subject in found.subjects)
    return [*lines, f"{found.data}; {'; '.join(ran)}", report.machine(found.fingerprint)]


def _intervals(name: str, found: Robustness) -> list[str]:
    """The 95 % intervals of one artifact on one line."""
    known = [
        ("clean error", found.clean_error, "%"),
        ("corrupted error", found.mean_error, "%"),
        ("difference", found.mean_error_difference, "points"),
        ("mCE", found.mce, "%"),
        *((f"{part} area", curve.area, "%") for part, curve in found.curves.items()),
    ]
    said = [f"{what} {each.low:.2f} to {each.high:.2f} {unit}" for what, each, unit in known if each]
    return [f"95 % intervals, {name}: {'; '.join(said)}"]
