"""Dynamic sparse training, as SLaK's teachers are trained (Liu et al. 2022, arXiv:2207.03620): few weights at
a time, many tried.

In:  a network, its optimizer, when and how much to change.
Out: the same network, in which a fixed share of the weights is exactly 0 after every step; which ones changes
now and then.
Elsewhere: the training loop (distill.training.trainer). The network keeps its classes and its state-dict
keys.

Rules, where the published code leaves a choice or does otherwise:
- SNIP (Lee et al. 2019, arXiv:1810.02340) on one batch says how many weights each layer keeps; which ones is
drawn by chance.
- Counts are exact: as many weights grow as were dropped. (The published code draws each with a probability,
  so that the number is right on average and wanders.) A weight just dropped may grow again, then from 0 like
  any other.
- Gradients of masked weights are set to 0 before the step, so that momenta and second moments of masked
  weights are 0 and clipping sees only the weights that exist. (The published code masks weights, and SGD's
  momentum, after the step; Adam's moments go on there. Here a weight that grows has none yet: while its
  gradient keeps its sign, Adam's first few dozen steps for it are three to six times the usual.)
- The averaged (EMA) weights are masked too. A weight that has just grown enters the average with the value
  after its first step, as in the published code; it would otherwise be held near 0 for 1 / (1 - decay) steps.
- What is drawn depends on seed, update and layer alone, and rank 0's masks are everyone's: the same on every
rank and on resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from runtime.errors import ArtifactError, GateError, UsageError

from ..data.seeds import hash_seed
from ..processes import together

LARGE = 7
"""Longest side from which a depthwise kernel is a large one, pixels; SLaK's 5 x 5 beside the strips is
not."""
DENSE = 0.99
"""A layer that would keep this share of its weights or more gets no mask."""


class SparseTraining:
    """Masks on all 2-D and 4-D weights of `model`. In a training loop:

        sparse = SparseTraining(model, optimizer, total_updates=..., ema=ema.module)     # after all of these
        were built sparse.start(lambda: loss_of_one_batch(model))                                    # or
        load_state_dict, to resume for update in range(1, total_updates + 1):
            ...backward()
            sparse.before_step(update)                             # before clipping and optimizer.step,
            scaled gradients or not optimizer.step(); ema.update(model)
            sparse.after_step(update)

    `update` counts optimizer steps from 1.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        total_updates: int,
        sparsity: float = 0.4,
        update_every: int = 2000,
        prune_rate: float = 0.5,
        final_prune_rate: float = 0.005,
        growth: Literal["random", "gradient"] = "random",
        only_large: bool = False,
        seed: int = 0,
        ema: nn.Module | None = None,
    ) -> None:
        """sparsity: share of the weights that is 0, above 0 and below 1. update_every: optimizer steps
        between changes (SLaK-T 2000; S and B 100). prune_rate, final_prune_rate: share of a layer's weights
        dropped at a change, first and last, along a cosine over total_updates steps (SLaK-T 0.5; S and B
        0.3). growth: new weights by chance, or where the gradient is largest (RigL, Evci et al. 2020,
        arXiv:1911.11134). only_large: mask large depthwise kernels alone. ema: the network of averaged
        weights. Raises UsageError for a value out of range and for a network without such weights.
        """
        if not 0 < sparsity < 1 or not 0 <= final_prune_rate <= prune_rate <= 1:
            raise UsageError(
                f"sparsity {sparsity}, prune rate {prune_rate} to {final_prune_rate}: expected sparsity above"
                " 0 and below 1, rates from 0 to 1, the first not below the last"
            )
        if update_every < 1 or total_updates < 1:
            raise UsageError(
                f"sparsity update every {update_every} of {total_updates} steps: expected 1 or more"
            )
        if growth not in ("random", "gradient"):
            raise UsageError(f"growth {growth!r}: expected random or gradient")
        self.optimizer, self.sparsity, self.seed, self.growth = optimizer, sparsity, seed, growth
        self.total_updates, self.update_every = total_updates, update_every
        self.rates = prune_rate, final_prune_rate
        self.model = model
        self.weights = prunable(model, only_large)
        if not self.weights:
            raise UsageError(
                f"sparsity: {type(model).__name__} has no "
                + (f"depthwise kernel of side {LARGE} or more" if only_large else "2-D or 4-D weight")
                + " to mask"
            )
        averaged = dict(ema.named_parameters()) if ema is not None else {}
        self.averaged = {name: averaged[name] for name in self.weights if name in averaged}
        self.masks: dict[str, Tensor] = {}
        """{weight's name: bool, of its shape, True where it lives}; layers without a mask are dense."""
        self._gradients: dict[str, Tensor] = {}
        self._grown: dict[str, Tensor] = {}

    # beginning

    def start(self, loss: Callable[[], Tensor]) -> None:
        """Draw the first masks and apply them. loss() gives the loss of one batch in fp32 (the products with
        1e-6 layer scales vanish in fp16); what it leaves in the network's buffers is undone, the parameters'
        gradients are not touched.

        Raises GateError when a gradient is not finite or a layer would keep no weight at all.
        """
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        gradients = torch.autograd.grad(loss(), list(self.weights.values()), allow_unused=True)
        together.average_on_device(gradients)
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
        scores = [
            torch.zeros_like(weight) if gradient is None else (weight * gradient).detach().abs().float()
            for weight, gradient in zip(self.weights.values(), gradients, strict=True)
        ]
        counts = torch.tensor(snip_counts(scores, 1 - self.sparsity), device=scores[0].device)
        together.copy_from_main([counts])
        for number, ((name, weight), count) in enumerate(
            zip(self.weights.items(), counts.tolist(), strict=True)
        ):
            if count < 1:
                raise GateError(
                    f"sparsity {self.sparsity}: no weight of {name} would be left. Give a lower --sparsity"
                )
            if count < DENSE * weight.numel():
                drawn = torch.randperm(weight.numel(), generator=self._generator(0, number))[:count]
                self.masks[name] = _mask_of(drawn.to(weight.device), weight)
        together.copy_from_main(list(self.masks.values()))
        self._apply(self.masks)

    # every step

    @torch.no_grad()
    def before_step(self, update: int) -> None:
        """Between the backward pass and the optimizer: hide the gradients of masked weights."""
        if self.growth == "gradient" and self.changes_at(update):
            gradients = {name: self.weights[name].grad for name in self.masks}
            self._gradients = {name: grad.abs() for name, grad in gradients.items() if grad is not None}
        if self.changes_at(
            update - 1
        ):  # what grew then makes its first step now; until then its average is exactly 0
            self._grown = {
                name: (average == 0) & self.masks[name].to(average.device)
                for name, average in self.averaged.items()
                if name in self.masks
            }
        for name, mask in self.masks.items():
            gradient = self.weights[name].grad
            if gradient is not None:
                gradient.mul_(mask)

    @torch.no_grad()
    def after_step(self, update: int) -> None:
        """After the optimizer and the moving average: mask the weights and, where it is due,
        exchange some.
        """
        for name, grown in self._grown.items():
            average = self.averaged[name]
            average.copy_(torch.where(grown, self.weights[name].to(average), average))
        if any(
            bool(self.weights[name][grown.to(self.weights[name].device)].any())
            for name, grown in self._grown.items()
        ):
            # they moved; where they did not, the scaler skipped the step and their first one is still to come
            self._grown = {}
        self._apply(self.masks)
        if self.changes_at(update):
            self._exchange(update)

    def changes_at(self, update: int) -> bool:
        """Whether weights are exchanged after this step; not after the last one, what grows there would stay
        0.
        """
        return 0 < update < self.total_updates and update % self.update_every == 0

    def rate(self, update: int) -> float:
        """Share of a layer's weights that is dropped at `update`."""
        first, last = self.rates
        return (
            last
            + (first - last)
            * (1 + math.cos(math.pi * min(update, self.total_updates) / self.total_updates))
            / 2
        )

    def _exchange(self, update: int) -> None:
        kept: dict[str, Tensor] = {}
        for number, name in enumerate(self.weights):
            if name not in self.masks:
                continue
            weight, mask = self.weights[name], self.masks[name]
            alive = int(mask.sum())
            count = math.ceil(self.rate(update) * alive)
            kept[name] = mask & ~drop(weight, mask, count)
            if self.growth == "gradient":
                grown = by_gradient(self._gradients.get(name, torch.zeros_like(weight)), kept[name], count)
            else:
                grown = by_chance(kept[name], count, self._generator(update, number))
            self.masks[name] = kept[name] | grown
        self._gradients = {}
        together.copy_from_main([*kept.values(), *self.masks.values()])
        self._apply(kept)  # what grew starts from 0, also where it was dropped a moment ago
        for name, mask in kept.items():
            state = self.optimizer.state.get(self.weights[name], {})
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == mask.shape:  # momenta and second moments
                    value.mul_(mask.to(value.device))

    @torch.no_grad()
    def _apply(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            self.weights[name].mul_(mask)
            if name in self.averaged:
                self.averaged[name].mul_(mask.to(self.averaged[name].device))

    def _generator(self, update: int, layer: int) -> torch.Generator:
        """On the CPU, so that it draws the same on every device."""
        return torch.Generator().manual_seed(hash_seed(self.seed, update, layer))

    # what is known of it

    def density(self) -> dict[str, float]:
        """Share of each 2-D and 4-D weight's elements that live, 0 to 1; 1 for those without a mask."""
        return {
            name: float(self.masks[name].float().mean()) if name in self.masks else 1.0
            for name in self.weights
        }

    @property
    def overall_density(self) -> float:
        """The same of all of them together."""
        total = sum(weight.numel() for weight in self.weights.values())
        return 1 - sum(int((~mask).sum()) for mask in self.masks.values()) / total

    def summary(self) -> str:
        """One line for a person."""
        total = sum(weight.numel() for weight in self.weights.values())
        where = "at random" if self.growth == "random" else "where the gradient is largest"
        return (
            f"{1 - self.overall_density:.1%} of {total:,} weights are 0, in {len(self.masks)} of"
            f" {len(self.weights)} layers; every {self.update_every} steps some are dropped and others grow"
            f" {where}"
        )

    def state_dict(self) -> dict[str, Any]:
        """{"masks": {name: uint8, eight elements a byte}}; loads with weights_only."""
        return {
            "masks": {
                name: torch.from_numpy(np.packbits(mask.cpu().numpy())) for name, mask in self.masks.items()
            }
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put saved masks back; the weights, averages and optimizer state that were saved with them are
        masked already.

        Raises ArtifactError when they are of another network.
        """
        masks = {}
        for name, packed in state["masks"].items():
            weight = self.weights.get(name)
            if weight is None or packed.numel() != -(-weight.numel() // 8):
                raise ArtifactError(
                    f"sparsity: the saved mask of {name} does not fit this network. Resume the run with its"
                    " own recipe"
                )
            bits = np.unpackbits(packed.numpy(), count=weight.numel()).astype(bool)
            masks[name] = torch.from_numpy(bits).view(weight.shape).to(weight.device)
        self.masks = masks


def prunable(model: nn.Module, only_large: bool = False) -> dict[str, nn.Parameter]:
    """{name: weight} of the linear and convolutional weights; only_large: of depthwise kernels with a side of
    LARGE or more.
    """
    weights = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.endswith("weight") and parameter.ndim in (2, 4) and parameter.requires_grad
    }
    if only_large:
        return {
            name: weight
            for name, weight in weights.items()
            if weight.ndim == 4 and weight.shape[1] == 1 and max(weight.shape[2:]) >= LARGE
        }
    return weights


def snip_counts(scores: Sequence[Tensor], density: float) -> list[int]:
    """How many weights each layer keeps: its share of the `density` * N largest scores |w * dL/dw| of all N
    together.

    A layer whose scores are all 0 (behind a zero-initialized scale) says nothing about itself: it keeps
    `density` of its own, and the others are ranked without it. Where the ranking ends among equal scores,
    layers share them in proportion. Raises GateError for a score that is not finite.
    """
    if not all(bool(score.isfinite().all()) for score in scores):
        raise GateError(
            "sparsity: the gradients of the first batch are not finite. Check the data, or start with"
            " --amp off"
        )
    silent = [not bool(score.any()) for score in scores]
    ranked = [score.flatten() for score, says_nothing in zip(scores, silent, strict=True) if not says_nothing]
    if not ranked:
        return [round(density * score.numel()) for score in scores]
    together = torch.cat(ranked)
    keep = max(1, round(density * together.numel()))
    last = together.kthvalue(together.numel() - keep + 1).values  # the smallest score that is kept
    above = int((together > last).sum())
    share = (keep - above) / int((together == last).sum())

    def kept(score: Tensor) -> int:
        return int((score > last).sum()) + round(share * int((score == last).sum()))

    return [
        round(density * score.numel()) if says_nothing else kept(score)
        for score, says_nothing in zip(scores, silent, strict=True)
    ]


def drop(weight: Tensor, mask: Tensor, count: int) -> Tensor:
    """bool, True for the `count` smallest |weight| under the mask; of equal ones the first."""
    return _smallest(torch.where(mask, weight.detach().abs().float(), torch.inf), count)


def by_gradient(gradient: Tensor, mask: Tensor, count: int) -> Tensor:
    """bool, True for the `count` largest |gradient| outside the mask; one that is not finite (an overflown
    step) counts as 0.
    """
    size = torch.nan_to_num(gradient.abs().float(), nan=0.0, posinf=0.0)
    return _smallest(torch.where(mask, torch.inf, -size), count)


def by_chance(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """bool, True for `count` places outside the mask, drawn at random."""
    free = (~mask).flatten().nonzero().flatten()
    return _mask_of(free[torch.randperm(len(free), generator=generator)[:count].to(free.device)], mask)


def _smallest(values: Tensor, count: int) -> Tensor:
    """bool, True for the `count` smallest; of equal ones the first, so that every device and run chooses the
    same.
    """
    flat = values.flatten()
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    if count:
        last = flat.kthvalue(count).values
        chosen = flat < last
        chosen[(flat == last).nonzero().flatten()[: count - int(chosen.sum())]] = True
    return chosen.view(values.shape)


def _mask_of(positions: Tensor, weight: Tensor) -> Tensor:
    """bool of the weight's shape, True at the flat positions; contiguous, whatever the weight's memory
    format.
    """
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[positions] = True
    return mask.view(weight.shape)
