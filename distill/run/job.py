"""The command `distill train`: from flags to a run folder with a student, and a control if asked.

In:  a `TrainOptions`.
Out: RUN/ (student), RUN/control/ (the same without the teacher), RUN/result.json, RUN/report.html.
Elsewhere: the training itself (distill.training.trainer), its images (distill.run.splits), the run folder
(distill.run.folder), the sentences at the end (distill.run.result).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from runtime import files
from runtime.errors import UsageError
from runtime.images import ImageSet

from .. import recipe as recipes
from .. import teacher as teachers
from ..data import eval_loader
from ..erf import field, report
from ..erf.options import ErfOptions
from ..evaluate import Evaluation, evaluate, pick_device
from ..recipe import Recipe
from ..training import trainer as trainers
from ..training.task import Splits, Task, lineage_of
from .folder import absolute, remove_old_run
from .options import TrainOptions
from .report import page
from .result import RoleResult, RunResult, TeacherResult
from .splits import open_splits
from .student import student_preprocess

ERF_IMAGES = 50
"""Validation images that --erf averages over, as in the papers."""


@dataclass(frozen=True)
class Job:
    """A run, ready to start: nothing of it is written yet."""

    options: TrainOptions
    """With absolute paths."""
    folder: Path
    data: Splits
    teacher: TeacherResult | None
    tasks: tuple[Task, ...]
    """The student's training, then the control's if asked."""
    make_trainer: Callable[[Task], trainers.Trainer]


def run(
    options: TrainOptions, folder: Path, make_trainer: Callable[[Task], trainers.Trainer] | None = None
) -> RunResult:
    """Train and save. folder: RUN, from `distill.run.folder.choose_folder`; make_trainer:
    what trains, by default `Trainer`.
    """
    job = prepare(options, folder, make_trainer or trainers.Trainer)
    return finish(job, [train_role(job, task) for task in job.tasks])


def prepare(options: TrainOptions, folder: Path, make_trainer: Callable[[Task], trainers.Trainer]) -> Job:
    """Check and read everything that the run needs; show the teacher's own accuracy."""
    options = replace(
        options,
        data=absolute(options.data),
        val_data=absolute(options.val_data),
        teacher_ckpt=absolute(options.teacher_ckpt),
        student_ckpt=absolute(options.student_ckpt),
    )
    device = pick_device(options.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what runs in fp32
    data = open_splits(options, folder, bool(options.resume))
    preprocess = student_preprocess(options)
    teacher = teachers.load(options, data.train.class_names, preprocess, device)
    if options.control and not teacher:
        raise UsageError(
            "--control trains the student once more without its teacher, and there is no teacher here. "
            "Give --teacher-ckpt, or leave --control out"
        )
    if options.erf:  # streamed images cannot be drawn from: said now, not after the training
        field.choose(data.val, ERF_IMAGES, options.seed)
    accuracy = _teacher_accuracy(teacher, data.val, options, device) if teacher else None
    recipe = recipe_of(options)
    student = Task(
        role="student" if teacher else "plain",
        recipe=recipe,
        folder=folder,
        train=data.train,
        val=data.val,
        preprocess=preprocess,
        device=device,
        teacher=teacher,
        lineage=lineage_of(recipe, data, teacher),
        teacher_classes=accuracy.classes if accuracy else None,
    )
    return Job(
        options=options,
        folder=folder,
        data=data,
        teacher=TeacherResult(teacher.origin, accuracy.top1) if teacher and accuracy else None,
        tasks=(student, control_of(student)) if options.control else (student,),
        make_trainer=make_trainer,
    )


def control_of(student: Task) -> Task:
    """The same training without the teacher, into RUN/control."""
    recipe = replace(student.recipe, teacher="none", teacher_ckpt="")
    return replace(
        student,
        role="control",
        recipe=recipe,
        folder=student.folder / "control",
        teacher=None,
        lineage=student.lineage | {"teacher": None, "recipe": recipes.to_dict(recipe)},
    )


def train_role(job: Job, task: Task) -> RoleResult:
    """Train one student to its last epoch, from the beginning or from its last.pth."""
    trainer = job.make_trainer(task)
    for note in trainer.notes:
        say(note)
    if job.options.resume:
        _resume(trainer)
    if task is job.tasks[0]:
        _begin(job)  # not earlier: a refused resume leaves the run as it was, a refused setting no run at all
    best = trainer.fit()
    details = trainer.details()
    return RoleResult(
        checkpoint=str(task.folder / "best.pth"),
        top1_percent=best.val_top1_percent,
        epoch=best.epoch,
        loss_nats=best.val_loss_nats,
        images=best.val_images,
        teacher_agreement_percent=best.val_teacher_agreement_percent,
        more=details.values,
        words=details.words,
    )


def finish(job: Job, results: Sequence[RoleResult]) -> RunResult:
    """Write result.json, and with --erf once more with the receptive fields of all networks."""
    result = RunResult(
        run=str(job.folder),
        student=job.options.student,
        best=results[0],
        teacher=job.teacher,
        control=results[1] if len(results) > 1 else None,
    )
    _write_result(job.folder, result)
    if job.options.erf:
        result = replace(result, erf=_measure_erf(job, result))
        _write_result(job.folder, result)
    if job.options.report:
        page.after_training(job.folder, job.data.val, job.options.device)
    return result


def recipe_of(options: TrainOptions) -> Recipe:
    """The options without what is not the training's own."""
    return Recipe(**{each.name: getattr(options, each.name) for each in fields(Recipe)})


def say(line: str) -> None:
    """One line on stderr."""
    print(line, file=sys.stderr, flush=True)


def _teacher_accuracy(
    teacher: teachers.Teacher, val: ImageSet, options: TrainOptions, device: torch.device
) -> Evaluation:
    """The teacher's own accuracy on its own preprocessing: shows a wrong file or normalization before any
    training.
    """
    origin = teacher.origin
    say(f"teacher: {origin.model} from {origin.file or 'published weights'} in {origin.dtype}")
    for note in [*(origin.converted or []), origin.merged]:
        say(f"teacher: {note}")
    # not teacher.forward: one that is compiled now may miss the hooks that a feature loss adds later
    accuracy = evaluate(
        teacher.model,
        eval_loader(val, teacher.preprocess, options.eval_batch, options.workers, device),
        device,
        amp_dtype=teacher.dtype,
        channels_last=options.channels_last,
        skip_bad=options.skip_bad_images,
    )
    say(f"teacher: top-1 {accuracy.top1:.2f} % on {len(val) or 'the'} validation images")
    return accuracy


def _resume(trainer: trainers.Trainer) -> None:
    role, last = trainer.task.role, trainer.task.folder / "last.pth"
    if not last.is_file():
        say(f"{role}: nothing was saved yet, so it starts from the beginning")
        return
    trainer.resume(last)
    if trainer.epoch < trainer.recipe.epochs:
        say(f"{role}: resumed at epoch {trainer.epoch + 1}, step {trainer.updates}")
    else:
        say(f"{role}: already finished")


def _begin(job: Job) -> None:
    """The first thing that is written: args.yaml, in place of an old run if asked."""
    options = job.options
    if options.overwrite and not options.resume:
        remove_old_run(job.folder)
    for name, text in job.data.lists.items():
        files.write_text(job.folder / name, text)
    args = recipes.to_yaml(recipe_of(options)) + recipes.yaml_lines(options.beside_recipe())
    files.write_text(job.folder / "args.yaml", args)


def _write_result(folder: Path, result: RunResult) -> None:
    files.write_text(folder / "result.json", json.dumps(result.to_dict(), indent=2) + "\n")


def _measure_erf(job: Job, result: RunResult) -> list[report.Measured]:
    """Effective receptive fields of the networks of this run on the same images; also a line in
    metrics.jsonl.
    """
    options, teacher = job.options, job.teacher
    networks = [(job.tasks[0].role, result.best.checkpoint, "auto")]
    if result.control:
        networks.insert(0, ("control", result.control.checkpoint, "auto"))
    if teacher and teacher.origin.file:
        networks.insert(0, ("teacher", teacher.origin.file, teacher.origin.model))
    labels, paths, names = zip(*networks, strict=True)
    measured, _ = report.measure_and_write(
        ErfOptions(
            checkpoints=paths,
            labels=labels,
            model=names,
            model_args=options.teacher_args,
            data=job.data.val_spec,
            num_images=ERF_IMAGES,
            num_classes=options.num_classes,
            seed=options.seed,
            device=options.device,
            output=job.folder / "erf",
            overwrite=True,
            skip_bad_images=options.skip_bad_images,
        )
    )
    records = (job.folder / "metrics.jsonl").read_text(encoding="utf-8")
    line = json.dumps({"erf": [network.to_dict() for network in measured]})
    files.write_text(job.folder / "metrics.jsonl", records + line + "\n")
    return measured
