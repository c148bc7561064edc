"""Train a student: one step, one epoch, evaluation, keep the best, resume.

In:  a `Task`.
Out: RUN/best.pth, last.pth, summary.csv, metrics.jsonl; the same bits for the same seed, interrupted or not.
Elsewhere: formulas (distill.losses), batches (distill.data), the teacher (distill.teacher), building the
parts (distill.training.parts), what last.pth holds (distill.training.state), the command
(distill.run.job).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from runtime.errors import ArtifactError, DataError, GateError, Interrupted

from .. import checkpoint as checkpoints
from .. import recipe as recipes
from ..data import Batch, TrainLoader, eval_loader
from ..data.mixing import Place, mixed, mixing
from ..data.seeds import hash_seed
from ..evaluate import Evaluation, evaluate, require_readable, require_whole
from ..losses.base import Outputs, cross_entropy, weighted_cross_entropy
from ..models.depthwise import network_format
from ..processes import gradients, norms, together
from . import loggers, parts, state
from .display import TrainingDisplay
from .freezing import freeze
from .loggers import pictures
from .loggers.base import Outcome, Run
from .numbers import diagnosis, finite
from .numbers.diagnosis import Suspect
from .numbers.pending import Pending, Step
from .objective import Objective
from .records import (
    EpochRecord,
    StepLosses,
    Stopwatch,
    Tally,
    epoch_words,
    figures_of,
    write_unreadable,
)
from .selection import Selection
from .sparsity import SparseTraining
from .stopping import StopSignal
from .task import Task

DROPPING = 2**31
"""Added to the seed for the draws of drop-path and dropout, where several processes train."""


@dataclass(frozen=True)
class Details:
    """What a training found besides the accuracy of its best epoch."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """For result.json."""
    words: str = ""
    """For the summary, behind the accuracy of the best epoch."""


class Trainer:
    """One student, one budget, one seed. `fit()` runs to the end, or saves and raises Interrupted.

    A subclass trains something else than the student itself: `network_of`, `checkpoint_of`, `restore` and
    `details` are the four places where that shows.
    """

    def __init__(self, task: Task) -> None:
        recipe, device = task.recipe, task.device
        parts.prepare_process(recipe, device)
        self.task, self.recipe, self.device, self.teacher = task, recipe, device, task.teacher
        self.labels = task.labels
        self._verified = 0
        self.lineage = task.lineage
        self.log = (
            loggers.asked_for(recipe.tensorboard, task.loggers) if together.is_main() else loggers.Loggers([])
        )
        self.student = parts.open_student(task)
        self.memory_format = network_format(self.student.model, device, recipe.channels_last)
        self.model = self.network_of(self.student.model)
        if recipe.sync_bn and together.size() > 1:
            self.model = norms.synchronized(self.model, device)
        self.frozen = freeze(self.model, recipe.freeze, recipe.freeze_norms, task.preprocess.input_size)
        self.model.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]  # torch has it
        self.forward: Any = torch.compile(self.model) if recipe.compile else self.model
        self.train_loader = TrainLoader(task.train, recipe, task.preprocess, device)
        self.val_loader = eval_loader(task.val, task.preprocess, recipe.eval_batch, recipe.workers, device)
        self.steps_per_epoch = len(self.train_loader) // recipe.grad_accum
        taught = task.teacher or task.labels
        self.objective = Objective(task, self.model, self.forward, task.teacher) if taught else None
        if self.objective and recipe.sync_bn and together.size() > 1:
            norms.synchronized(self.objective.projectors, device)
        projectors = self.objective.parameters() if self.objective else []
        self.trained = [*self.model.parameters(), *projectors]
        self.optimizer, self.schedule = parts.optimizer_and_schedule(
            recipe, self.model, projectors, self.steps_per_epoch
        )
        self.precision = parts.precision_of(recipe, device)
        self.ema = parts.averaged_weights(recipe, self.model)
        self.mixup = mixing(recipe, len(task.class_names))
        self.class_weights = parts.label_weights(task)
        updates = recipe.epochs * self.steps_per_epoch
        self.sparse = parts.sparse_training(recipe, self.model, self.optimizer, self.ema, updates)
        self.selection = Selection.of(recipe)
        self.epoch = self.step_in_epoch = self.updates = 0
        self.tally = Tally()
        self.history: list[EpochRecord] = []
        self.best: EpochRecord | None = None
        self.best_right: Tensor | None = None
        """(validation images,) bool: where the best epoch's network is right."""
        self.unreadable: dict[str, set[str]] = {"train": set(), "val": set()}
        """By split: what --skip-bad-images left out, each image once, with the reason."""
        self.stop = StopSignal()
        self.display: TrainingDisplay | None = None
        self._averaging: DistributedDataParallel | None = None
        """`losses` with gradients averaged over several processes, from the first step on."""
        self._pending = Pending(recipe.grad_accum)
        self._watch = Stopwatch(device)

    @property
    def notes(self) -> list[str]:
        """Lines to show before training."""
        notes = [*self.student.notes, *([self.frozen.note] if self.frozen.note else [])]
        return notes + (self.objective.notes if self.objective else [])

    # where a subclass differs

    def network_of(self, student: nn.Module) -> nn.Module:
        """What is trained, from the student with its first weights: the student itself."""
        return student

    def checkpoint_of(self, weights: Mapping[str, Tensor], metrics: dict[str, Any]) -> checkpoints.Checkpoint:
        """What best.pth and last.pth hold. weights: of the trained network; metrics: empty in last.pth."""
        task = self.task
        return checkpoints.Checkpoint(
            self.student.architecture,
            self.student.model_args,
            {key: value.detach().cpu().contiguous() for key, value in weights.items()},
            task.preprocess,
            task.class_names,
            task.role,
            metrics,
            self.lineage,
        )

    def restore(self, last: checkpoints.Checkpoint) -> None:
        """Put the weights of last.pth into the network; the rest of its state is read by `resume`."""
        checkpoints.load_weights(self.model, last)

    def details(self) -> Details:
        """What else there is to say after `fit`."""
        return Details()

    # one step

    def step(self, batches: list[Batch]) -> None:
        """One optimizer step over `grad_accum` batches. Losses stay on the device until `flush`."""
        self._require_whole(batches)
        self.update(batches)

    def update(self, batches: list[Batch]) -> None:
        """The step itself, whatever number of images the batches have."""
        self.forward.train()
        self.frozen.hold()
        self.optimizer.zero_grad(set_to_none=True)
        for number, (place, batch) in enumerate(zip(self._places(len(batches)), batches, strict=True)):
            self._backward(batch, place, number, len(batches))
        if self.sparse:
            self.sparse.before_step(self.updates + 1)
        self._look_at_gradients()
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        self.updates += 1
        if self.ema:
            self.ema.update(self.model, step=self.updates)
        if self.sparse:
            self.sparse.after_step(self.updates)
        self.schedule.step_update(self.updates)

    def _backward(self, batch: Batch, place: Place, number: int, batches: int) -> None:
        """Add the gradients of one of the step's batches, the `number`th."""
        images, labels = self._on_device(batch, place)
        if not self.updates and not self._pending:
            self._show_augmented(images)
        given = (images, labels, *([self._stored(images, place)] if self.labels else []))
        losses = self._losses_of_all(given, number)
        with gradients.without_averaging(self._averaging, number < batches - 1):
            found = losses(*given)
            self.precision.scaler.scale(found.total / batches).backward()
        self._pending.add(found)
        self.tally.images += len(labels) * together.size()

    def _losses_of_all(self, given: Sequence[Any], number: int) -> Callable[..., StepLosses]:
        """`losses`, with gradients that are averaged over the processes where there are several. given: what
        it will be called with, by which it is found out which weights have a part in it; number: of the batch
        in its step.
        """
        if together.size() == 1:
            return self.losses
        if self._averaging is None:
            networks = [self.model, *([self.objective.projectors] if self.objective else [])]
            leaves_out = gradients.leaves_out(networks, lambda: self.losses(*given).total)
            self._averaging = gradients.averaged(
                networks,
                self.losses,
                compress=self.recipe.ddp_compress,
                all_used=not together.any_of(leaves_out),
            )
            self._watch.take()
        # each process drops other paths, and the same ones when the step is done again
        batch = together.rank() * self.recipe.grad_accum + number
        torch.manual_seed(hash_seed(self.recipe.seed + DROPPING, self.updates, batch))
        return self._averaging

    def _look_at_gradients(self) -> None:
        """Clip them where the recipe says so, and keep their norm for `flush`."""
        scaler = self.precision.scaler
        if self.recipe.clip_grad:
            scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.trained, self.recipe.clip_grad)
        elif not scaler.is_enabled():
            norm = finite.norm_of(self.trained)
        if not scaler.is_enabled():  # which leaves out a step whose gradients overflow
            self._pending.add_norm(norm)

    def _require_whole(self, batches: list[Batch]) -> None:
        """Before any computation, so that a step is done whole or not at all."""
        for batch in batches:
            require_whole(batch, self.recipe.batch, self.recipe.skip_bad_images)
            self.unreadable["train"].update(batch.bad)

    @property
    def drawn_epoch(self) -> int:
        """The epoch whose images are drawn: this one, or the one of the stored labels that it replays."""
        return self.labels.epoch_of(self.epoch) if self.labels else self.epoch

    def _places(self, count: int) -> list[Place]:
        """Of the batches of this step."""
        first = self.step_in_epoch * self.recipe.grad_accum
        return [Place(self.drawn_epoch, first + number) for number in range(count)]

    def _stored(self, images: Tensor, place: Place) -> Outputs:
        """The teacher's answers to these images, the first of which are compared with those it saw."""
        assert self.labels
        if self._verified < self.recipe.verify_labels:
            some = images[: self.recipe.verify_labels - self._verified]
            self.labels.require_replayed(*place, some, together.share(self.recipe.batch))
            self._verified += len(some)
        logits = self.labels.logits(*place, together.share(self.recipe.batch))
        return Outputs(logits.to(self.device, non_blocking=True))

    def _on_device(self, batch: Batch, place: Place) -> tuple[Tensor, Tensor]:
        """Images and labels, mixed where the recipe says so."""
        images = batch.images.to(self.device, non_blocking=True).contiguous(memory_format=self.memory_format)
        labels = batch.labels.to(self.device, non_blocking=True)
        return mixed(self.mixup, images, labels, self.recipe.seed, place)

    def losses(self, images: Tensor, labels: Tensor, stored: Outputs | None = None) -> StepLosses:
        """Losses of one batch; labels are (N,) or mixed (N, K). stored: the teacher's answers, where they are
        not asked for now.
        """
        teacher_out = stored
        if self.teacher:
            with self.teacher.side.beside(images), self._watch:
                teacher_out = self.teacher(images)
        with self.precision.autocast():
            student_out = self.objective.student(images) if self.objective else Outputs(self.forward(images))
        if self.teacher and teacher_out:
            self.teacher.side.join(teacher_out.logits, *teacher_out.features)
        are_finite = finite.of_logits(student_out.logits, teacher_out.logits if teacher_out else None)
        task_loss = self.task_loss(student_out.logits.float(), labels)
        if self.objective is None or teacher_out is None:
            return StepLosses(task_loss, task_loss.new_zeros(()), task_loss, [], are_finite)
        distill_loss, each = self.objective(student_out, teacher_out, labels)
        total = distill_loss + self.recipe.task_loss_weight * task_loss
        return StepLosses(total, distill_loss, task_loss, each, are_finite)

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of logits (N, K) with labels (N,) or mixed (N, K), nats per image; with class weights
        an image counts by that of its class: the mean over the batch, not over its weights, because those
        have mean 1 over all images.
        """
        if self.class_weights is None:
            return cross_entropy(logits, labels, self.recipe.smoothing)
        return weighted_cross_entropy(logits, labels, self.class_weights, self.recipe.smoothing)

    def flush(self) -> float:
        """Bring the pending losses to the host and add them up; returns the last. Raises GateError when one
        is not finite, or the gradients are not, and names the part.
        """
        if not self._pending:
            return self.tally.loss / max(self.tally.steps, 1)
        steps = self._pending.take()
        for update, step in enumerate(steps, self.updates - len(steps) + 1):
            if not (math.isfinite(step.loss) and step.finite.gradients):
                raise self._not_finite(update, step)
            self.tally.add(step.loss, step.distill_loss, step.task_loss, step.each)
        diagnosis.require_scale(
            self.precision.scaler.get_scale(), f"step {self.updates} (epoch {self.epoch + 1})"
        )
        self.tally.teacher_seconds += self._watch.take()
        return steps[-1].loss

    def _not_finite(self, update: int, step: Step) -> GateError:
        """The error that names the part of a step that is NaN or infinite."""
        teacher = self.teacher

        def student_fits() -> bool:
            weights = [each.detach() for each in self.model.parameters()]
            return together.all_of(finite.are_finite(weights) and self._fits_fp32(self.model, update))

        return diagnosis.of_step(
            step,
            self.objective.names if self.objective else [],
            f"at step {update} (epoch {self.epoch + 1})",
            Suspect(self.precision.dtype, student_fits),
            Suspect(teacher.dtype, lambda: together.all_of(self._fits_fp32(teacher.in_fp32, update)))
            if teacher
            else None,
        )

    @torch.no_grad()
    def _fits_fp32(self, network: Callable[[Tensor], Tensor], update: int) -> bool:
        """Whether the network's logits are finite in float32 for the images of this step, which are read
        again.
        """
        first = (update - 1 - self.epoch * self.steps_per_epoch) * self.recipe.grad_accum
        with contextlib.closing(self.train_loader.epoch(self.drawn_epoch, first)) as batches:
            group = [batch for _, batch in zip(range(self.recipe.grad_accum), batches, strict=False)]
        return finite.are_finite(
            [
                network(self._on_device(batch, Place(self.drawn_epoch, first + number))[0])
                for number, batch in enumerate(group)
                if len(batch.labels)
            ]
        )

    # the run

    def fit(self, at_end: Callable[[loggers.Loggers, int], None] = lambda log, step: None) -> EpochRecord:
        """Train to the last epoch; returns the best epoch's record. at_end: what else is given to the
        loggers then, at that step. Raises Interrupted after a signal to stop, having saved.
        """
        outcome = Outcome.FAILED
        self.log.begin(self._run())
        try:
            best = self._fit()
            if together.is_main():
                with together.alone():
                    at_end(self.log, self.updates)
            outcome = Outcome.FINISHED
        except Interrupted:
            outcome = Outcome.STOPPED
            raise
        finally:
            self.log.end(outcome)
            self.train_loader.loader.close()
            self.val_loader.close()
        return best

    def _run(self) -> Run:
        """What the loggers are told first."""
        folder = self.task.folder
        name = folder.resolve().name
        return Run(
            name if self.task.role != "control" else f"{folder.resolve().parent.name}-control",
            folder,
            recipes.to_dict(self.recipe),
            [record.to_dict() for record in self.history],
            self.updates,
        )

    def _fit(self) -> EpochRecord:
        role, epochs = self.task.role, self.recipe.epochs
        together.copy_from_main(self.model.state_dict().values())
        with (
            self.stop.listening(),
            TrainingDisplay(role, epochs, self.steps_per_epoch, self.updates) as display,
        ):
            self.display, self.log.say = display, display.say
            if self.teacher and self.teacher.recorded:
                self.teacher.recorded.say = display.say
            try:
                if self.sparse and not self.sparse.masks:
                    self._start_sparse(self.sparse)
                    display.say(f"{role}: {self.sparse.summary()}")
                while not self.is_over:
                    self._train_epoch(display)
                    self._end_epoch(display)
                    with together.agreed():
                        self.check_stop()
            except (DataError, Interrupted):
                self.save()
                raise
            if self.early_end:
                display.say(f"{role}: {self.early_end}")
        if self.best is None:
            raise AssertionError("no epoch was trained")
        return self.best

    @property
    def is_over(self) -> bool:
        """Was the last epoch trained, or did --early-stop end the training?"""
        return self.epoch >= self.recipe.epochs or self.selection.is_over(self.history, self.best)

    @property
    def early_end(self) -> str:
        """Why and when --early-stop ended the training; empty where it did not."""
        return self.selection.end(self.history, self.best, self.recipe.epochs)

    def _start_sparse(self, sparse: SparseTraining) -> None:
        """First masks, from the gradients of the first batch's cross-entropy."""
        with contextlib.closing(self.train_loader.epoch(0)) as batches, together.agreed():
            batch = next(batches)
            require_readable(batch.bad, self.recipe.skip_bad_images)
        images = batch.images.to(self.device).contiguous(memory_format=self.memory_format)
        self.model.train()
        sparse.start(lambda: F.cross_entropy(self.model(images), batch.labels.to(self.device)))

    def _show_augmented(self, images: Tensor) -> None:
        """What the network is trained on, once."""
        self.log.image(
            0,
            "train/augmented",
            lambda: pictures.sheet(pictures.of_batch(images, self.task.preprocess)),
        )

    def _train_epoch(self, display: TrainingDisplay) -> None:
        every = 1 if self.device.type == "cpu" else 20
        began = last_save = time.monotonic()
        batches = self.train_loader.epoch(self.drawn_epoch, self.step_in_epoch * self.recipe.grad_accum)
        with contextlib.closing(batches):
            while self.step_in_epoch < self.steps_per_epoch:
                with together.agreed(asks=self._is_to_be_saved(last_save)) as save:
                    if together.size() > 1:
                        self.check_stop()
                    group = self._step_of(batches)
                if together.size() > 1 and save.asked:
                    self.save()
                    began = last_save = time.monotonic()
                self.step(group)
                self.step_in_epoch += 1
                done, t = self.step_in_epoch, self.tally
                due = done % every == 0 or done == self.steps_per_epoch
                due = due or (bool(self.stop.received) and together.size() == 1)
                # waits for the GPU, so it comes before the clock is read
                loss = self.flush() if due else math.nan
                now = time.monotonic()
                t.seconds, began = t.seconds + now - began, now
                if due:
                    display.step(self.epoch, done, loss, t.images_per_s, t.teacher_share)
                if together.size() == 1:
                    self.check_stop()
                    if self._is_to_be_saved(last_save):
                        self.save()
                        began = last_save = time.monotonic()

    def _is_to_be_saved(self, last_save: float) -> bool:
        """Is it time for last.pth? last_save: when it was written last."""
        return time.monotonic() - last_save >= 60 * self.recipe.checkpoint_minutes

    def _step_of(self, batches: Iterable[Batch]) -> list[Batch]:
        """The next batches, as many as a step has. Raises DataError where there are not so many."""
        accum = self.recipe.grad_accum
        group = [batch for _, batch in zip(range(accum), batches, strict=False)]
        if len(group) < accum:
            raise DataError(
                f"the data ended in epoch {self.epoch + 1} after {self.step_in_epoch} of "
                f"{self.steps_per_epoch} steps"
            )
        self._require_whole(group)
        return group

    def _end_epoch(self, display: TrainingDisplay) -> None:
        self.flush()
        found = self.validate()
        self._require_numbers(found)
        self.unreadable["val"].update(found.unreadable)
        self._share_unreadable()
        record = self._record(found)
        self.history.append(record)
        self.epoch, self.step_in_epoch, self.tally = self.epoch + 1, 0, Tally()
        if self.selection.is_better(record, self.best):
            self.best, self.best_right = record, found.right
            self._write(lambda: self._best_checkpoint(record), "best.pth")
        self.save()
        if together.is_main():
            write_unreadable(self.task.folder, self.unreadable)
        self.log.scalars(record.step, record.to_dict())
        display.say_as_fits(self._words(record))

    def _require_numbers(self, found: Evaluation) -> None:
        """Raise GateError for an epoch whose network gives no numbers, of which nothing is saved: the losses
        were looked at before each update, the last one's outcome was not.
        """
        whose = "control" if self.task.role == "control" else "student"
        diagnosis.require_numbers(
            found.loss,
            [self.model, *([self.ema.module] if self.ema else [])],
            self.precision.dtype,
            f"after step {self.updates} (epoch {self.epoch + 1}) of the {whose}",
        )

    def _words(self, record: EpochRecord) -> list[str]:
        """What a person reads of the epoch; balanced accuracy where it is not top-1 by another name."""
        measure, best, counts = self.recipe.select, self.best or record, self.task.val.summary().counts
        return epoch_words(
            self.task.role,
            record,
            self.recipe.epochs,
            self.selection.shown(best),
            balanced=measure == "balanced" or len({count for count in counts if count}) != 1,
            loss=measure == "loss",
        )

    def validate(self, batches: Iterable[Batch] | None = None) -> Evaluation:
        """Accuracy on the validation images, of the averaged weights where they are kept; or on `batches`."""

        def after_batch(images: int) -> None:
            self.check_stop()
            if self.display:
                self.display.validated(
                    self.epoch, min(images, len(self.task.val) or images), len(self.task.val)
                )

        networks = [self.model, *([self.ema.module] if self.ema else [])]
        together.copy_from_main(buffer for network in networks for buffer in network.buffers())
        return evaluate(
            self.ema.module if self.ema else self.forward,
            self.val_loader if batches is None else batches,
            self.device,
            amp_dtype=self.precision.dtype,
            channels_last=self.recipe.channels_last,
            skip_bad=self.recipe.skip_bad_images,
            after_batch=after_batch,
        )

    def _record(self, found: Evaluation) -> EpochRecord:
        """The epoch's figures, before they are set back to 0."""
        task = self.task
        return EpochRecord(
            epoch=self.epoch + 1,
            step=self.updates,
            lr=max(group["lr"] for group in self.optimizer.param_groups),
            bad_images=sum(map(len, self.unreadable.values())),
            **self.tally.means(self.objective.names if self.objective else None),
            **figures_of(found, task.class_names, task.teacher_classes),
        )

    def check_stop(self) -> None:
        """Raise Interrupted if someone asked the process to stop."""
        folder = self.task.folder
        self.stop.check(self.updates, folder.parent if self.task.role == "control" else folder)

    # files

    def _best_checkpoint(self, best: EpochRecord) -> checkpoints.Checkpoint:
        metrics = best.metrics(self.recipe.select, "ema" if self.ema else "raw")
        return self.checkpoint_of((self.ema.module if self.ema else self.model).state_dict(), metrics)

    def save(self) -> None:
        """Write last.pth: the weights and everything `resume` needs."""
        self.flush()
        self._share_unreadable()
        self._write(self._last_checkpoint, "last.pth")

    def _last_checkpoint(self) -> checkpoints.Checkpoint:
        last = self.checkpoint_of(self.model.state_dict(), {})
        last.state = self._state()
        return last

    def _write(self, make: Callable[[], checkpoints.Checkpoint], name: str) -> None:
        """A checkpoint into the run folder, by one of the processes."""
        with together.agreed():
            if together.is_main():
                checkpoints.save(make(), self.task.folder / name)

    def _share_unreadable(self) -> None:
        """Let every process know what the others could not read."""
        for each in together.gathered(self.unreadable):
            for split, names in each.items():
                self.unreadable[split] |= names

    def resume(self, path: Path) -> None:
        """Continue from last.pth bit for bit. Raises UsageError when the images or a setting that changes the
        weights differ, ArtifactError for a damaged state.
        """
        last = together.from_main(lambda: checkpoints.load(path))
        saved = state.require_same_run(last, self.recipe, self.lineage, together.size())
        try:
            self.restore(last)
            state.require_typed(saved)
            self._put_back(saved)
        except state.DAMAGED as error:
            reason = " ".join(str(error).split())[:160]
            raise ArtifactError(
                f"{path}: its state cannot be put back ({type(error).__name__}: {reason}). Start another run"
                f" from its weights: --student-ckpt {path}"
            ) from error

    def _state(self) -> dict[str, Any]:
        """Everything besides the weights, as plain values and tensors."""
        return {
            "recipe": recipes.to_dict(self.recipe),
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "updates": self.updates,
            "processes": together.size(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "sparse": self.sparse.state_dict() if self.sparse else None,
            "projectors": self.objective.state_dict() if self.objective else {},
            "random": state.random_state(self.device),
            "tally": dataclasses.asdict(self.tally),
            "unreadable": {split: sorted(names) for split, names in self.unreadable.items()},
            "history": [record.to_dict() for record in self.history],
            "best": self.best.to_dict() if self.best else {},
            "best_right": self.best_right,
        }

    def _put_back(self, saved: Mapping[str, Any]) -> None:
        """Undo `_state`. The weights are in place already."""
        self.optimizer.load_state_dict(saved["optimizer"])
        self.precision.scaler.load_state_dict(saved["scaler"])
        if self.ema:
            self.ema.module.load_state_dict(saved["ema"])
        if self.sparse:
            self.sparse.load_state_dict(saved["sparse"])
        if self.objective:
            self.objective.load_state_dict(saved["projectors"])
        self.epoch, self.step_in_epoch = saved["epoch"], saved["step_in_epoch"]
        self.updates, self.best_right = saved["updates"], saved.get("best_right")
        self.schedule.step_update(self.updates)
        self.tally = Tally.from_dict(saved["tally"])
        for split, names in saved.get("unreadable", {}).items():
            self.unreadable[split].update(names)
        self.history = [EpochRecord.from_dict(values) for values in saved["history"]]
        self.best = EpochRecord.from_dict(saved["best"]) if saved["best"] else None
        state.set_random_state(saved["random"], self.device)
