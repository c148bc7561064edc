"""Train a student: one step, one epoch, evaluation, keep the best, resume.

In:  a recipe, training and validation images, a teacher or None, a run folder.
Out: RUN/best.pth, last.pth, summary.csv, metrics.jsonl, args.yaml; the same bits for the same seed,
interrupted or not.
Elsewhere: formulas (distill.losses), batches (distill.data), the teacher (distill.teacher), the command
(distill.training.job).
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib
import io
import json
import math
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn import functional as F

from runtime import files
from runtime.artifact import require_same_classes
from runtime.env import versions
from runtime.errors import DataError, GateError, Interrupted, UsageError
from runtime.images import ImageSet
from runtime.preprocess import Preprocess

from .. import checkpoint as checkpoints
from .. import models
from .. import recipe as recipes
from ..data import Batch, TrainLoader, eval_loader, seed_all
from ..evaluate import Accuracy, agreement, evaluate, require_readable
from ..losses import Outputs
from ..progress import TrainingDisplay
from ..recipe import Recipe, key_values
from ..teacher import DTYPES, Teacher
from .objective import Objective
from .sparsity import SparseTraining

FREE_ON_RESUME = {"workers", "device", "checkpoint_minutes", "eval_batch", "tensorboard", "skip_bad_images"}
"""Settings that a resumed run may change: none of them changes the weights."""
FINAL_PRUNE_RATE = 0.005
"""Where the prune rate of sparse training ends, as in SLaK's published code."""


class StepLosses(NamedTuple):
    """What one batch gave: scalars on the device."""

    total: Tensor
    distill: Tensor
    """Weighted sum of the distillation losses; its share of `total`."""
    task: Tensor
    """Cross-entropy, nats per image, without its weight."""
    each: list[Tensor]
    """The distillation losses, without their weights."""


@dataclasses.dataclass
class Tally:
    """Sums over the optimizer steps of one epoch."""

    steps: int = 0
    loss: float = 0.0
    distill_loss: float = 0.0
    task_loss: float = 0.0
    each: list[float] = dataclasses.field(default_factory=list)
    """Every distillation loss by itself, without its weight."""
    images: int = 0
    seconds: float = 0.0
    teacher_seconds: float = 0.0
    bad_images: int = 0

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def teacher_share(self) -> float | None:
        return self.teacher_seconds / self.seconds if self.teacher_seconds and self.seconds else None


