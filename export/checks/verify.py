"""The checks every artifact must pass before it is written: the same numbers as torch, and accuracy on real
labeled images.

In:  logits of the checkpoint's own network; the artifact, opened by `runtime.load` as an application would.
Out: the numbers, for the metadata; GateError when a check does not hold.
Elsewhere: making the artifact (export.graph.from_torch, export.int8.quantize), which layers lose how much
(export.int8.budget), speed (bench).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from runtime.artifact import Metadata
from runtime.errors import GateError
from runtime.predictor import Predictor, load
from runtime.records import Agreement, Judged, WorstClass

from .rounding import Exact

BATCH_SIZES = (1, 2, 16)
"""At which ONNX is compared with torch; 1 and 2 on some images, the largest on all."""

INT8_TOLERANCE = 0.05
"""Largest difference between batch 1 and batch N of one int8 image, as a share of the logit scale. Kernels
for other batch sizes sum in another order; in int8 the last bit of a sum can move a value across a rounding
border, which is a whole step."""

HALF_TOLERANCE = 0.01
"""The same for fp16 without int8: a sum in another order moves a stored value by one step of half, 1/2048 of
itself at most; 20 such steps at the logit scale. (ONNX Runtime's CPU engine on ResNet-20, ResNet-56,
MobileNetV2: fp16 exactly 0, int8 1e-7.)"""

CONFIDENCE = 0.95
"""Of every interval."""

CHANCE_LEVEL = 0.01
"""A network that only guesses passes for better than chance this often."""


@dataclass(frozen=True)
class Match:
    """How two sets of logits for the same images compare."""

    images: int
    max_abs: float
    """Largest difference between two logits."""
    logit_scale: float
    """Largest |logit| of the reference, at least 1."""
    top1_agreement: float
    """Share of images with the same best class, percent."""
    float64_max_abs: float | None = None
    """Largest difference to the network in float64, where only rounding explains `max_abs`."""
    torch_float64_max_abs: float | None = None
    """That of torch's own fp32."""

    def to_record(self) -> Agreement:
        """For the metadata."""
        return Agreement(**asdict(self))


