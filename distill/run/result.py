"""What a run found: result.json, and the lines a person reads at the end.

In:  the best epoch of student and control, the teacher's accuracy, receptive fields.
Out: a `RunResult`: as plain values (`to_dict`) and as sentences (`summary`).
Elsewhere: the epochs one by one (distill.training.records).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from runtime.recorded import SPLIT_LIST, UNREADABLE

from ..erf.field import Squares
from ..erf.report import Measured
from ..teacher import USUAL_CAUSES, Origin
from ..training.selection import NAMES
from .interval import Paired, paired

WRITTEN = (
    "best.pth",
    "last.pth",
    "result.json",
    "summary.csv",
    "metrics.jsonl",
    "report.html",
    SPLIT_LIST,
    UNREADABLE,
    "events.out.tfevents.*",
    "wandb",
    "teacher",
    "control",
    "erf",
)
"""Files and folders of a run that the summary names."""
WORSE_TEACHER = 10.0
"""Points by which a teacher may be below its student before it is said."""


@dataclass(frozen=True)
class RoleResult:
    """The best epoch of one training."""

    checkpoint: str
    """Path of its best.pth."""
    top1_percent: float
    epoch: int
    loss_nats: float
    images: int
    """Validation images."""
    teacher_agreement_percent: float | None
    """Share of the validation images for which it predicts the teacher's class; None without a teacher."""
    unreadable_images: Mapping[str, int] = field(default_factory=dict)
    """By split (train, val): images that could not be read and were left out, each counted once."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else result.json says about it."""
    words: str = ""
    """What else the summary says about it."""
    right: Tensor | None = field(default=None, repr=False, compare=False)
    """(validation images,) bool: where it is right; None where a run of an older version does not say."""
    balanced_percent: float | None = None
    """Balanced accuracy: the mean over the classes; None where a run of an older version does not say."""
    select: str = "top1"
    """What chose this epoch."""
    epochs: int = 0
    """Epochs that were trained."""
    early_end: str = ""
    """Why and when --early-stop ended the training; empty where it did not."""

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        del values["words"], values["right"]
        return values | values.pop("more")

    @property
    def measures(self) -> str:
        """What is said behind top-1: balanced accuracy where it is another number, what chose the epoch."""
        parts = []
        balanced = self.balanced_percent
        if balanced is not None and (self.select == "balanced" or abs(balanced - self.top1_percent) >= 0.005):
            parts.append(f"balanced accuracy {balanced:.2f} %")
        if self.select == "loss":
            parts.append(f"loss {self.loss_nats:.4f}")
        chosen = f", chosen by {NAMES[self.select]}" if self.select != "top1" else ""
        return "".join(f", {part}" for part in parts) + f" after epoch {self.epoch}{chosen} (n={self.images})"


@dataclass(frozen=True)
class TeacherResult:
    """Which teacher it was, and its own accuracy on its own preprocessing."""

    origin: Origin
    top1_percent: float

    def to_dict(self) -> dict[str, Any]:
        return self.origin.to_dict() | {"top1_percent": self.top1_percent}


