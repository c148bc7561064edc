"""What a step minimizes besides the labels' cross-entropy: the recipe's distillation losses, weighted.

In:  a Recipe, the student and the teacher.
Out: the weighted sum and each loss for itself; the learnable parts of feature losses (projectors), which
     train with the student; lines for a person: which stages are matched, where a loss degenerates.
Elsewhere: the losses (distill.losses), the taps and the matching (distill.losses.feature.taps), the step
(distill.training.trainer).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import UsageError

from .. import losses
from ..losses.base import Outputs
from ..losses.feature.base import FeatureLoss, total
from ..losses.feature.taps import Stage, Taps, choose, match, pair_lines
from ..recipe import Recipe, key_values
from ..teacher import Teacher
from .task import Task


@dataclass(frozen=True)
class Term:
    """One loss of the sum."""

    name: str
    weight: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)
    stages: str = ""
    """For feature losses: last, all, or pairs; empty is the loss's own default."""


def terms_of(recipe: Recipe) -> list[Term]:
    """The losses that a recipe names, by `losses` or by `kd_loss` and `feature_loss`. Raises UsageError for
    a name that no loss has.
    """
    if recipe.losses:
        return [_parse(text) for text in recipe.losses]
    terms = []
    if recipe.kd_loss != "none":
        known = losses.settings_of(recipe.kd_loss)
        shared = {"temperature": recipe.kd_temperature, "gamma": recipe.kd_gamma}
        settings = {key: value for key, value in shared.items() if value is not None and key in known}
        terms.append(Term(recipe.kd_loss, recipe.distill_loss_weight, settings | key_values(recipe.kd_args)))
    if recipe.feature_loss != "none":
        terms.append(
            Term(
                recipe.feature_loss,
                recipe.feature_weight,
                key_values(recipe.feature_args),
                recipe.feature_stages,
            )
        )
    return terms


