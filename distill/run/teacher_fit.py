"""A teacher of other classes is fitted to the data before it teaches: its classifier, or all of it.

In:  a teacher's network with a new classifier (distill.teacher.Source), and the training images.
Out: the same with a classifier that knows the data's classes, and a checkpoint of it for RUN/teacher.
Elsewhere: reading the teacher (distill.teacher), the run (distill.run.job).

The head is a multinomial logistic regression on the network's own features, which are computed once, without
augmentation but mirrored as well. Its weight decay is chosen on a fifth of the images, then it is fitted to
all of them: the linear evaluation of pretrained features by L-BFGS of Kornblith et al., "Do Better ImageNet
Models Transfer Better?", CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.artifact import require_same_classes
from runtime.cli.terminal import loading, progress_bar
from runtime.errors import ArtifactError, UsageError
from runtime.images import ImageSet
from runtime.images.sets import Subset

from .. import checkpoint as checkpoints
from .. import models
from ..data import eval_loader
from ..data.sets import StreamSet
from ..evaluate import require_readable
from ..models import classifier
from ..recipe import Recipe
from ..teacher import Origin, Source

SAVED = "teacher/best.pth"
"""Where a run keeps its fitted teacher."""
DECAYS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Weight decays that are tried, for standardized features."""
STEPS = 100
"""At most so many iterations of L-BFGS."""
MOST_VALUES = 2**28
"""Features that are kept at once, 1 GiB in float32; of more images as many as fit are drawn."""


@dataclass(frozen=True)
class Features:
    """What goes into one layer that makes logits."""

    values: Tensor
    """(N, D) float32."""
    labels: Tensor
    """(N,) int64."""
    images: Tensor
    """(N,) int64: which image a row is from; a mirrored one has the same number."""


def fit_head(source: Source, train: ImageSet, recipe: Recipe, device: torch.device) -> Source:
    """The teacher with a fitted classifier. Raises UsageError where the classifier is
    not a linear layer.
    """
    names = classifier.layers_of(source.model)
    layers: dict[str, Any] = {name: source.model.get_submodule(name) for name in names}
    if not layers or not all(isinstance(layer, nn.Linear) for layer in layers.values()):
        raise UsageError(
            f"teacher {source.origin.model}: its classifier is not a linear layer, so it cannot be fitted"
            " alone. Fit the whole network: --teacher-fit all"
        )
    found = features_of(source, layers, as_many_as_fit(train, layers, recipe), recipe, device)
    words = []
    for name, features in found.items():
        weight, bias, decay, accuracy = logistic_regression(features, len(train.class_names))
        layer = layers[name]
        with torch.no_grad():
            layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.copy_(bias)
        words.append(f"{name} with weight decay {decay:g}, {accuracy:.2f} % on the fifth it was chosen by")
    line = (
        f"classifier fitted to {len(next(iter(found.values())).labels)} feature vectors: {'; '.join(words)}"
    )
    origin = replace(source.origin, fitted=line)
    return replace(source, origin=origin, is_new=False, notes=[*source.notes, line])