class Trainer:
    """One student, one budget, one seed. `fit()` runs to the end, or saves and raises Interrupted.

    teacher_classes (images,) are what the teacher predicts on the validation images: a control has them too,
    to compare.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        train: ImageSet,
        val: ImageSet,
        teacher: Teacher | None,
        device: torch.device,
        preprocess: Preprocess,
        role: str,
        lineage: dict[str, Any],
        teacher_classes: Tensor | None = None,
    ) -> None:
        seed_all(recipe.seed)
        if device.type == "cuda":
            torch.cuda.manual_seed_all(recipe.seed)
            torch.cuda.set_device(device.index or 0)  # events are recorded on the current one
        if recipe.tensorboard:
            importlib.import_module(
                "torch.utils.tensorboard"
            )  # a missing package is named now, not after an epoch
        self.recipe, self.folder, self.device, self.role = recipe, folder, device, role
        self.class_names, self.preprocess, self.teacher, self.lineage = (
            train.class_names,
            preprocess,
            teacher,
            lineage,
        )
        self.teacher_classes = teacher_classes
        self.model_args = models.size_argument(recipe.student, preprocess.input_size[1]) | key_values(
            recipe.student_args
        )
        self.notes: list[str] = []
        """Lines to show before training."""
        start = None
        if recipe.student_ckpt:
            start = checkpoints.load_any(recipe.student_ckpt, recipe.student, self.model_args)
            require_same_classes(start.class_names, recipe.student_ckpt, self.class_names, "data")
            self.notes += start.notes
            # a published file may show its own kernel sizes; one of ours says with what it was built
            self.model_args = start.model_args | (self.model_args if start.class_names is not None else {})
        model = models.build(
            recipe.student,
            len(self.class_names),
            self.model_args,
            drop_rate=recipe.drop,
            drop_path_rate=recipe.drop_path,
        )
        if start:
            checkpoints.load_weights(model, start)
        self.memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = self._network(model).to(device, memory_format=self.memory_format)
        self.forward = torch.compile(self.model) if recipe.compile else self.model
        self.train_loader = TrainLoader(train, recipe, preprocess, device)
        self.val_loader = eval_loader(val, preprocess, recipe.eval_batch, recipe.workers, device)
        self.steps_per_epoch = len(self.train_loader) // recipe.grad_accum
        self.objective = (
            Objective(
                recipe,
                self.model,
                self.forward,
                teacher,
                preprocess.input_size,
                len(self.class_names),
                device,
            )
            if teacher
            else None
        )
        self.notes += self.objective.notes if self.objective else []
        self.trained = [*self.model.parameters(), *(self.objective.parameters() if self.objective else ())]
        self._build_optimizer()
        self.amp_dtype = DTYPES[recipe.amp_dtype] if recipe.amp else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp and recipe.amp_dtype == "fp16")
        self.ema = self.mixup = None
        if recipe.model_ema:
            self.ema = ModelEmaV3(
                self.model, decay=recipe.model_ema_decay, use_warmup=recipe.model_ema_warmup
            )
        if recipe.mixup or recipe.cutmix:
            self.mixup = Mixup(
                recipe.mixup,
                recipe.cutmix,
                prob=recipe.mixup_prob,
                switch_prob=recipe.mixup_switch_prob,
                label_smoothing=recipe.smoothing,
                num_classes=len(self.class_names),
            )
        self.sparse = None
        if recipe.sparsity:
            self.sparse = SparseTraining(
                self.model,
                self.optimizer,
                total_updates=recipe.epochs * self.steps_per_epoch,
                sparsity=recipe.sparsity,
                update_every=recipe.sparse_update_every,
                prune_rate=recipe.sparse_prune_rate,
                final_prune_rate=min(FINAL_PRUNE_RATE, recipe.sparse_prune_rate),
                growth=recipe.sparse_growth,
                only_large=recipe.sparse_only_large,
                seed=recipe.seed,
                ema=self.ema.module if self.ema else None,
            )
        self.epoch = self.step_in_epoch = self.updates = 0
        self.tally = Tally()
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self._pending: list[StepLosses] = []
        self._watch = _Stopwatch(device)
        self._stop_signal: int | None = None
        self.more: dict[str, Any] = {}
        """What result.json says about this run besides its accuracy."""

    def _network(self, student: torch.nn.Module) -> torch.nn.Module:
        """What is trained, from the student with its first weights: the student itself."""
        return student

    def _build_optimizer(self) -> None:
        r = self.recipe
        try:
            self.optimizer = create_optimizer_v2(
                self.model,
                opt=r.opt,
                lr=r.peak_lr,
                weight_decay=r.weight_decay,
                momentum=r.momentum,
                layer_decay=r.layer_decay,
            )
            projectors = self.objective.parameters() if self.objective else []
            for decay, matrices in ((r.weight_decay, True), (0.0, False)):
                if group := [p for p in projectors if (p.ndim > 1) == matrices]:
                    self.optimizer.add_param_group({"params": group, "weight_decay": decay})
            self.scheduler, _ = create_scheduler_v2(
                self.optimizer,
                sched=r.sched,
                num_epochs=r.epochs,
                warmup_epochs=min(r.warmup_epochs, r.epochs - 1e-6),
                warmup_lr=r.warmup_lr,
                min_lr=r.min_lr,
                step_on_epochs=False,
                updates_per_epoch=self.steps_per_epoch,
                decay_milestones=[r.epochs // 2, r.epochs * 3 // 4],
                **({"decay_epochs": max(1, r.epochs // 3)} if r.sched == "step" else {}),
            )
        except (ValueError, AssertionError, RuntimeError, KeyError) as error:
            raise UsageError(
                f"optimizer {r.opt!r} with schedule {r.sched!r}: {' '.join(str(error).split())[:200]}"
            ) from error
        if self.scheduler is None:
            raise UsageError(
                f"schedule {r.sched!r}: unknown to timm. Expected cosine, tanh, step, multistep or poly"
            )
        self.scheduler.step_update(0)

    # one step

    def step(self, batches: list[Batch]) -> None:
        """One optimizer step over `grad_accum` batches. Losses stay on the device until `flush`."""
        for batch in batches:  # before any computation, so that a step is done whole or not at all
            require_readable(batch.bad, self.recipe.skip_bad_images)
            if len(batch.labels) < self.recipe.batch:
                raise DataError(
                    f"{len(batch.bad)} images in a row cannot be read (last: {batch.bad[-1]}). Check the"
                    " data set"
                )
            self.tally.bad_images += len(batch.bad)
        self.forward.train()
        self.optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            images = batch.images.to(self.device, non_blocking=True).contiguous(
                memory_format=self.memory_format
            )
            labels = batch.labels.to(self.device, non_blocking=True)
            if self.mixup:
                images, labels = self.mixup(images, labels)
            found = self.losses(images, labels)
            self.scaler.scale(found.total / len(batches)).backward()
            self._pending.append(
                StepLosses(*(value.detach() for value in found[:3]), [each.detach() for each in found.each])
            )
            self.tally.images += len(labels)
        if self.sparse:
            self.sparse.before_step(self.updates + 1)
        if self.recipe.clip_grad:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.trained, self.recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updates += 1
        if self.ema:
            self.ema.update(self.model, step=self.updates)
        if self.sparse:
            self.sparse.after_step(self.updates)
        self.scheduler.step_update(self.updates)

    def losses(self, images: Tensor, labels: Tensor) -> StepLosses:
        """Losses of one batch; labels are (N,) or mixed (N, K)."""
        teacher_out = None
        if self.teacher:
            with self._watch:
                teacher_out = self.teacher(images)
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            student_out = self.objective.student(images) if self.objective else Outputs(self.forward(images))
        smoothing = 0.0 if labels.ndim == 2 else self.recipe.smoothing  # mixed labels are smoothed already
        task_loss = F.cross_entropy(student_out.logits.float(), labels, label_smoothing=smoothing)
        if teacher_out is None:
            return StepLosses(task_loss, task_loss.new_zeros(()), task_loss, [])
        distill_loss, each = self.objective(student_out, teacher_out, labels)
        return StepLosses(
            distill_loss + self.recipe.task_loss_weight * task_loss, distill_loss, task_loss, each
        )

    def flush(self) -> float:
        """Bring the pending losses to the host and add them up; returns the last. Raises GateError when one
        is not finite.
        """
        if not self._pending:
            return self.tally.loss / max(self.tally.steps, 1)
        accum = self.recipe.grad_accum
        values = torch.stack([torch.stack([*found[:3], *found.each]) for found in self._pending])
        values = values.double().cpu().view(len(self._pending) // accum, accum, -1).mean(1).tolist()
        self._pending.clear()
        first = self.updates - len(values) + 1
        for update, (loss, distill_loss, task_loss, *each) in enumerate(values, start=first):
            if not math.isfinite(loss):
                raise GateError(
                    f"loss is {loss} at step {update} (epoch {self.epoch + 1}; distillation"
                    f" {distill_loss:.4g}, cross-entropy {task_loss:.4g}). Try a lower --lr, --clip-grad 1, a"
                    " longer warm-up, or --amp-dtype bf16"
                )
            self.tally.steps += 1
            self.tally.loss += loss
            self.tally.distill_loss += distill_loss
            self.tally.task_loss += task_loss
            self.tally.each = [a + b for a, b in zip(self.tally.each or [0.0] * len(each), each, strict=True)]
        self.tally.teacher_seconds += self._watch.take()
        return values[-1][0]

    # the run

    def fit(self) -> dict[str, Any]:
        """Train to the last epoch; returns the best epoch's record. Raises Interrupted after Ctrl-C or
        SIGTERM, having saved.
        """
        with (
            self._signals(),
            TrainingDisplay(self.role, self.recipe.epochs, self.steps_per_epoch, self.updates) as display,
        ):
            try:
                if self.sparse and not self.sparse.masks:
                    self._start_sparse()
                    display.say(f"{self.role}: {self.sparse.describe()}")
                while self.epoch < self.recipe.epochs:
                    self._train_epoch(display)
                    self._end_epoch(display)
                    self._check_stop()
            except (DataError, Interrupted):
                self.save()
                raise
        return self.best

    def _start_sparse(self) -> None:
        """First masks, from the gradients of the first batch's cross-entropy."""
        with contextlib.closing(self.train_loader.epoch(0)) as batches:
            batch = next(batches)
        require_readable(batch.bad, self.recipe.skip_bad_images)
        images = batch.images.to(self.device).contiguous(memory_format=self.memory_format)
        self.model.train()
        self.sparse.start(lambda: F.cross_entropy(self.model(images), batch.labels.to(self.device)))

    def _train_epoch(self, display: TrainingDisplay) -> None:
        accum, every = self.recipe.grad_accum, 1 if self.device.type == "cpu" else 20
        began = last_save = time.monotonic()
        batches = self.train_loader.epoch(self.epoch, self.step_in_epoch * accum)
        with contextlib.closing(batches):
            while self.step_in_epoch < self.steps_per_epoch:
                group = [batch for _, batch in zip(range(accum), batches, strict=False)]
                if len(group) < accum:
                    raise DataError(
                        f"the data ended in epoch {self.epoch + 1} after {self.step_in_epoch} of "
                        f"{self.steps_per_epoch} steps"
                    )
                self.step(group)
                self.step_in_epoch += 1
                due = (
                    self.step_in_epoch % every == 0
                    or self.step_in_epoch == self.steps_per_epoch
                    or bool(self._stop_signal)
                )
                loss = (
                    self.flush() if due else math.nan
                )  # waits for the GPU, so it comes before the clock is read
                now = time.monotonic()
                self.tally.seconds, began = self.tally.seconds + now - began, now
                if due:
                    display.step(
                        self.epoch,
                        self.step_in_epoch,
                        loss,
                        self.tally.images_per_s,
                        self.tally.teacher_share,
                    )
                self._check_stop()
                if now - last_save >= 60 * self.recipe.checkpoint_minutes:
                    self.save()
                    began = last_save = time.monotonic()

    def _end_epoch(self, display: TrainingDisplay) -> None:
        self.flush()
        accuracy = self.validate()
        t, steps = self.tally, max(self.tally.steps, 1)
        record = {
            "epoch": self.epoch + 1,
            "step": self.updates,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "train_loss": t.loss / steps,
            "train_distill_loss": t.distill_loss / steps if self.teacher else None,
            "train_task_loss": t.task_loss / steps,
            **{
                f"train_{name}_loss": value / steps
                for name, value in zip(self._loss_names(), t.each, strict=True)
            },
            "val_top1_percent": accuracy.top1,
            "val_top5_percent": accuracy.top5,
            "val_loss_nats": accuracy.loss,
            "val_images": accuracy.images,
            "val_teacher_agreement_percent": self._agreement(accuracy),
            "train_images_per_s": t.images_per_s,
            "teacher_share_of_step": t.teacher_share,
            "train_seconds": t.seconds,
            "bad_images": t.bad_images + accuracy.skipped,
        }
        self.history.append(record)
        self.epoch, self.step_in_epoch, self.tally = self.epoch + 1, 0, Tally()
        if not self.best or record["val_top1_percent"] > self.best["val_top1_percent"]:
            self.best = record
            checkpoints.save(self._best_checkpoint(), self.folder / "best.pth")
        self.save()
        write_records(self.folder, self.history)
        if self.recipe.tensorboard:
            _tensorboard(self.folder, record)
        display.say(
            f"{self.role}: epoch {record['epoch']}/{self.recipe.epochs}  loss {record['train_loss']:.4f} "
            f" top-1 {accuracy.top1:.2f} %  (best {self.best['val_top1_percent']:.2f} %) "
            f" {t.images_per_s:,.0f} images/s"
            + (f"  teacher {t.teacher_share:.0%} of the step" if t.teacher_share is not None else "")
            + (f"  {record['bad_images']} unreadable images left out" if record["bad_images"] else "")
        )

    def validate(self) -> Accuracy:
        """Accuracy on the validation images, of the averaged weights where they are kept."""

        def after_batch(_: int) -> None:
            self._check_stop()

        model = self.ema.module if self.ema else self.forward
        return evaluate(
            model,
            self.val_loader,
            self.device,
            amp_dtype=self.amp_dtype,
            channels_last=self.recipe.channels_last,
            skip_bad=self.recipe.skip_bad_images,
            after_batch=after_batch,
        )

    def _loss_names(self) -> list[str]:
        return self.objective.names if self.objective else []

    def _agreement(self, accuracy: Accuracy) -> float | None:
        return None if self.teacher_classes is None else agreement(accuracy.classes, self.teacher_classes)

    # files

    def _best_checkpoint(self) -> checkpoints.Checkpoint:
        weights = (self.ema.module if self.ema else self.model).state_dict()
        best = self.best
        metrics = {
            "top1": best["val_top1_percent"],
            "top5": best["val_top5_percent"],
            "loss": best["val_loss_nats"],
            "epoch": best["epoch"],
            "images": best["val_images"],
            "weights": "ema" if self.ema else "raw",
        }
        return self._checkpoint(weights, metrics)

    def _checkpoint(self, weights: dict[str, Tensor], metrics: dict[str, Any]) -> checkpoints.Checkpoint:
        weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
        return checkpoints.Checkpoint(
            self.recipe.student,
            self.model_args,
            weights,
            self.preprocess,
            self.class_names,
            self.role,
            metrics,
            self.lineage,
        )

    def save(self) -> None:
        """Write last.pth: the weights and everything `resume` needs."""
        self.flush()
        last = self._checkpoint(self.model.state_dict(), {})
        last.state = {
            "recipe": recipes.to_dict(self.recipe),
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "updates": self.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "sparse": self.sparse.state_dict() if self.sparse else None,
            "projectors": self.objective.state_dict() if self.objective else {},
            "random": random_state(self.device),
            "tally": dataclasses.asdict(self.tally),
            "history": self.history,
            "best": self.best,
        }
        checkpoints.save(last, self.folder / "last.pth")

    def resume(self, path: Path) -> None:
        """Continue from last.pth bit for bit. Raises UsageError when the images or a setting that changes the
        weights differ.
        """
        last = checkpoints.load(path)
        if last.state is None:
            raise UsageError(f"{path}: holds weights only. Resume from the run's last.pth")
        now = recipes.to_dict(self.recipe)
        then = (
            recipes.to_dict(Recipe()) | last.state["recipe"]
        )  # a setting the run's version did not know has its default
        changed = [key for key in now if key not in FREE_ON_RESUME and now[key] != then[key]]
        if changed:
            key = changed[0]
            raise UsageError(
                f"--{key.replace('_', '-')} is {now[key]!r}, the run to resume has {then[key]!r}. "
                "A resumed run keeps its recipe; start another one with a new --output"
            )
        for key, which in (("train_sha256", "training"), ("val_sha256", "validation")):
            before, today = (about.get("data", {}).get(key) for about in (last.lineage, self.lineage))
            if before and today and before != today:
                raise UsageError(
                    f"{path}: the {which} images are not those the run began with. Put them back (a broken"
                    " one may stay, with --skip-bad-images), or start another run with a new --output"
                )
        teachers = [(about.get("teacher") or {}).get("sha256") for about in (last.lineage, self.lineage)]
        if teachers[0] != teachers[1]:
            raise UsageError(
                f"{path}: the teacher's file is not the one the run began with. Put it back, "
                "or start another run with a new --output"
            )
        state = last.state
        self._restore(last)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        if self.sparse:
            self.sparse.load_state_dict(state["sparse"])
        if self.objective:
            self.objective.load_state_dict(state["projectors"])
        self.epoch, self.step_in_epoch, self.updates = (
            state["epoch"],
            state["step_in_epoch"],
            state["updates"],
        )
        self.scheduler.step_update(self.updates)
        self.tally, self.history, self.best = Tally(**state["tally"]), state["history"], state["best"]
        write_records(self.folder, self.history)
        set_random_state(state["random"], self.device)

    def _restore(self, last: checkpoints.Checkpoint) -> None:
        """Put the weights of last.pth into the network; the rest of its state is read by `resume`."""
        checkpoints.load_weights(self.model, last)

    # stopping

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the first Ctrl-C or SIGTERM end the step; a second one ends the process as usual."""

        def note(number: int, _: Any) -> None:
            self._stop_signal = number
            for each, handler in previous.items():
                signal.signal(each, handler)

        previous: dict[int, Any] = {}
        try:
            for each in (signal.SIGINT, signal.SIGTERM):
                previous[each] = signal.signal(each, note)
        except ValueError:  # not in the main thread: signals are someone else's
            previous.clear()
        try:
            yield
        finally:
            for each, handler in previous.items():
                signal.signal(each, handler)

    def _check_stop(self) -> None:
        if self._stop_signal:
            run = self.folder.parent if self.role == "control" else self.folder
            raise Interrupted(
                f"stopped by {signal.Signals(self._stop_signal).name} after step {self.updates}. "
                f"Continue: distill train --resume {run}"
            )


class _Stopwatch:
    """Seconds spent inside `with`; on a GPU by events, so that nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.seconds = 0.0
        self.events: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        if self.cuda:
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
            self.events.append(pair)
        else:
            self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.events[-1][1].record()
        else:
            self.seconds += time.perf_counter() - self.began

    def take(self) -> float:
        """Seconds since the last call."""
        for begin, end in self.events:
            end.synchronize()
            self.seconds += begin.elapsed_time(end) / 1000
        self.events.clear()
        taken, self.seconds = self.seconds, 0.0
        return taken


