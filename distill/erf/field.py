"""The effective receptive field (ERF): how far around its center the last map of a network looks.

In:  a network, images as batches normalized for it.
Out: an `Erf`: the score matrix (H, W), and the areas of the centered squares that hold 20, 30, 50 and 99 % of
it.
Elsewhere: the command `distill erf` and its files (distill.erf.report), drawing (distill.erf.heatmap).

The score matrix (Luo et al. 2016, arXiv:1701.04128, as measured by Ding et al. 2022, arXiv:2203.06717) is the
mean over images of

    sum over colors of relu( d sum_c relu(map[c, h // 2, w // 2]) / d input )

Its reference measure takes log10(score + 1) and is not scale-invariant: a network whose scores are a thousand
times larger has another area ratio though it looks at the same places. So a second measure stands beside it,
on the score itself; see `Erf`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runtime.errors import GateError, Large2SmallError, UsageError
from runtime.images import ImageSet
from runtime.preprocess import Preprocess

from ..data.batches import collate
from ..data.loaders import EvalSet
from ..data.sets import StreamSet
from ..evaluate import require_readable
from ..processes import together

OVER = object()
"""Behind the last batch."""
THRESHOLDS = (0.2, 0.3, 0.5, 0.99)
"""Shares of the whole that the squares must exceed, 0 to 1."""


@dataclass(frozen=True)
class Squares:
    """For every threshold the smallest square around pixel (H // 2, W // 2) that holds more than
    that share.
    """

    sides: tuple[int | None, ...]
    """Pixels, odd, 3 or more; None: not reached, because the largest square that is tried leaves the outer
    rows out."""
    ratios: tuple[float | None, ...]
    """side**2 / (H * W)."""


@dataclass(frozen=True)
class Erf:
    """A measured network."""

    score: np.ndarray
    """(H, W) float32: the mean over images."""
    images: int
    """Images in that mean."""
    skipped: int
    """Images left out because their gradient was not finite."""
    thresholds: tuple[float, ...]
    reference: Squares
    """Shares of log10(score + 1), as published. Depends on the scale of the scores and on the size of the
    image."""
    scale_free: Squares
    """Shares of the score itself, sum(score in the square) / sum(score): the same for score and a * score, a
    > 0. It is what the reference measure tends to for small scores, where log10(score + 1) is proportional to
    the score."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the matrix."""
        return {
            "input_size": list(self.score.shape),
            "images": self.images,
            "skipped_images": self.skipped,
            "thresholds": list(self.thresholds),
            "largest_score": float(self.score.max()),
            "reference": {"sides": list(self.reference.sides), "area_ratios": list(self.reference.ratios)},
            "scale_free": {"sides": list(self.scale_free.sides), "area_ratios": list(self.scale_free.ratios)},
        }


def measure(
    model: nn.Module,
    batches: Iterable[Tensor | None],
    device: torch.device,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    after_batch: Callable[[int], None] = lambda done: None,
) -> Erf:
    """The ERF of `model`, already on `device`, over batches (N, 3, H, W) float32, all of one size, normalized
    for it; of several processes each has those that `read` gives it.

    The network runs in eval mode and comes back as it was; its parameters get no gradients.
    after_batch(images so far) may raise to stop. Raises GateError when no image gives a finite gradient,
    UsageError when the network has no last map.
    """
    given, total, images, skipped, is_over = iter(batches), None, 0, 0, False
    with frozen(model):
        while not is_over:
            part = None
            with together.agreed():
                batch = next(given, OVER)
                is_over = batch is OVER
                if isinstance(batch, Tensor):
                    part = _sum_of(model, batch.to(device))
            for each in together.to_main(part):  # in the order of one process
                if each is not None:
                    total = each.scores if total is None else total + each.scores
                    images, skipped = images + each.images, skipped + each.skipped
            if not is_over:
                after_batch(images + skipped)

    def mean() -> Erf:
        if total is None or not images:
            raise GateError(
                f"none of {skipped} images gives a finite gradient. Check the weights and the preprocessing"
            )
        return from_score((total / images).astype(np.float32), images, skipped, thresholds)

    return together.from_main(mean)


@dataclass(frozen=True)
class _Sum:
    """Of a batch."""

    scores: np.ndarray
    """(H, W) float64."""
    images: int
    skipped: int


def _sum_of(model: nn.Module, images: Tensor) -> _Sum:
    gradient = input_gradient(model, images)
    finite = gradient.flatten(1).isfinite().all(dim=1)
    over_images_and_colors = gradient[finite].relu().double().sum(dim=(0, 1))
    return _Sum(over_images_and_colors.cpu().numpy(), int(finite.sum()), int((~finite).sum()))


def from_score(
    score: np.ndarray, images: int = 1, skipped: int = 0, thresholds: Sequence[float] = THRESHOLDS
) -> Erf:
    """Both measures of a score matrix (H, W), values 0 or more."""
    exact = score.astype(np.float64)
    return Erf(
        score,
        images,
        skipped,
        tuple(thresholds),
        squares(np.log10(exact + 1), thresholds),
        squares(exact, thresholds),
    )


def squares(amount: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> Squares:
    """The smallest centered squares of side 2 i + 1, i = 1 .. min(H, W) // 2 - 1, with more than each share
    of sum(amount).

    amount (H, W), 0 or more. Where all of it is 0 nothing is reached.
    """
    height, width = amount.shape
    ring = np.maximum(np.abs(np.arange(height) - height // 2)[:, None], np.abs(np.arange(width) - width // 2))
    inside = np.cumsum(np.bincount(ring.ravel(), weights=amount.ravel()))  # [i]: the square of side 2 i + 1
    tried = range(1, min(height, width) // 2)
    sides = tuple(
        next((2 * i + 1 for i in tried if inside[i] > share * inside[-1]), None) for share in thresholds
    )
    return Squares(sides, tuple(None if side is None else side**2 / (height * width) for side in sides))


def input_gradient(model: nn.Module, images: Tensor) -> Tensor:
    """d sum_c relu(map[c, h // 2, w // 2]) / d images, (N, 3, H, W); in eval mode no image changes
    another's.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        feature = last_map(model, images)
        height, width = feature.shape[2:]
        center = feature[:, :, height // 2, width // 2].relu().sum()
        return torch.autograd.grad(center, images)[0]


def last_map(model: Any, images: Tensor) -> Tensor:
    """The last map (N, C, h, w) before the final norm and pooling.

    Of timm's networks and this project's: the last of `forward_intermediates`, which makes a map of tokens
    and drops class and register tokens. Of others: what the module named last in `feature_info` puts out.
    Raises UsageError where there is neither.
    """
    if hasattr(model, "forward_intermediates"):
        found = model.forward_intermediates(
            images, indices=1, norm=False, output_fmt="NCHW", intermediates_only=True
        )[-1]
    else:
        found = _output_of_last_stage(model, images)
    if not isinstance(found, Tensor) or found.ndim != 4:
        raise UsageError(
            f"{type(model).__name__}: its last stage gives {getattr(found, 'shape', type(found).__name__)}; "
            "expected a map (N, C, h, w). Give the network forward_intermediates, as timm's have it"
        )
    return found


def _output_of_last_stage(model: nn.Module, images: Tensor) -> Any:
    info = getattr(model, "feature_info", None)
    if not info:
        raise UsageError(
            f"{type(model).__name__}: names no stages (neither forward_intermediates nor feature_info), so"
            " its last map is not known. Register it with timm"
        )
    kept = []
    hook = model.get_submodule(info[-1]["module"]).register_forward_hook(
        lambda module, given, output: kept.append(output)
    )
    try:
        model(images)
    finally:
        hook.remove()
    return kept[-1]


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and parameters without gradients (a layer then computes only that of its input); both put
    back afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def choose(images: ImageSet, count: int, seed: int) -> list[int]:
    """Indices of `count` images (all, if there are fewer), the same for the same seed. Raises UsageError for
    streamed data.
    """
    if isinstance(images, StreamSet):
        raise UsageError(
            f"{images.name}: streamed data cannot be drawn from. Give a folder, npz:FILE or torch/NAME:DIR"
        )
    return sorted(np.random.default_rng(seed).permutation(len(images))[:count].tolist())


def resized(preprocess: Preprocess, height: int, width: int) -> Preprocess:
    """The same normalization, but the whole image resized to height x width: nothing is cropped away."""
    return replace(preprocess, input_size=(3, height, width), crop_pct=1.0, crop_mode="squash")


def read(
    images: ImageSet, indices: Sequence[int], preprocess: Preprocess, batch: int, skip_bad: bool = False
) -> Iterator[Tensor | None]:
    """Batches (n, 3, H, W) float32 of the chosen images. Of n processes each has every n-th
    batch, and None where it has none or none of its images can be read. Raises DataError for an unreadable
    one unless skip_bad.
    """
    items, processes = EvalSet(images, preprocess), together.size()
    for turn in range(0, len(indices), batch * processes):
        start = turn + batch * together.rank()
        part = collate([items[index] for index in indices[start : start + batch]])
        if isinstance(part, Large2SmallError):
            raise part
        require_readable(part.bad, skip_bad)
        if len(part.labels) or processes > 1:
            yield part.images if len(part.labels) else None
