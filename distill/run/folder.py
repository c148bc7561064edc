"""The run folder: where a training writes, what may be replaced, and what can be resumed.

In:  a `TrainOptions`.
Out: RUN, or UsageError before anything is read or written; paths that do not depend on the current folder.
Elsewhere: what is in the folder (distill.training.records, distill.training.state, distill.checkpoint).
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from runtime import files
from runtime.cli.terminal import say
from runtime.errors import Large2SmallError, UsageError
from runtime.recorded import HEADER, LOGGER_IDS, SPLIT_LIST, START, UNREADABLE

from .. import recipe as recipes
from ..processes import world
from .options import AnyOptions, TrainOptions, run_folder

PICTURED = ("report.html", "val_predictions.npz")
"""What a report leaves in the run folder."""
WEIGHTS = ("last.pth", "best.pth")
WRITTEN = (
    *WEIGHTS,
    *("summary.csv", "metrics.jsonl", "result.json", HEADER),
    *(SPLIT_LIST, LOGGER_IDS, UNREADABLE, START),
    *PICTURED,
)
"""Files of a training, in RUN and in RUN/control."""
MADE = ("erf", "teacher")
"""Folders that a run makes in RUN, besides its control."""


def choose_folder(options: TrainOptions) -> Path:
    """RUN: the one to resume, or a new one. Raises UsageError where it cannot be resumed, holds another run,
    or holds the weights that this run starts from.
    """
    return _resumed(options) if options.resume else _new(options)


def shared_out(options: TrainOptions, folder: Path, processes: int) -> TrainOptions:
    """The options for so many processes: the rate that follows the batch follows that of all of them, and a
    resumed run keeps the images of its steps, however many processes shared them. Raises UsageError where
    these cannot be shared evenly.
    """
    if options.resume and (folder / "args.yaml").is_file():
        begun = recipes.read(str(folder / "args.yaml"))
        images = images_at_once(folder)
        if images and options.batch == begun.get("batch"):  # --batch is not given anew
            if images % processes:
                raise UsageError(
                    f"{folder}: the run has {images} images in a batch, which {processes} processes cannot"
                    " share evenly. Start another number of processes"
                )
            options = replace(options, batch=images // processes)
    if processes > 1 and options.lr is None:
        return replace(options, lr=options.peak_lr * processes)
    return options


def with_batch_of_run(options: AnyOptions) -> AnyOptions:
    """The options with the batch of the run to continue, for --resume auto: the same words begin a run and
    continue it, with another number of processes, too. A batch that no number of processes makes that of the
    run stays, to be refused.
    """
    if not options.resume:
        return options
    folder = run_folder(options.resume)
    images = images_at_once(folder)
    begun = recipes.read(str(folder / "args.yaml")).get("batch")
    if not isinstance(begun, int) or not images or images % options.batch:
        return options
    if options.batch * world.announced() != images:
        say(
            f"--resume auto: a batch has {images} images in all processes, as the run began; --batch"
            f" {options.batch} is for {images // options.batch} of them"
        )
    return replace(options, batch=begun)


def images_at_once(folder: Path) -> int:
    """How many images all processes together have in a batch of the run in `folder`; 0 where its files do not
    say.
    """
    try:
        header = files.from_json(files.read_small(folder / HEADER), HEADER)
        images, batches = header["batch"], recipes.read(str(folder / "args.yaml")).get("grad_accum", 1)
        return int(images) // int(batches)  # of a step, which no number of processes changes
    except (OSError, Large2SmallError, LookupError, TypeError, ValueError, ArithmeticError):
        return 0


def _resumed(options: TrainOptions) -> Path:
    folder = run_folder(options.resume)
    is_new = not (
        Path(options.resume).is_file() or options.resume.endswith(".pth") or any(folder.glob("*.pth"))
    )
    if not (folder / "args.yaml").is_file() and not (
        options.data and is_new
    ):  # a script may always say --resume
        raise UsageError(
            f"{options.resume}: is not a run that can be resumed (it has no args.yaml). Give the folder that"
            " --output named; to start from weights give --student-ckpt, or --qat --resume FILE to train"
            " them as int8"
        )
    for place in (folder, folder / "control"):
        files.remove_leftovers(place)
        if (place / "metrics.jsonl").exists() and not (place / "last.pth").exists():
            raise UsageError(
                f"{place / 'last.pth'} is gone, so the run cannot go on bit for bit. Put it back, or"
                f" start another run from its best weights: --student-ckpt {place / 'best.pth'} --output"
                " OTHER"
            )
    return folder


def _new(options: TrainOptions) -> Path:
    if not options.data:
        raise UsageError(
            "no data given. Expected --data DIR (with train/ and val/), npz:FILE, digits or torch/NAME:DIR"
        )
    folder = Path(options.output or f"runs/{_name(options)}")
    require_free(options, folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file. Choose another --output")
    for flag in ("teacher_ckpt", "student_ckpt", "teacher", "student"):
        given = getattr(options, flag)
        kind, _, place = given.partition(":")
        path = place if kind.lower() == "local-dir" else given if flag.endswith("ckpt") else ""
        if path and _is_replaced(Path(path).resolve(), folder.resolve(), options.overwrite):
            raise UsageError(
                f"--{flag.replace('_', '-')} {given} would be overwritten by this run. Choose another"
                " --output"
            )
    return folder


def require_free(options: TrainOptions, folder: Path) -> None:
    """Raise UsageError where a new run would be written over another."""
    if (folder / "args.yaml").exists() and not options.overwrite and not options.resume:
        raise UsageError(
            f"{folder} holds a run already. Continue it: --resume {folder}; replace it: --overwrite; "
            "or choose another --output"
        )


def _is_replaced(path: Path, folder: Path, overwrite: bool) -> bool:
    """Whether a run in `folder` would write or remove `path`; a folder of weights is not to be RUN itself."""
    trainings = (folder, folder / "control")
    if path in trainings or any(path == place / name for place in trainings for name in WEIGHTS):
        return True
    return overwrite and (
        any(path == place / name for place in trainings for name in WRITTEN)
        or any(path.is_relative_to(folder / name) for name in MADE)
    )


def _name(options: TrainOptions) -> str:
    """What a run is called that has no --output: its student, or the file that says which it is. Raises
    UsageError where that is not the name of a folder.
    """
    from ..models import names  # here: they import timm, which `distill train --help` does not need
    from ..training.parts import DEFAULT

    kind, _, place = names.canonical(options.student).partition(":")
    if options.student == "auto":
        name = Path(options.student_ckpt).stem if options.student_ckpt else DEFAULT
    elif kind == "local-dir":
        name = Path(place).name
    else:
        name = (place or kind).partition("@")[0].rpartition("/")[2]  # of OWNER/NAME@REVISION
    if name in ("", ".", ".."):
        raise UsageError(f"--student {options.student} does not give the run a name. Give one: --output DIR")
    return name


def remove_old_run(folder: Path) -> None:
    """Remove what a run wrote, for --overwrite; other files stay."""
    for place in (folder, folder / "control"):
        for name in WRITTEN:
            (place / name).unlink(missing_ok=True)
        for events in place.glob("events.out.tfevents.*"):  # TensorBoard would draw both runs as one
            events.unlink()
        shutil.rmtree(place / "wandb", ignore_errors=True)
    for name in MADE:
        shutil.rmtree(folder / name, ignore_errors=True)


def with_files(options: TrainOptions) -> TrainOptions:
    """The options with absolute paths."""
    return replace(
        options,
        data=absolute(options.data),
        val_data=absolute(options.val_data),
        teacher_ckpt=absolute(options.teacher_ckpt),
        student_ckpt=absolute(options.student_ckpt),
        teacher_labels=absolute(options.teacher_labels),
    )


def absolute(spec: str) -> str:
    """Paths made absolute, so that a resumed run, eval and export find the files from another folder."""
    if not spec or spec == "digits":
        return spec
    if Path(spec).exists():
        return str(Path(spec).absolute())
    kind, _, path = spec.partition(":")  # npz:FILE, csv:FILE, torch/NAME:DIR
    return (
        f"{kind}:{Path(path).absolute()}"
        if path and (kind in ("npz", "csv") or Path(path).exists())
        else spec
    )