def random_state(device: torch.device) -> dict[str, Any]:
    """State of python's, numpy's and torch's generators, as values `weights_only` loading accepts; of GPUs
    that of `device`.
    """
    name, keys, position, has_gauss, cached = np.random.get_state()
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Undo `random_state`, on a GPU of another number if need be."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"][0], device)


def write_records(folder: Path, history: list[dict[str, Any]]) -> None:
    """summary.csv and metrics.jsonl from the whole history, so that a resumed run leaves no line twice."""
    if not history:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    files.write_text(folder / "summary.csv", text.getvalue())
    files.write_text(folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in history))


def lineage(
    recipe: Recipe, train: ImageSet, val: ImageSet, train_spec: str, val_spec: str, teacher: Teacher | None
) -> dict[str, Any]:
    """Where a checkpoint comes from: data with fingerprints, teacher with SHA-256, recipe and versions."""
    return {
        "data": {
            "train_spec": train_spec,
            "val_spec": val_spec,
            "train_images": len(train),
            "val_images": len(val),
            "train_sha256": train.fingerprint(),
            "val_sha256": val.fingerprint(),
        },
        "teacher": teacher.about if teacher else None,
        "recipe": recipes.to_dict(recipe),
        "versions": versions(),
    }


def _tensorboard(folder: Path, record: dict[str, Any]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for key, value in record.items():
            if isinstance(value, (int, float)) and key not in ("epoch", "step"):
                writer.add_scalar(key, value, record["step"])
