"""What a step minimizes besides the labels' cross-entropy: the recipe's distillation losses, weighted.

In:  a Recipe, the student and the teacher.
Out: the weighted sum and each loss for itself; the learnable parts of feature losses (projectors), which train with the student;
     lines for a person: which stages are matched, where a loss degenerates.
Elsewhere: the losses (distill.losses), the taps and the matching (distill.features), the step (distill.trainer).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import UsageError

from . import losses
from .features import Stage, Taps, describe, match
from .losses import Outputs
from .recipe import Recipe, key_values
from .teacher import Teacher


@dataclass(frozen=True)
class Term:
    """One loss of the sum."""

    name: str
    weight: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)
    stages: str = ""
    """For feature losses: last, all, or pairs; empty is the loss's own default."""


def terms_of(recipe: Recipe) -> list[Term]:
    """The losses that a recipe names, by `losses` or by `kd_loss` and `feature_loss`. Raises UsageError for one that is none."""
    if recipe.losses:
        return [_parse(text) for text in recipe.losses]
    terms = []
    if recipe.kd_loss != "none":
        known = losses.settings_of(recipe.kd_loss)
        shared = {"temperature": recipe.kd_temperature, "gamma": recipe.kd_gamma}
        settings = {key: value for key, value in shared.items() if value is not None and key in known}
        terms.append(Term(recipe.kd_loss, recipe.distill_loss_weight, settings | key_values(recipe.kd_args)))
    if recipe.feature_loss != "none":
        terms.append(Term(recipe.feature_loss, recipe.feature_weight, key_values(recipe.feature_args), recipe.feature_stages))
    return terms


class Objective:
    """`objective(student, teacher, target)` -> (weighted sum, [each loss]); `objective.student(images)` -> the student's Outputs.

    Projectors are made here, from the maps of two images of noise, before the optimizer is built: `parameters()` belong to it and
    `state_dict()` to last.pth, not to best.pth. Raises UsageError for a loss that cannot work with these networks or this batch.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, forward: Callable[[Tensor], Tensor], teacher: Teacher,
                 input_size: Sequence[int], num_classes: int, device: torch.device) -> None:
        self.terms = terms_of(recipe)
        self.notes: list[str] = []
        """Lines to show before training."""
        self.losses = [losses.create(term.name, **term.settings) for term in self.terms]
        self.projectors = nn.ModuleList([each for each in self.losses if isinstance(each, nn.Module)])
        self.names = _column_names([term.name for term in self.terms])
        self._parts = [slice(0, 0)] * len(self.terms)
        self.student: Callable[[Tensor], Outputs] = lambda images: Outputs(forward(images))
        if len(self.projectors):
            self.student = taps = Taps(model, input_size, forward)
            if teacher.taps:
                teacher.taps.close()
            teacher.taps = Taps(teacher.model, teacher.preprocess.input_size, teacher.forward)
            pairs = self._match(taps.stages, teacher.taps.stages)
            taps.use(pair[0] for pair in pairs)
            teacher.taps.use(pair[1] for pair in pairs)
        student_out = self._prepare(model, teacher, input_size, device)
        for term in self.terms:
            self.notes += losses.check(term.name, num_classes, recipe.batch, student_out.logits, **term.settings)

    def _match(self, student: Sequence[Stage], teacher: Sequence[Stage]) -> list[tuple[Stage, Stage]]:
        """Pairs of all feature losses one after the other; each loss remembers which are its own."""
        pairs: list[tuple[Stage, Stage]] = []
        for index, (term, loss) in enumerate(zip(self.terms, self.losses, strict=True)):
            if isinstance(loss, nn.Module):
                mine = match(student, teacher, term.stages or loss.stages)
                self._parts[index] = slice(len(pairs), len(pairs) + len(mine))
                pairs += mine
                self.notes += [f"{self.names[index]}: {line}" for line in describe(mine)]
        return pairs

    @torch.no_grad()
    def _prepare(self, model: nn.Module, teacher: Teacher, input_size: Sequence[int], device: torch.device) -> Outputs:
        """Make the projectors for maps of these networks; returns the student's outputs for two images of noise."""
        noise = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0)).to(device)
        training = model.training
        model.eval()
        student_out = self.student(noise)
        model.train(training)
        if not len(self.projectors):
            return student_out
        teacher_out = teacher(noise)
        for loss, part in zip(self.losses, self._parts, strict=True):
            if isinstance(loss, nn.Module):
                loss.prepare(_part(student_out, part), _part(teacher_out, part), teacher.model)
        self.projectors.to(device).train()
        return student_out

    def __call__(self, student: Outputs, teacher: Outputs, target: Tensor) -> tuple[Tensor, list[Tensor]]:
        """student and teacher as `student(images)` and `Teacher` give them; target (N,) or (N, K)."""
        values = [loss(_part(student, part), _part(teacher, part), target)
                  for loss, part in zip(self.losses, self._parts, strict=True)]
        return sum(term.weight * value for term, value in zip(self.terms, values, strict=True)), values

    def parameters(self) -> list[nn.Parameter]:
        """What is learned beside the student."""
        return [parameter for parameter in self.projectors.parameters() if parameter.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        return self.projectors.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.projectors.load_state_dict(state)


def _part(outputs: Outputs, part: slice) -> Outputs:
    return Outputs(outputs.logits, outputs.features[part])


def _parse(text: str) -> Term:
    """nkd:weight=0.5,temperature=1 as a Term."""
    name, _, rest = text.partition(":")
    losses.settings_of(name)  # the name first: its message suggests the nearest
    pieces = re.split(r",(?=\w+=)", rest) if rest else []
    stages = [piece for piece in pieces if piece.startswith("stages=")]  # 2:3 would be a number of minutes in YAML
    settings = key_values(tuple(piece for piece in pieces if piece not in stages))
    weight = settings.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight >= 0:
        raise UsageError(f"losses {text!r}: weight {weight!r}; expected a number, 0 or more")
    if stages and name not in losses.FEATURE:
        raise UsageError(f"losses {text!r}: {name} compares logits and has no stages. Leave them out")
    return Term(name, float(weight), settings, stages[-1].removeprefix("stages=").strip("\"'") if stages else "")


def _column_names(names: Sequence[str]) -> list[str]:
    """kl, kl, fd -> kl, kl_2, fd."""
    return [name if (n := names[:index + 1].count(name)) == 1 else f"{name}_{n}" for index, name in enumerate(names)]
