"""The checks a plan must pass on a GPU before it is written: same decisions as its ONNX file, same rows for
the same image.

In:  a plan with its metadata beside it and the ONNX file it was built from; labeled images, or none.
Out: the numbers, for the metadata; GateError when a check does not hold.
Elsewhere: building (export.trt.process), the same checks for ONNX files (export.checks.verify).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime import Predictor, files, load
from runtime.artifact import Metadata
from runtime.errors import GateError
from runtime.records import EngineCheck

from ..checks import verify
from ..fp16 import engine as half
from ..graph.read import read_onnx

FP32_TOLERANCE = 0.01
"""Like verify's tolerances, for fp32 plans: TF32 keeps 10 bits of each factor (docs.nvidia.com, A100
architecture), about 20 such steps at the logit scale."""

AGREEMENT = 99.0
"""Least share of images, percent, for which engine and ONNX file choose the same class."""

ENOUGH = 100
"""Images below which one flip alone would break AGREEMENT; then one image may differ."""

AT_ONCE = 32
"""Images the ONNX file is given at a time, at most."""

NOISE = 64
"""Images of noise when there are no labeled ones."""


@dataclass(frozen=True)
class Images:
    """What both are run on."""

    batches: Iterable[np.ndarray]
    """Preprocessed images (n, C, H, W) float32."""
    labels: np.ndarray
    """(N,)."""


@dataclass(frozen=True)
class Pair:
    """A plan beside its metadata, and the ONNX file it was built from."""

    plan: Path
    onnx: Path
    meta: Metadata


@dataclass(frozen=True)
class Budgets:
    """What a plan is held to against the fp32 student; what its ONNX file lost is counted in."""

    max_drop: float
    """Points of top-1 it may lose."""
    min_agreement: float = 0.0
    """Share of images, percent, on which it has to choose the same class."""


def check(pair: Pair, images: Images | None, budgets: Budgets, device: str = "cuda") -> EngineCheck:
    """Run plan and ONNX file on the same images and compare.

    images: None for noise, on which no accuracy is measured.
    """
    meta = pair.meta
    with load(pair.plan, device) as engine, reference_of(pair.onnx, meta) as reference:
        most = largest_batch(engine)
        parts = chunks([noise(engine.input_shape)] if images is None else images.batches, most)
        some = next(parts)
        found_by = [
            (
                engine.logits_in_batches(part, most, finite=False),
                reference.logits_in_batches(part, AT_ONCE, finite=False),
            )
            for part in itertools.chain([some], parts)
        ]
        ours, theirs = (np.concatenate(each) for each in zip(*found_by, strict=True))
        found = replace(
            agreement(theirs, ours, meta.precision, images is None),
            provider=engine.provider,
            noise=images is None,
            consistency=consistency(engine, some, tolerance(meta.precision)),
        )
    return found if images is None else with_accuracy(found, theirs, ours, images.labels, meta, budgets)


@contextlib.contextmanager
def reference_of(path: Path, meta: Metadata) -> Iterator[Predictor]:
    """The ONNX file on ONNX Runtime's CPU engine; a copy of it where that would not compute what it says."""
    may_differ = meta.precision in ("int8+fp16", "unknown") and half.drops_fractions()
    model = read_onnx(path) if may_differ else None
    if model is None or not half.quantizes_half(model):
        with load(path) as predictor:
            yield predictor
        return
    from ..graph import from_torch  # here, because it imports torch

    with (
        files.scratch_folder() as folder,
        verify.opened(from_torch.write_metadata(half.judged(model), meta), folder / path.name) as predictor,
    ):
        yield predictor