@dataclass(frozen=True, repr=False)
class RunResult:
    """A student, and beside it what it is to be compared with."""

    run: str
    """The run folder."""
    student: str
    """Architecture."""
    best: RoleResult
    teacher: TeacherResult | None = None
    control: RoleResult | None = None
    erf: Sequence[Measured] = ()
    """Effective receptive fields of teacher, control and student."""
    commonest_percent: float | None = None
    """Top-1 of always naming the commonest class of the validation images; None where it is not known."""
    constant_balanced_percent: float | None = None
    """Balanced accuracy of always naming one class."""

    @property
    def path(self) -> Path:
        """The run folder."""
        return Path(self.run)

    @property
    def checkpoint(self) -> Path:
        """The student after its best epoch."""
        return Path(self.best.checkpoint)

    @property
    def top1(self) -> float:
        """Top-1 of the student on the validation images, percent."""
        return self.best.top1_percent

    @property
    def balanced(self) -> float | None:
        """Balanced accuracy of the student on the same images: the mean over the classes, percent."""
        return self.best.balanced_percent

    @property
    def teacher_top1(self) -> float | None:
        """Top-1 of the teacher on the same images, percent; None without a teacher."""
        return self.teacher.top1_percent if self.teacher else None

    @property
    def control_top1(self) -> float | None:
        """Top-1 of the student trained without the teacher, percent; None without a control."""
        return self.control.top1_percent if self.control else None

    def __fspath__(self) -> str:
        """The run folder, which is taken wherever a checkpoint is expected."""
        return self.run

    def __repr__(self) -> str:
        measured = ("top1", "teacher_top1", "control_top1")
        known = {name: getattr(self, name) for name in measured if getattr(self, name) is not None}
        figures = "".join(f", {name}={value:.2f}" for name, value in known.items())
        return f"RunResult(path={self.run!r}, student={self.student!r}{figures})"

    @property
    def gain_points(self) -> float | None:
        """What the student has over the control, in points of top-1."""
        return self.best.top1_percent - self.control.top1_percent if self.control else None

    @property
    def gain(self) -> Paired | None:
        """The same with its interval, where both were seen on the same images."""
        ours, theirs = self.best.right, self.control.right if self.control else None
        if ours is None or theirs is None or ours.shape != theirs.shape or not len(ours):
            return None
        return paired(ours, theirs)

    def to_dict(self) -> dict[str, Any]:
        """result.json."""
        values: dict[str, Any] = {
            "run": self.run,
            "student": self.student,
            "teacher": self.teacher.to_dict() if self.teacher else None,
            "control": self.control.to_dict() if self.control else None,
            "best": self.best.to_dict(),
        }
        if self.control:
            values["gain_points"] = self.gain_points
            values |= self.gain.to_dict() if self.gain else {}
        if self.erf:
            values["erf"] = [network.to_dict() for network in self.erf]
        return values

    def summary(self) -> str:
        """A few lines for a person."""
        lines = [self._best_line()]
        lines += [f"{name}: {role.early_end}" for name, role in self._roles() if role.early_end]
        if self.control and self.gain_points is not None:
            lines += [
                f"{self.control.checkpoint}: top-1 {self.control.top1_percent:.2f} %"
                f"{self.control.measures}; this is the control, trained the same way without the teacher",
                _gain_sentence(self.gain_points, self.gain),
            ]
        elif self.teacher:
            lines.append(
                "what the teacher added was not measured: --control trains the same student without it"
            )
        if self.commonest_percent is not None and self.has_learned_nothing:
            lines.append(
                f"this is not better than always naming the commonest class ({self.commonest_percent:.2f} %):"
                " give more --epochs, a smaller --batch or another --lr, or start from published weights"
                " (--pretrained, --student-ckpt)"
            )
        if self.teacher and self.teacher.top1_percent < self.best.top1_percent - WORSE_TEACHER:
            lines.append(
                f"the teacher ({self.teacher.top1_percent:.2f} %) is far below its own student:"
                f" {USUAL_CAUSES}"
            )
        if self.best.teacher_agreement_percent is not None:
            beside = self.control.teacher_agreement_percent if self.control else None
            lines.append(
                f"student and teacher predict the same class on {self.best.teacher_agreement_percent:.2f} %"
                " of the validation images"
                + (f"; control and teacher on {beside:.2f} %" if beside is not None else "")
            )
        for network in self.erf:
            lines.append(
                f"receptive field of the {network.label}: {_areas(network, network.result.reference)};"
                f" by the scale-free measure {_areas(network, network.result.scale_free)}"
            )
        if self.erf:
            lines.append(f"figures are in {Path(self.run) / 'erf'}")
        left_out = self.best.unreadable_images
        if any(left_out.values()):
            lines.append(
                f"unreadable images left out: {left_out['train']} for training, {left_out['val']} for"
                f" validation; they are listed in {Path(self.run) / UNREADABLE}"
            )
        lines.append(f"files in {self.run}: {', '.join(self.files())}")
        lines.append(f"next: distill export onnx --int8 {shlex.quote(self.best.checkpoint)}")
        return "\n".join(lines)

    @property
    def has_learned_nothing(self) -> bool:
        """Is the student no better than a constant answer, by top-1 and by balanced accuracy?"""
        if self.commonest_percent is None or self.top1 > self.commonest_percent:
            return False
        balanced, constant = self.best.balanced_percent, self.constant_balanced_percent
        return balanced is None or constant is None or balanced <= constant + 0.005

    def files(self) -> list[str]:
        """What the run folder holds, folders with a slash."""
        found = [path for name in WRITTEN for path in sorted(self.path.glob(name))]
        return [f"{path.name}/" if path.is_dir() else path.name for path in found]

    def _roles(self) -> list[tuple[str, RoleResult]]:
        return [("student", self.best), *([("control", self.control)] if self.control else [])]

    def _best_line(self) -> str:
        best = self.best
        line = f"{best.checkpoint}: top-1 {best.top1_percent:.2f} %{best.measures}"
        teacher = f"; the teacher has {self.teacher.top1_percent:.2f} %" if self.teacher else ""
        return line + best.words + teacher


def _gain_sentence(points: float, gain: Paired | None) -> str:
    """What the teacher was good for, with the caveat that one run cannot show more."""
    if abs(points) < 0.005:
        found = "the student is as accurate with the teacher as without it"
    else:
        found = (
            f"the student is {abs(points):.2f} points {'more' if points > 0 else 'less'} accurate with the"
            " teacher than without it"
        )
    if gain is None:
        return f"{found} (measured with one seed)"
    told = "" if gain.is_clear else ", so this cannot tell whether the teacher helps"
    return (
        f"{found}; 95 % interval {gain.low:+.2f} to {gain.high:+.2f} points (n={gain.images}, one seed){told}"
    )


def _areas(network: Measured, squares: Squares) -> str:
    """`20 % of the score is in 1.2 % of the image, 30 % in 2.1 %` and so on."""
    within = ["more than was tried" if ratio is None else f"{100 * ratio:.1f} %" for ratio in squares.ratios]
    shares = [f"{100 * share:g} %" for share in network.result.thresholds]
    first = f"{shares[0]} of the score is in {within[0]} of the image"
    return ", ".join([first, *(f"{a} in {b}" for a, b in zip(shares[1:], within[1:], strict=True))])