@dataclass(frozen=True)
class Accuracy:
    """A candidate against a reference on the same labeled images; percent and points of top-1."""

    images: int
    reference_top1: float
    candidate_top1: float
    drop: float
    """reference_top1 - candidate_top1, points; negative when the candidate is better."""
    drop_low_points: float
    drop_high_points: float
    """The 95 % interval of the drop on images like these (`paired_interval`)."""
    right_to_wrong: int
    """Images that the reference gets right and the candidate gets wrong."""
    wrong_to_right: int
    mcnemar_p: float
    """How often two equally good networks would differ at least as much as these two (`mcnemar_p`)."""
    agreement: float
    """Share of images for which both choose the same class, percent."""
    kl_nats: float
    """Mean KL(reference || candidate) per image."""
    max_abs: float
    """Largest difference between a logit of the one and of the other."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"drop_points": self.drop}


class Flips(NamedTuple):
    """What becomes of n labeled images when another network judges them."""

    images: int
    right_to_wrong: int
    wrong_to_right: int

    @property
    def drop(self) -> float:
        """Points of top-1."""
        return 100 * (self.right_to_wrong - self.wrong_to_right) / self.images


def require_equal(
    reference: np.ndarray, logits: np.ndarray, atol: float, what: str, exact: Exact | None = None
) -> Match:
    """Raise GateError unless every logit is within `atol` times the logit scale and every top-1 is the same;
    or, with `exact`, unless the logits are as near to float64 as the reference is.

    reference, logits (N, K). The scale is max(1, largest |reference|): float32 rounding grows with the
    numbers themselves.
    """
    if not (np.isfinite(reference).all() and np.isfinite(logits).all()):
        raise GateError(f"{what}: logits are not finite. The checkpoint's network overflows on these images")
    scale = max(1.0, float(np.abs(reference).max()))
    found = Match(
        len(reference),
        float(np.abs(reference - logits).max()),
        scale,
        agreement(reference, logits),
    )
    if found.max_abs > atol * scale or found.top1_agreement < 100:
        rounding = exact.rounding(reference, logits) if exact else None
        if rounding and rounding.explains:
            return replace(
                found, float64_max_abs=rounding.max_abs, torch_float64_max_abs=rounding.torch_max_abs
            )
        from_float64 = (
            f" From float64 torch is {rounding.torch_max_abs:.3g} away, and this {rounding.max_abs:.3g}."
            if rounding
            else ""
        )
        raise GateError(
            f"{what}: largest logit difference {found.max_abs:.3g} (allowed {atol * scale:.3g} = {atol:g} x"
            f" logit scale {scale:.3g}), same top-1 on {found.top1_agreement:.2f} % of {found.images} images."
            f"{from_float64} Not the same network: report the architecture, or allow more with --atol"
        )
    return found


def parity(
    predictor: Predictor,
    reference: np.ndarray,
    images: np.ndarray,
    atol: float,
    exact: Exact | None = None,
) -> Agreement:
    """ONNX against torch at each of BATCH_SIZES, and equal rows for equal images. Raises GateError.

    reference (N, K) are the unmerged network's logits for images (N, C, H, W), preprocessed.
    """
    worst: list[Match] = []
    for size in BATCH_SIZES:
        count = len(images) if size == max(BATCH_SIZES) else min(len(images), 8 * size)
        logits = predictor.logits_in_batches(images[:count], size, finite=False)
        what = f"ONNX against torch at batch {size}"
        worst.append(require_equal(reference[:count], logits, atol, what, exact))
    spread = require_consistent(predictor, images, atol)
    largest = max(worst, key=lambda found: found.max_abs)
    return replace(
        worst[-1].to_record(),
        max_abs=largest.max_abs,
        float64_max_abs=largest.float64_max_abs,
        torch_float64_max_abs=largest.torch_float64_max_abs,
        atol=atol,
        batch_sizes=list(BATCH_SIZES),
        batch_spread=spread,
    )


def tolerance(precision: str) -> float:
    """For `consistency` of an artifact in this precision: int8, int8+fp16 or fp16."""
    return INT8_TOLERANCE if "int8" in precision else HALF_TOLERANCE


def require_consistent(predictor: Predictor, images: np.ndarray, tolerance: float) -> float:
    """`consistency`'s largest difference, one number."""
    found = consistency(predictor, images, tolerance)
    return max(found["row_spread"], found["batch_spread"])


def consistency(predictor: Predictor, images: np.ndarray, tolerance: float) -> dict[str, Any]:
    """Raise GateError where an image's logits depend on its neighbors by more than `tolerance` times the
    logit scale.

    row_spread: largest difference between rows of a batch that holds one image again and again. batch_spread:
    between an image alone and the same image in a batch. top1_changed: images whose best class is another one
    in a batch.
    """
    some = images[: max(BATCH_SIZES)]
    alone = predictor.logits_in_batches(some, 1, finite=False)
    together = predictor.logits(np.ascontiguousarray(some), finite=False)
    repeated = predictor.logits(np.repeat(some[:1], len(some), axis=0), finite=False)
    row_spread = float(np.abs(repeated - repeated[:1]).max())
    batch_spread = float(np.max([np.abs(alone - together).max(), np.abs(repeated - alone[:1]).max()]))
    allowed, worst = tolerance * max(1.0, float(np.abs(alone).max())), np.max([row_spread, batch_spread])
    if not worst <= allowed:  # nan is not, either
        raise GateError(
            f"the same image gives logits that differ by {worst:.3g} at another place or batch size (allowed "
            f"{allowed:.3g}). The graph mixes images of a batch; report the architecture"
        )
    return {
        "images": len(some),
        "row_spread": row_spread,
        "batch_spread": batch_spread,
        "allowed": allowed,
        "top1_changed": int((alone.argmax(1) != together.argmax(1)).sum()),
    }