class Objective:
    """`objective(student, teacher, target)` -> (weighted sum, [each loss]); `objective.student(images)` ->
    the student's Outputs.

    Projectors are made here, from the maps of two images of noise, before the optimizer is built:
    `parameters()` belong to it and `state_dict()` to last.pth, not to best.pth. Raises UsageError for a loss
    that cannot work with these networks or this batch.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        forward: Callable[[Tensor], Tensor],
        teacher: Teacher | None,
    ) -> None:
        """forward: `model`, compiled or not. teacher: None where its answers are stored (task.labels)."""
        recipe, input_size = task.recipe, task.preprocess.input_size
        self.terms = terms_of(recipe)
        self.notes: list[str] = []
        """Lines to show before training."""
        self.losses = [losses.create(term.name, **term.settings) for term in self.terms]
        of_features = [each for each in self.losses if isinstance(each, FeatureLoss)]
        self.projectors = nn.ModuleList(of_features)
        self.names = _column_names([term.name for term in self.terms])
        self._parts = [(slice(0, 0), slice(0, 0))] * len(self.terms)
        """Which of the student's and of the teacher's maps each loss reads."""
        self.student: Callable[[Tensor], Outputs] = lambda images: Outputs(forward(images))
        if teacher is None:
            self._require_stored(task)
        if of_features and teacher:
            self.student = taps = Taps(model, input_size, forward)
            reads_teacher = any(loss.teacher_maps for loss in of_features)
            teacher.untap()
            its = teacher.tap() if reads_teacher else None
            ours, theirs = self._match(taps.stages, its.stages if its else ())
            taps.use(ours)
            if its:
                its.use(theirs)
        noise = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0)).to(task.device)
        self._prepare(model, teacher, noise)
        logits = _first_logits(model, noise)
        for term in self.terms:
            self.notes += losses.warnings_of(
                term.name, len(task.class_names), recipe.batch, logits, **term.settings
            )
        for name, loss in zip(self.names, self.losses, strict=True):
            if isinstance(loss, FeatureLoss):
                self.notes += [f"{name}: {line}" for line in loss.notes(recipe.batch)]

    def _match(self, student: Sequence[Stage], teacher: Sequence[Stage]) -> tuple[list[Stage], list[Stage]]:
        """(student's, teacher's) stages of all feature losses one after the other; each loss remembers which
        are its own.
        """
        ours: list[Stage] = []
        theirs: list[Stage] = []
        for index, (term, loss) in enumerate(zip(self.terms, self.losses, strict=True)):
            if isinstance(loss, FeatureLoss):
                words = term.stages or loss.stages
                pairs: list[tuple[Stage, Stage | None]]
                if loss.teacher_maps:
                    pairs = [*match(student, teacher, words)]
                else:
                    pairs = [(stage, None) for stage in choose(student, words)]
                mine, its = [s for s, _ in pairs], [t for _, t in pairs if t]
                self._parts[index] = (
                    slice(len(ours), len(ours) + len(mine)),
                    slice(len(theirs), len(theirs) + len(its)),
                )
                ours += mine
                theirs += its
                self.notes += [f"{self.names[index]}: {line}" for line in pair_lines(pairs)]
        return ours, theirs

    def _require_stored(self, task: Task) -> None:
        """Raise UsageError for a loss that reads more than stored answers hold."""
        for term, loss in zip(self.terms, self.losses, strict=True):
            if isinstance(loss, FeatureLoss):
                raise UsageError(
                    f"{term.name} compares feature maps, and --teacher-labels holds logits alone. Train with"
                    " the teacher itself, or choose a loss of logits"
                )
            if task.labels and not task.labels.header.layout.is_whole and losses.needs_all_logits(term.name):
                raise UsageError(
                    f"{term.name} needs the logits of all {len(task.class_names)} classes, and"
                    f" --teacher-labels holds the {task.labels.header.top} largest. Make labels with --top 0,"
                    " or choose another loss"
                )

    @torch.no_grad()
    def _prepare(self, model: nn.Module, teacher: Teacher | None, noise: Tensor) -> None:
        """Make the projectors for maps of these networks."""
        if not len(self.projectors) or teacher is None:
            return
        training = model.training
        model.eval()
        student_out = self.student(noise)
        model.train(training)
        teacher_out = teacher(noise)
        for loss, (ours, theirs) in zip(self.losses, self._parts, strict=True):
            if isinstance(loss, FeatureLoss):
                loss.prepare(_part(student_out, ours), _part(teacher_out, theirs), teacher.model)
        self.projectors.to(noise.device).train()

    def __call__(self, student: Outputs, teacher: Outputs, target: Tensor) -> tuple[Tensor, list[Tensor]]:
        """student and teacher as `student(images)` and `Teacher` give them; target (N,) or (N, K)."""
        values = [
            loss(_part(student, ours), _part(teacher, theirs), target)
            for loss, (ours, theirs) in zip(self.losses, self._parts, strict=True)
        ]
        return total(term.weight * value for term, value in zip(self.terms, values, strict=True)), values

    def parameters(self) -> list[nn.Parameter]:
        """What is learned beside the student."""
        return [parameter for parameter in self.projectors.parameters() if parameter.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        return self.projectors.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.projectors.load_state_dict(state)


@torch.no_grad()
def _first_logits(model: nn.Module, images: Tensor) -> Tensor:
    """The logits (N, K) that training begins with: in train mode, because the running statistics of fresh
    batch norms normalize nothing and a deep network's logits all but vanish in eval mode. Statistics and
    random numbers are left as they were.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = model.training
    with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
        logits = model.train()(images)
    model.train(training)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return logits


def _part(outputs: Outputs, part: slice) -> Outputs:
    return Outputs(outputs.logits, outputs.features[part])


def _parse(text: str) -> Term:
    """nkd:weight=0.5,temperature=1 as a Term."""
    name, _, rest = text.partition(":")
    losses.settings_of(name)  # the name first: its message suggests the nearest
    pieces = re.split(r",(?=\w+=)", rest) if rest else []
    stages = [
        piece for piece in pieces if piece.startswith("stages=")
    ]  # 2:3 would be a number of minutes in YAML
    settings = key_values(tuple(piece for piece in pieces if piece not in stages))
    weight = settings.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise UsageError(f"losses {text!r}: weight {weight!r}; expected a number, 0 or more")
    if stages and name not in losses.FEATURE:
        raise UsageError(f"losses {text!r}: {name} compares logits and has no stages. Leave them out")
    return Term(
        name, float(weight), settings, stages[-1].removeprefix("stages=").strip("\"'") if stages else ""
    )


def _column_names(names: Sequence[str]) -> list[str]:
    """kl, kl, fd -> kl, kl_2, fd."""
    return [
        name if (n := names[: index + 1].count(name)) == 1 else f"{name}_{n}"
        for index, name in enumerate(names)
    ]
