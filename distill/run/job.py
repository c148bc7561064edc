"""The command `distill train`: from flags to a run folder with a student, and a control if asked.

In:  a `TrainOptions`.
Out: RUN/ (student), RUN/control/ (the same without the teacher), RUN/result.json, RUN/report.html.
Elsewhere: the training itself (distill.training.trainer), its images (distill.run.splits), the run folder
(distill.run.folder), the sentences at the end (distill.run.result).
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from runtime import files
from runtime.cli.terminal import loading, progress_bar, say
from runtime.errors import ArtifactError, UsageError
from runtime.images import ImageSet
from runtime.recorded import HEADER

from .. import checkpoint as checkpoints
from .. import models
from .. import recipe as recipes
from .. import teacher as teachers
from ..data import balance, eval_loader
from ..data.cached import cached
from ..data.labels.store import Labels
from ..erf import field, report
from ..erf.options import ErfOptions
from ..evaluate import Evaluation, evaluate, pick_device
from ..models import names
from ..processes import together
from ..recipe import Recipe
from ..training import loggers
from ..training import trainer as trainers
from ..training.freezing import freeze
from ..training.loggers import pictures
from ..training.numbers import diagnosis
from ..training.parts import LayerRates, layer_rates
from ..training.task import Splits, Start, Task, lineage_of
from . import teacher_fit, trial
from .folder import remove_old_run, require_free, shared_out, with_files
from .header import Header, header_of
from .labels import open_labels
from .options import TrainOptions
from .report import gallery, page, predictions
from .report.collect import read_run
from .result import RoleResult, RunResult, TeacherResult
from .splits import open_splits
from .student import keep, kept_of, opened

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
    header: Header
    kept_teacher: teachers.Source | None = None
    """A teacher that was fitted to the data, or came from a hub or a folder: it is kept in the run folder."""


def run(
    options: TrainOptions, folder: Path, make_trainer: Callable[[Task], trainers.Trainer] | None = None
) -> RunResult:
    """Train and save. folder: RUN, from `distill.run.folder.choose_folder`; make_trainer:
    what trains, by default `Trainer`.
    """
    with _alone(options, folder):
        job = prepare(options, folder, make_trainer or trainers.Trainer)
        return finish(job, [train_role(job, task) for task in job.tasks])


@contextlib.contextmanager
def _alone(options: TrainOptions, folder: Path) -> Iterator[None]:
    """Hold the run's folder; of several processes of one run the first does so for all."""
    with contextlib.ExitStack() as held:
        with together.agreed():
            if together.is_main():
                held.enter_context(files.only_one(folder, "is training"))
                require_free(options, folder)  # once more: another process may have been faster
        yield


def prepare(
    options: TrainOptions,
    folder: Path,
    make_trainer: Callable[[Task], trainers.Trainer],
    kept: Path | None = None,
) -> Job:
    """Check and read everything that the run needs; show the teacher's own accuracy. kept: a checkpoint of
    the student, in place of its name.
    """
    with loading("opening the loggers"):
        loggers.require(options.tensorboard, options.services)
    basis = _basis(options, folder, kept)
    return _job(basis, _taught(basis), make_trainer)


@dataclass(frozen=True, eq=False)
class _Basis:
    """What there is before the teacher."""

    options: TrainOptions
    data: Splits
    tried: Tried
    plain: Task
    """The training without a teacher."""