def as_many_as_fit(train: ImageSet, layers: Mapping[str, Any], recipe: Recipe) -> ImageSet:
    """The training images, or as many drawn from all of them as MOST_VALUES allows. Raises UsageError for a
    stream.
    """
    if isinstance(train, StreamSet):
        raise UsageError(
            f"{train.name}: streamed images cannot be read twice, so no classifier is fitted to them. Give a"
            " teacher of these classes, or --teacher-fit all"
        )
    of_an_image = sum(layer.in_features for layer in layers.values()) * (1 + (recipe.hflip > 0))
    most = max(1, MOST_VALUES // of_an_image)
    if len(train) <= most:
        return train
    drawn = np.random.default_rng(recipe.seed).permutation(len(train))[:most]
    return Subset(train, np.sort(drawn))


def features_of(
    source: Source,
    layers: dict[str, nn.Module],
    train: ImageSet,
    recipe: Recipe,
    device: torch.device,
) -> dict[str, Features]:
    """What goes into each of `layers` for the training images, as they are and mirrored."""
    model = source.model.to(device).eval()
    values: dict[str, list[Tensor]] = {name: [] for name in layers}
    labels, numbers = [], []
    loader = eval_loader(train, source.preprocess, recipe.eval_batch, recipe.workers, device)
    mirrored = recipe.hflip > 0
    with (
        torch.inference_mode(),
        _inputs_of(layers) as inputs,
        progress_bar("teacher: features", len(train)) as advance,
    ):
        done = 0
        for batch in loader:
            require_readable(batch.bad, recipe.skip_bad_images)
            number = torch.arange(done, done + len(batch.labels))
            done += len(batch.labels)
            for images in (batch.images, batch.images.flip(3))[: 1 + mirrored]:
                model(images.to(device))
                labels.append(batch.labels)
                numbers.append(number)
                for name in layers:
                    values[name].append(inputs[name].float().cpu())
            advance(done)
    rows, images = torch.cat(labels), torch.cat(numbers)
    return {name: Features(torch.cat(each), rows, images) for name, each in values.items()}


@contextmanager
def _inputs_of(layers: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What went into each layer at the last forward pass, by name."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        return layers[name].register_forward_pre_hook(lambda _, given: seen.__setitem__(name, given[0]))

    handles = [keep(name) for name in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]


@loading("fitting the teacher's head")
def logistic_regression(features: Features, classes: int) -> tuple[Tensor, Tensor, float, float]:
    """(weight (K, D), bias (K,), the chosen weight decay, accuracy in percent on the held-out fifth).

    Every fifth image of a class is held out to choose the weight decay; then all are used.
    """
    mean, spread = features.values.mean(0), features.values.std(0).clamp_min(1e-6)
    x, y = (features.values - mean) / spread, features.labels
    held = _every_fifth_of_a_class(features)
    scores = {}
    for decay in DECAYS if held.any() else DECAYS[3:4]:
        weight, bias = _solve(x[~held], y[~held], classes, decay)
        right = (F.linear(x[held], weight, bias).argmax(1) == y[held]).double().mean() if held.any() else 0.0
        scores[decay] = 100 * float(right)
    best = max(scores, key=lambda decay: (scores[decay], decay))
    weight, bias = _solve(x, y, classes, best)
    weight = weight / spread
    return weight, bias - weight @ mean, best, scores[best]


def _every_fifth_of_a_class(features: Features) -> Tensor:
    """(N,) bool: every fifth image of each class, with its mirror image."""
    held = torch.zeros(len(features.labels), dtype=torch.bool)
    for each in features.labels.unique():
        of_class = features.labels == each
        chosen = features.images[of_class].unique()[4::5]
        held |= of_class & torch.isin(features.images, chosen)
    return held


def _solve(x: Tensor, y: Tensor, classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """The minimum of mean cross-entropy + decay / 2 x (squared weights), from zero."""
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def save(source: Source, class_names: list[str], folder: Path) -> None:
    """Write RUN/teacher/best.pth, a checkpoint like any other."""
    weights = {key: value.detach().cpu().contiguous() for key, value in source.model.state_dict().items()}
    lineage = {"fitted_from": source.origin.to_dict(), "converted": source.notes}
    checkpoints.save(
        checkpoints.Checkpoint(
            source.origin.model,
            source.model_args,
            weights,
            source.preprocess,
            class_names,
            "teacher",
            {},
            lineage,
        ),
        folder / SAVED,
    )


def saved(folder: Path, class_names: list[str]) -> Source | None:
    """The fitted teacher that a run kept, or None. Raises ArtifactError where it is of other classes."""
    path = folder / SAVED
    if not path.is_file():
        return None
    found = checkpoints.load(path)
    if found.role != "teacher" or "fitted_from" not in found.lineage:
        return None
    require_same_classes(found.class_names, str(path), class_names, "data")
    model = models.build(found.model, len(class_names), found.model_args)
    checkpoints.load_weights(model, found)
    try:
        origin = Origin(**found.lineage["fitted_from"])
    except TypeError as error:
        raise ArtifactError(f"{path}: damaged checkpoint (fitted_from: {error})") from error
    return Source(model, found.model_args, found.preprocess, origin, False, [f"fitted before, {path}"])