def chunks(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same images (n, C, H, W), `size` at a time, the last ones as they come; no more than
    that is held.
    """
    held = np.empty(0)
    for batch in batches:
        held = np.concatenate([held, batch]) if len(held) else batch
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if len(held):
        yield held


def tolerance(precision: str) -> float:
    """Largest difference of logits as a share of their scale."""
    return FP32_TOLERANCE if precision == "fp32" else verify.tolerance(precision)


def agreement(reference: np.ndarray, logits: np.ndarray, precision: str, is_noise: bool) -> EngineCheck:
    """How the engine's logits (N, K) compare with the ONNX file's; on noise, where classes are close, by size
    alone.
    """
    if not np.isfinite(reference).all():
        raise GateError(
            "the ONNX file's own logits are not finite on these images, so no plan is written. Check its"
            " network"
        )
    if not np.isfinite(logits).all():
        raise GateError("the engine's logits are not finite, so no plan is written. Export without --fp16")
    scale = max(1.0, float(np.abs(reference).max()))
    same = verify.hits(logits, reference.argmax(1))
    spread = float(np.sqrt(np.mean((reference - logits) ** 2))) / scale
    agreed = 100 * float(same.mean())
    found = EngineCheck(
        images=len(same),
        agreement=agreed,
        max_abs=float(np.abs(reference - logits).max()),
        rms=spread,
    )
    differ = int((~same).sum())
    if spread > tolerance(precision) or (
        not is_noise and differ > max(1, (1 - AGREEMENT / 100) * max(len(same), ENOUGH))
    ):
        raise GateError(
            f"the engine does not decide as its ONNX file: same class on {agreed:.2f} % of"
            f" {len(same)} images, logits differ by {spread:.3g} of their scale (root mean square, allowed"
            f" {tolerance(precision):g}). No plan is written. Try another TensorRT version, or report the"
            " architecture"
        )
    return found


def consistency(engine: Predictor, images: np.ndarray, allowed: float) -> dict[str, Any]:
    """Raise GateError where an image's logits depend on its neighbors, its place or the batch size.

    row_spread: between the rows of a batch of one image again and again; batch_spread: between the smallest
    batch and the largest, None for a plan of one batch size.
    """
    least, most = engine.fit(1), largest_batch(engine)
    some = np.resize(images, (most, *images.shape[1:]))
    repeated = engine.logits(np.repeat(some[:1], most, axis=0), finite=False)
    row_spread, batch_spread = float(np.abs(repeated - repeated[:1]).max()), None
    if least < most:
        together, few = engine.logits(some, finite=False), engine.logits_in_batches(some, least, finite=False)
        batch_spread = float(np.abs(together - few).max())
    limit = allowed * max(1.0, float(np.abs(repeated).max()))
    worst = float(np.max([row_spread, 0.0 if batch_spread is None else batch_spread]))  # nan where one is
    if not worst <= limit:
        raise GateError(
            f"the same image gives logits that differ by {worst:.3g} at another place or batch size (allowed "
            f"{limit:.3g}), so no plan is written. Report the architecture"
        )
    return {
        "batch_sizes": [least, most],
        "row_spread": row_spread,
        "batch_spread": batch_spread,
        "allowed": limit,
    }


def with_accuracy(
    found: EngineCheck,
    reference: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    meta: Metadata,
    budgets: Budgets,
) -> EngineCheck:
    """The same with top-1 of engine and ONNX file; GateError when the engine loses more against the fp32
    student than the budgets allow.
    """
    compared = verify.accuracy(reference, logits, labels)
    lowered = meta.verification.lowered
    drop = compared.drop + ((lowered and lowered.drop) or 0.0)
    judged = not (meta.quantization and meta.quantization.not_for_accuracy)
    if judged and drop > budgets.max_drop:  # ranges of noise have no accuracy to keep
        raise GateError(
            f"engine top-1 is {compared.candidate_top1:.2f} %, {compared.drop:.2f} points below its ONNX file"
            f" and {drop:.2f} below the fp32 student on {compared.images} images; at most"
            f" {budgets.max_drop:g} allowed, no plan is written. Allow more with --max-drop"
        )
    known = lowered.agreement if lowered and lowered.agreement is not None else 100.0
    agreed = compared.agreement - (100 - known)  # at least: an image may differ in either step
    if judged and agreed < budgets.min_agreement:
        raise GateError(
            f"the engine chooses the class of its ONNX file on {compared.agreement:.2f} % of"
            f" {compared.images} images, and that file the fp32 student's on {known:.2f} %, so that only"
            f" {agreed:.2f} % are sure; at least {budgets.min_agreement:g} asked for, no plan is written. Ask"
            " for less with --min-agreement"
        )
    return replace(
        found,
        top1=compared.candidate_top1,
        onnx_top1=compared.reference_top1,
        drop=drop,
        right_to_wrong=compared.right_to_wrong,
        wrong_to_right=compared.wrong_to_right,
        mcnemar_p=compared.mcnemar_p,
        kl_nats=compared.kl_nats,
    )


def largest_batch(engine: Predictor) -> int:
    """Most images the plan takes in one call; a plan's profiles always end somewhere."""
    most = engine.largest_batch
    assert most is not None, engine.path
    return most


def noise(shape: Sequence[int | None]) -> np.ndarray:
    """(NOISE, C, H, W) from a normal distribution, seed 0; of a plan only the batch is open."""
    sizes = [size for size in shape[1:] if size is not None]
    return np.random.default_rng(0).standard_normal((NOISE, *sizes), np.float32)