def require_repeatable(content: bytes, path: Path, images: np.ndarray) -> dict[str, Any]:
    """Raise GateError unless one batch, twice in one session and once in a new one, gives the same logits bit
    for bit.
    """
    with opened(content, path) as predictor:
        first, second = predictor.logits(images, finite=False), predictor.logits(images, finite=False)
    with opened(content, path) as predictor:
        fresh = predictor.logits(images, finite=False)
    for again, when in ((second, "run again"), (fresh, "opened again")):
        if not np.array_equal(first, again):  # a NaN differs from itself, and is not a result either
            raise GateError(
                f"the same {len(images)} images give other logits when {when}, by up to"
                f" {np.abs(first - again).max():.3g}: results cannot be reproduced. Update onnxruntime, or"
                " report the architecture"
            )
    return {"images": len(images), "runs": 2, "sessions": 2, "bit_equal": True}


def accuracy(reference: np.ndarray, candidate: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Compare the logits (N, K) of two networks for the same images with labels (N,)."""
    found = flips(hits(reference, labels), hits(candidate, labels))
    return Accuracy(
        len(labels),
        top1(reference, labels),
        top1(candidate, labels),
        found.drop,
        *paired_interval(found),
        found.right_to_wrong,
        found.wrong_to_right,
        mcnemar_p(found),
        agreement(reference, candidate),
        mean_kl(reference, candidate),
        float(np.abs(reference - candidate).max()),
    )


def judged(
    student: np.ndarray,
    fp32: np.ndarray,
    candidate: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str] | None = None,
) -> Judged:
    """Three sets of logits (N, K) for the same images: those of the torch student, of the fp32 ONNX file, and
    of the candidate, the file in int8 or fp16.

    All that `accuracy` says of the candidate against the student, `fp32_onnx_*` for the step between, and the
    class that loses most.
    """
    middle = flips(hits(student, labels), hits(fp32, labels))
    return Judged(
        **accuracy(student, candidate, labels).to_dict(),
        fp32_onnx_top1=top1(fp32, labels),
        fp32_onnx_right_to_wrong=middle.right_to_wrong,
        fp32_onnx_wrong_to_right=middle.wrong_to_right,
        worst_class=worst_class(student, candidate, labels, class_names),
    )


def worst_class(
    reference: np.ndarray,
    candidate: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str] | None = None,
) -> WorstClass:
    """The class with the largest drop of top-1; of equal ones, that with more images.

    Its interval holds for all classes at once (Bonferroni): the worst of many small classes always looks bad
    by itself.
    """
    before, after = hits(reference, labels), hits(candidate, labels)
    present = np.unique(labels)
    found = {int(k): flips(before[labels == k], after[labels == k]) for k in present}
    index = max(found, key=lambda k: (found[k].drop, found[k].images))
    n, lost, won = found[index]
    low, high = paired_interval(found[index], 1 - (1 - CONFIDENCE) / len(present))
    right = int(before[labels == index].sum())
    return WorstClass(
        class_name=class_names[index] if class_names else str(index),
        index=index,
        images=n,
        classes=len(present),
        reference_top1=100 * right / n,
        candidate_top1=100 * (right - lost + won) / n,
        drop_points=found[index].drop,
        drop_low_points=low,
        drop_high_points=high,
        right_to_wrong=lost,
        wrong_to_right=won,
    )


def hits(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) bool: for which images the best class of the logits (N, K) is the label (N,)."""
    return logits.argmax(1) == labels


def top1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Percent of images whose best class is the label."""
    return 100 * int(hits(logits, labels).sum()) / len(labels)


def agreement(reference: np.ndarray, logits: np.ndarray) -> float:
    """Percent of images for which both logits (N, K) have the same best class."""
    return top1(logits, reference.argmax(1))


def flips(right_before: np.ndarray, right_after: np.ndarray) -> Flips:
    """Count from two boolean arrays (N,): which images each network gets right."""
    return Flips(
        len(right_before), int((right_before & ~right_after).sum()), int((~right_before & right_after).sum())
    )


def paired_interval(found: Flips, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """(low, high) in points around the drop: what it may be on other images of the same kind.

    The adjusted Wald interval for paired proportions: one image added to each kind of flip (Bonett and Price
    2012, doi:10.3102/1076998611411915). It does not shrink to nothing when no image flips, as the plain Wald
    interval does.
    """
    n = found.images + 2
    lost, won = (found.right_to_wrong + 1) / n, (found.wrong_to_right + 1) / n
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt((lost + won - (lost - won) ** 2) / n)
    return 100 * (lost - won - half), 100 * (lost - won + half)


def mcnemar_p(found: Flips) -> float:
    """Two-sided p value of McNemar's exact test: under no difference, each flipped image goes either way like
    a coin.
    """
    lost, won = found.right_to_wrong, found.wrong_to_right
    return min(1.0, 2 * binomial_tail(max(lost, won), lost + won, 0.5))


def mean_kl(reference: np.ndarray, logits: np.ndarray) -> float:
    """KL(softmax(reference) || softmax(logits)) in nats, averaged over the rows of (N, K)."""
    log_p, log_q = log_softmax(reference), log_softmax(logits)
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithm of the softmax of each row, float64."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def require_better_than_chance(logits: np.ndarray, labels: np.ndarray) -> float:
    """Raise GateError when logits (N, K) may as well be guesses; returns the p value of being right that
    often by chance.

    One-sided binomial test against 1 / K: no budget can protect an accuracy that is not there.
    """
    right, n, classes = int(hits(logits, labels).sum()), len(labels), logits.shape[1]
    p = binomial_tail(right, n, 1 / classes) if classes > 1 else 1.0
    if p > CHANCE_LEVEL:
        raise GateError(
            f"fp32 student top-1 is {100 * right / n:.2f} %, chance is {100 / classes:.2f} % on {n} images"
            f" (guessing does as well with p = {p:.2g}): nothing to preserve. Check the checkpoint, the class"
            " order and the preprocessing" + (", or give more images" if n < 100 else "")
        )
    return p


def binomial_tail(least: int, n: int, probability: float) -> float:
    """P(at least `least` successes in n trials), 0 < probability < 1; by logarithms, as the binomials
    overflow.
    """

    def log_term(k: int) -> float:
        return (
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(probability)
            + (n - k) * math.log1p(-probability)
        )

    return min(1.0, math.fsum(math.exp(log_term(k)) for k in range(least, n + 1)))


def require_small_drop(found: Accuracy, max_drop: float, precision: str = "int8") -> None:
    """Raise GateError when the artifact of this precision (int8 or fp16) loses more than `max_drop` points of
    top-1.
    """
    if found.drop > max_drop:
        hint = "Try another --calib-method, a larger --calib-size, --exclude LAYER for sensitive layers"
        raise GateError(
            f"{precision} top-1 is {found.candidate_top1:.2f} %, {found.drop:.2f} points below fp32's"
            f" {found.reference_top1:.2f} % on {found.images} images; at most {max_drop:g} allowed, nothing"
            " written. "
            + (f"{hint}, or allow" if "int8" in precision else "Export fp32, or allow")
            + " more with --max-drop"
        )


def require_agreement(found: Accuracy, min_agreement: float | None, precision: str = "int8") -> None:
    """Raise GateError when the artifact chooses the fp32 student's class for less than `min_agreement`
    percent of the images.
    """
    if min_agreement is not None and found.agreement < min_agreement:
        raise GateError(
            f"{precision} chooses the class of the fp32 student on {found.agreement:.2f} % of"
            f" {found.images} images; at least {min_agreement:g} asked for, nothing written. Export fp32, or"
            " ask for less with --min-agreement"
        )


def logits_of(content: bytes, path: Path, batches: Iterable[np.ndarray]) -> np.ndarray:
    """(N, K) logits of the artifact with this content. One artifact is open at a time: threads of two engines
    that wait for work take the cores from each other (measured: twice the time).
    """
    with opened(content, path) as predictor:
        return np.concatenate([predictor.logits(batch, finite=False) for batch in batches])


@contextlib.contextmanager
def opened(content: bytes, path: Path) -> Iterator[Predictor]:
    """The artifact with this content, opened by the runtime from `path`; what is measured is what an
    application loads.
    """
    path.write_bytes(content)
    with load(path) as predictor:
        yield predictor


def require_opens(content: bytes, meta: Metadata, folder: Path) -> None:
    """Raise GateError unless the final bytes open in the runtime and their metadata reads back as it was
    written.
    """
    with opened(content, folder / "final.onnx") as predictor:
        if predictor.metadata.to_map() != meta.to_map():
            raise GateError(
                "the artifact's metadata does not read back as written, so nothing is written. Report this"
            )