def _basis(options: TrainOptions, folder: Path, kept: Path | None) -> _Basis:
    options = shared_out(with_files(options), folder, together.size())
    options, start = opened(options, folder, kept)
    device = pick_device(options.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what runs in fp32
    with loading(f"looking for the images of {options.data}"):
        data = open_splits(options, folder, bool(options.resume))
    options = with_balance(options, data.train)
    for line in start.assumed:
        say(f"student: {line}")
    tried = try_student(options, start, len(data.train.class_names))
    recipe = recipe_of(options)
    train = cached(data.train, recipe, start.preprocess)
    plain = Task("plain", recipe, folder, train, data.val, start.preprocess, device, start=start)
    with torch.random.fork_rng(devices=[]):
        _ = start.checkpoint  # fetched now, not after minutes of fitting a teacher
    return _Basis(options, data, tried, plain)


@dataclass(frozen=True, eq=False)
class _Taught:
    """The teacher or its stored answers, where there are any."""

    labels: Labels | None
    source: teachers.Source | None
    teacher: teachers.Teacher | None
    accuracy: Evaluation | None


def _taught(basis: _Basis) -> _Taught:
    options, data, plain = basis.options, basis.data, basis.plain
    labels = open_labels(plain.recipe, data.train, plain.preprocess) if options.teacher_labels else None
    source = open_teacher(options, plain.folder, data.train.class_names, plain.preprocess.exif)
    if options.control and not (source or labels):
        raise UsageError(
            "--control trains the student once more without its teacher, and there is no teacher here. "
            "Give --teacher-ckpt, or leave --control out"
        )
    if options.erf:  # streamed images cannot be drawn from: said now, not after the training
        field.choose(data.val, ERF_IMAGES, options.seed)
    source, teacher = ready_teacher(options, plain, data, source)
    if teacher and teacher.origin.fitted:  # by each process for itself
        together.copy_from_main(teacher.model.state_dict().values())
    accuracy = teacher_accuracy(teacher, data.val, options, plain.device) if teacher else None
    return _Taught(labels, source, teacher, accuracy)


def _job(basis: _Basis, taught: _Taught, make_trainer: Callable[[Task], trainers.Trainer]) -> Job:
    options, data, plain = basis.options, basis.data, basis.plain
    teacher_result = _teacher_result(taught.teacher, taught.accuracy, taught.labels)
    header = header_of(
        plain.recipe,
        data,
        basis.tried.parameters,
        plain.preprocess.input_size,
        _teacher_words(options, teacher_result),
        plain.device.type,
        plain.preprocess.exif,
        basis.tried.layers,
    )
    student = replace(
        plain,
        role="student" if taught.teacher or taught.labels else "plain",
        teacher=taught.teacher,
        labels=taught.labels,
        lineage=lineage_of(plain.recipe, data, taught.teacher, taught.labels),
        teacher_classes=taught.accuracy.classes if taught.accuracy else None,
        loggers=options.services,
    )
    require_same_training(student)
    return Job(
        options=options,
        folder=plain.folder,
        data=data,
        teacher=teacher_result,
        tasks=(student, control_of(student)) if options.control else (student,),
        make_trainer=make_trainer,
        header=header,
        kept_teacher=taught.source if taught.source and is_kept(taught.source) else None,
    )


def require_same_training(task: Task) -> None:
    """Raise UsageError where another process trains with other settings, images or weights."""
    own = {"data", "val_data", "teacher_ckpt", "student_ckpt", "teacher_labels", "workers", "device"}
    own |= {"cache", "cache_limit", "cache_folder"}
    about = task.lineage
    found = {
        f"--{name.replace('_', '-')}": value
        for name, value in recipes.to_dict(task.recipe).items()
        if name not in own
    }
    for part in ("data", "teacher", "student", "labels"):
        for name, value in (about.get(part) or {}).items():
            if name.endswith("sha256"):
                found[f"fingerprint of the {part}, {name}"] = value
    together.require_same(found, "All processes need the same settings and the same files")


def with_balance(options: TrainOptions, train: ImageSet) -> TrainOptions:
    """The options with the content of a file of --class-weights in place of its name. Raises UsageError for
    weights that do not fit the classes, and where the sampler or the weights need labels that are not known.
    """
    if options.sampler == "balanced":
        balance.require_labels(train, "--sampler balanced")
    options = replace(options, class_weights=balance.settled(options.class_weights, train.class_names))
    balance.class_weights(options.class_weights, train)
    return options


@dataclass(frozen=True)
class Tried:
    """A student that can take the images."""

    parameters: int
    layers: LayerRates | None


@loading("trying the student on one step")
def try_student(options: TrainOptions, start: Start, classes: int) -> Tried:
    """The student's size and the rates of its layers. Raises UsageError where it cannot take the images."""
    input_size = start.preprocess.input_size
    with torch.random.fork_rng(devices=[]):
        network = models.build(start.model, classes, start.model_args)
    trial.require_trains(
        network,
        start.name,
        input_size,
        options.batch,
        classes,
        options.freeze,
        options.freeze_norms,
    )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if options.layer_decay is None:
        return Tried(parameters, None)
    with torch.random.fork_rng(devices=[]):  # only what trains has a rate
        freeze(network, options.freeze, options.freeze_norms, input_size)
    return Tried(parameters, layer_rates(options, network))


def _teacher_result(
    teacher: teachers.Teacher | None, accuracy: Evaluation | None, labels: Labels | None
) -> TeacherResult | None:
    """Who teaches, and how good it is; of stored answers as it was when they were made."""
    if teacher and accuracy:
        return TeacherResult(teacher.origin, accuracy.top1)
    return TeacherResult(labels.origin, labels.header.teacher_top1_percent) if labels else None


def _teacher_words(options: TrainOptions, teacher: TeacherResult | None) -> str:
    """The teacher in one line of the header."""
    if teacher is None:
        implied = options.teacher == "auto"
        return "none" + (", because neither --teacher nor --teacher-ckpt is given" if implied else "")
    stored = ", from stored answers" if options.teacher_labels else ""
    return f"{teacher.origin.model}, top-1 {teacher.top1_percent:.2f} %{stored}"


def open_teacher(
    options: TrainOptions, folder: Path, class_names: list[str], exif: str
) -> teachers.Source | None:
    """The run's teacher: as this run fitted it before it was stopped, or as its weights are. exif: what
    happens to the run's images, `ignore` or `apply`.
    """
    before = teacher_fit.saved(folder, class_names) if options.resume else None
    with loading("opening the teacher"):
        source = before or teachers.open_source(
            options, class_names, kept_of(folder / "teacher", folder, options, options.teacher)
        )
    if source is None:
        return None
    source = teachers.seeing(source, exif)
    say(f"teacher: {source.origin.model} from {source.origin.file or source.origin.published}")
    for note in source.notes:
        say(f"teacher: {note}")
    trial.require_teaches(source.model, source.origin.model, source.preprocess.input_size, len(class_names))
    return source


def ready_teacher(
    options: TrainOptions, plain: Task, data: Splits, source: teachers.Source | None
) -> tuple[teachers.Source | None, teachers.Teacher | None]:
    """The teacher, fitted to the data's classes where its own are others, and at work; after a step of the
    trial with it, which costs less than the fit.
    """
    if source is None:
        trial.rehearse(plain)
        return None, None
    tried = replace(source, model=copy.deepcopy(source.model)) if source.is_new else source
    teacher = teachers.ready(tried, options, plain.preprocess, plain.device)
    trial.rehearse(replace(plain, teacher=teacher))
    if not source.is_new:
        return source, teacher
    if options.teacher_fit == "all":
        source = fit_whole_teacher(options, plain, data, source)
    else:
        source = teacher_fit.fit_head(source, data.train, options, plain.device)
        say(f"teacher: {source.origin.fitted}")
    return source, teachers.ready(source, options, plain.preprocess, plain.device)


def fit_whole_teacher(
    options: TrainOptions, plain: Task, data: Splits, source: teachers.Source
) -> teachers.Source:
    """Train all of the teacher on the labels, as a run of its own in RUN/teacher that --resume continues.

    plain: the student's training, whose folder is begun.
    """
    place = plain.folder / "teacher"
    recipe = replace(
        options,
        student=source.origin.published or source.origin.model,
        student_args=options.teacher_args,
        student_ckpt=options.teacher_ckpt,
        checkpoint_key=options.teacher_checkpoint_key,
        pretrained=not options.teacher_ckpt,
        mean=source.preprocess.mean,
        std=source.preprocess.std,
        interpolation=source.preprocess.interpolation,  # type: ignore[arg-type]  # one of INTERPOLATIONS
        input_size=source.preprocess.input_size[1:],
        exif=source.preprocess.exif,  # type: ignore[arg-type]  # one of EXIF
        img_size=0,
        teacher="none",
        teacher_ckpt="",
        teacher_checkpoint_key="",
        epochs=options.teacher_fit_epochs,
        early_stop=0,
        lr=options.teacher_fit_lr,
        freeze="",
        sparsity=0.0,
        control=False,
        erf=False,
        report=False,
        wandb="",
        mlflow="",
        resume=str(place) if options.resume and (place / "args.yaml").is_file() else "",
        output=str(place),
    )
    kept = kept_of(place, plain.folder, options, recipe.student)
    job = prepare(recipe, place, trainers.Trainer, kept)
    with together.agreed():
        if together.is_main():
            _begin_folder(plain.folder, options, data, plain.start)
    result = finish(job, [train_role(job, task) for task in job.tasks])
    found = together.from_main(lambda: checkpoints.load(result.checkpoint))
    checkpoints.load_weights(source.model, found)
    line = f"all of it fitted in {options.teacher_fit_epochs} epochs, {place / 'best.pth'}"
    return replace(source, is_new=False, origin=replace(source.origin, fitted=line))


def is_kept(source: teachers.Source) -> bool:
    """Whether a run keeps this teacher, because a resumed one could not have it again by its name or file."""
    return bool(source.origin.fitted) or names.is_remote(source.origin.published or "")


def control_of(student: Task) -> Task:
    """The same training without the teacher, into RUN/control."""
    recipe = replace(
        student.recipe, teacher="none", teacher_ckpt="", teacher_checkpoint_key="", teacher_labels=""
    )
    return replace(
        student,
        role="control",
        recipe=recipe,
        folder=student.folder / "control",
        teacher=None,
        labels=None,
        lineage={key: value for key, value in student.lineage.items() if key != "labels"}
        | {"teacher": None, "recipe": recipes.to_dict(recipe)},
    )


def train_role(job: Job, task: Task) -> RoleResult:
    """Train one student to its last epoch, from the beginning or from its last.pth."""
    with loading("building the student"):
        trainer = job.make_trainer(task)
    for note in trainer.notes:
        say(note)
    if job.options.resume:
        _resume(trainer)
    if task is job.tasks[0]:
        for line in (*job.header.lines(), *(f"warning: {words}" for words in job.header.warnings())):
            say(line)
        # not earlier: a refused resume leaves the run as it was, a refused setting no run at all
        with together.agreed():
            if together.is_main():
                _begin(job)
    best = trainer.fit(partial(show_worst, task))
    details = trainer.details()
    return RoleResult(
        checkpoint=str(task.folder / "best.pth"),
        top1_percent=best.val_top1_percent,
        epoch=best.epoch,
        loss_nats=best.val_loss_nats,
        images=best.val_images,
        teacher_agreement_percent=best.val_teacher_agreement_percent,
        unreadable_images={split: len(names) for split, names in trainer.unreadable.items()},
        more=details.values,
        words=details.words,
        right=trainer.best_right,
        balanced_percent=best.val_balanced_percent,
        select=task.recipe.select,
        epochs=trainer.epoch,
        early_end=trainer.early_end,
    )


def show_worst(task: Task, log: loggers.Loggers, step: int) -> None:
    """Give the loggers the validation images with the highest loss, and what the student takes them for."""

    def make() -> np.ndarray:
        found = predictions.of_run(read_run(task.folder), task.val, str(task.device))
        places, classes = gallery.worst(found), task.class_names
        words = [
            classes[found.label[place]]
            + ("" if found.right[place] else f", taken for {classes[found.predicted[place]]}")
            + f" {found.confidence[place]:.0%}"
            for place in places
        ]
        return pictures.sheet([task.val.image(int(found.index[place])) for place in places], words)

    if log.takes_images and len(task.val.labels):
        log.image(step, "val/worst", make)


def finish(job: Job, results: Sequence[RoleResult]) -> RunResult:
    """Write result.json, and with --erf once more with the receptive fields of all networks."""
    result = RunResult(
        run=str(job.folder),
        student=job.options.student,
        best=results[0],
        teacher=job.teacher,
        control=results[1] if len(results) > 1 else None,
        commonest_percent=_commonest_percent(job.data.val),
        constant_balanced_percent=100 / max(sum(1 for count in job.data.val.summary().counts if count), 1),
    )
    if not together.is_main():
        return result
    with together.alone():
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


def teacher_accuracy(
    teacher: teachers.Teacher, val: ImageSet, options: TrainOptions, device: torch.device
) -> Evaluation:
    """The teacher's own accuracy on its own preprocessing: shows a wrong file or normalization before any
    training. Raises UsageError for a precision that its numbers do not fit, ArtifactError for a file whose
    logits are NaN.
    """
    say(f"teacher: in {teacher.origin.dtype}, {teacher.layout}, {teacher.origin.merged}")
    if device.type != "cuda" and (options.teacher_graph or options.teacher_stream):
        say(f"teacher: --teacher-graph and --teacher-stream change nothing on {device}; they are for CUDA")
    accuracy = _evaluated(teacher, val, options, device, teacher.dtype)
    if not math.isfinite(accuracy.loss):
        dtype = teacher.dtype
        fits = dtype is not None and math.isfinite(_evaluated(teacher, val, options, device, None).loss)
        raise (UsageError if fits else ArtifactError)(
            f"teacher {teacher.origin.model}: on the validation images"
            f" {diagnosis.said_of_teacher(dtype, fits)}"
        )
    say(f"teacher: top-1 {accuracy.top1:.2f} % on {len(val) or 'the'} validation images")
    commonest = _commonest_percent(val)
    if commonest is not None and accuracy.top1 <= commonest:
        say(
            f"warning: the teacher ({accuracy.top1:.2f} %) is not better than always naming the commonest"
            f" class ({commonest:.2f} %): {teachers.USUAL_CAUSES}"
        )
    return accuracy


def _commonest_percent(images: ImageSet) -> float | None:
    """Share of the commonest class; None for a stream, whose labels are not known."""
    return 100 * max(images.summary().counts) / len(images.labels) if len(images.labels) else None


def _evaluated(
    teacher: teachers.Teacher,
    val: ImageSet,
    options: TrainOptions,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Evaluation:
    # not teacher.forward: one that is compiled now may miss the hooks that a feature loss adds later
    with progress_bar("teacher: validation images", len(val)) as advance:
        return evaluate(
            teacher.model,
            eval_loader(val, teacher.preprocess, options.eval_batch, options.workers, device),
            device,
            amp_dtype=dtype,
            channels_last=options.channels_last,
            skip_bad=options.skip_bad_images,
            after_batch=advance,
        )


def _resume(trainer: trainers.Trainer) -> None:
    role, last = trainer.task.role, trainer.task.folder / "last.pth"
    if not together.from_main(last.is_file):
        say(f"{role}: nothing was saved yet, so it starts from the beginning")
        return
    trainer.resume(last)
    if not trainer.is_over:
        say(f"{role}: resumed at epoch {trainer.epoch + 1}, step {trainer.updates}")
    else:
        say(f"{role}: already finished")


def _begin(job: Job) -> None:
    """The first thing that is written: args.yaml, in place of an old run if asked."""
    options = job.options
    kept, start = job.kept_teacher, job.tasks[0].start
    if not (kept and kept.origin.fitted and options.teacher_fit == "all"):  # then it is begun already
        _begin_folder(job.folder, options, job.data, start, kept)
    elif start:
        keep(start, job.folder)
    header = {"run": str(job.folder.absolute())} | job.header.to_dict()
    files.write_text(job.folder / HEADER, files.json_text(header, indent=2) + "\n")


def _begin_folder(
    folder: Path,
    options: TrainOptions,
    data: Splits,
    start: Start | None = None,
    teacher: teachers.Source | None = None,
) -> None:
    """Remove an old run if asked; write the lists of images, what is kept of networks, and the settings."""
    if options.overwrite and not options.resume:
        remove_old_run(folder)
    for name, text in data.lists.items():
        files.write_text(folder / name, text)
    if teacher:
        teacher_fit.save(teacher, data.train.class_names, folder)
    if start:
        keep(start, folder)
    args = recipes.to_yaml(recipe_of(options)) + recipes.yaml_lines(options.beside_recipe())
    files.write_text(folder / "args.yaml", args)


def _write_result(folder: Path, result: RunResult) -> None:
    files.write_text(folder / "result.json", files.json_text(result.to_dict(), indent=2) + "\n")


def _teacher_file(job: Job) -> list[tuple[str, str, str, str]]:
    """The teacher's (label, file, architecture, entry with the weights) for --erf, as it taught; nothing
    without one, and where it is not in a file, which is said.
    """
    if not job.teacher:
        return []
    origin = job.teacher.origin
    if job.kept_teacher:
        return [("teacher", str(job.folder / teacher_fit.SAVED), "auto", "auto")]
    if origin.file and not job.tasks[0].labels:
        return [("teacher", origin.file, origin.model, job.options.teacher_checkpoint_key or "auto")]
    why = "only its stored answers are here" if job.tasks[0].labels else "its weights are not in a file"
    say(f"erf: the teacher {origin.model} is left out, because {why}. Measure a file of it with distill erf")
    return []


def _measure_erf(job: Job, result: RunResult) -> list[report.Measured]:
    """Effective receptive fields of the networks of this run on the same images; also a line in
    metrics.jsonl.
    """
    options = job.options
    networks = [(job.tasks[0].role, result.best.checkpoint, "auto", "auto")]
    if result.control:
        networks.insert(0, ("control", result.control.checkpoint, "auto", "auto"))
    networks[:0] = _teacher_file(job)
    labels, paths, architectures, keys = zip(*networks, strict=True)
    measured, _ = report.measure_and_write(
        ErfOptions(
            checkpoints=paths,
            labels=labels,
            model=architectures,
            model_args=options.teacher_args,
            checkpoint_key=keys,
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
    line = files.json_text({"erf": [network.to_dict() for network in measured]})
    files.write_text(job.folder / "metrics.jsonl", records + line + "\n")
    return measured
