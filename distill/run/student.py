"""The student of a run: which network it is, and what a stopped run kept of it.

In:  a run's options and its folder.
Out: the options with every name settled, and the student's `Start`; RUN/start.pth.
Elsewhere: architecture, preprocessing and weights, and the network that is built of them
(distill.training.parts).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from runtime.cli.terminal import loading
from runtime.errors import UsageError
from runtime.recorded import START

from .. import checkpoint as checkpoints
from ..models import names
from ..training.parts import open_start
from ..training.task import Start
from .options import TrainOptions


def opened(options: TrainOptions, folder: Path, kept: Path | None = None) -> tuple[TrainOptions, Start]:
    """The options with the names of student and teacher as they are kept, and the student. kept: a
    checkpoint in place of its name; by default what a stopped run kept in `folder`. Raises UsageError for
    fresh weights of which a part is to be frozen.
    """
    options = replace(options, student=_settled(options.student), teacher=_settled(options.teacher))
    kept = kept or kept_of(folder, folder, options, options.student)
    with loading("opening the student"):
        start = open_start(options, kept)
    begins = options.student_ckpt or options.pretrained or names.says_weights(start.name)
    if (options.freeze or options.freeze_norms) and not begins:
        what = f"--freeze {options.freeze}" if options.freeze else "--freeze-norms (recipe finetune sets it)"
        raise UsageError(
            f"{what}: the student starts from fresh weights, of which nothing is worth keeping. Give"
            " --student-ckpt FILE or --pretrained, or leave it out"
        )
    if _all_saved(folder, options) and not options.student_ckpt:
        start = replace(start, read=lambda: None)  # last.pth has them: nothing is fetched
    return replace(options, student=start.name), start


def _all_saved(folder: Path, options: TrainOptions) -> bool:
    """Whether every training of a run that is resumed has weights of its own already."""
    places = [folder, *([folder / "control"] if options.control else [])]
    return bool(options.resume) and all((place / "last.pth").is_file() for place in places)


def _settled(name: str) -> str:
    return name if name in ("auto", "none") else names.canonical(name)


def kept_of(place: Path, run: Path, options: TrainOptions, name: str) -> Path | None:
    """What a run that is resumed kept in `place` of a network from a hub or a folder; None where nothing is
    resumed, and for other networks. Raises UsageError where it kept nothing: a name in args.yaml is not
    followed.
    """
    if not (options.resume and names.is_remote(name) and (run / "args.yaml").is_file()):
        return None
    if not (place / START).is_file():
        raise UsageError(
            f"{run}: keeps no weights of {name} ({place / START}), and what a run folder names is not"
            " fetched. Start another run: --output OTHER"
        )
    return place / START


def keep(start: Start, folder: Path) -> None:
    """Write RUN/start.pth where the weights came from a hub or a folder."""
    if names.is_remote(start.name) and start.checkpoint is not None and not (folder / START).is_file():
        checkpoints.save(start.checkpoint, folder / START)
