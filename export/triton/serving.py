"""How an artifact is to be served: name, version, largest batch, preferred batches.

In:  a `TritonOptions` and the `Model`.
Out: `Serving`; UsageError for what the artifact cannot do.
Elsewhere: what the artifact can do (export.triton.artifact), the files (export.triton.repository).
"""

from __future__ import annotations

import re
from pathlib import Path

from runtime.errors import UsageError

from ..notes import note
from ..options.triton import DEFAULT_MAX_BATCH, TritonOptions
from .repository import Model, Serving


def choose(options: TritonOptions, model: Model) -> Serving:
    """The flags, completed by what the artifact says. Raises UsageError for what it cannot do."""
    device = options.device or ("gpu" if model.path.suffix == ".plan" else "cpu")
    if model.path.suffix == ".plan" and device == "cpu":
        raise UsageError(f"--device cpu: {model.path.name} is a TensorRT plan. Give the .onnx file beside it")
    name = _name(options.name, model.path)
    if not model.dynamic:
        _refuse_batching(options, model)
        return Serving(name, 0, device, options.instances)
    max_batch = _max_batch(options.max_batch, model)
    delay = 500 if options.max_delay_us is None else options.max_delay_us
    return Serving(
        name, max_batch, device, options.instances, _preferred(options.preferred, model, max_batch), delay
    )


def _name(given: str | None, path: Path) -> str:
    if given is None:
        return re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem).lstrip(".") or "model"
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", given):
        raise UsageError(
            f"--name {given!r}: expected letters, digits, '.', '_' and '-', as it becomes a folder and an"
            " address"
        )
    return given


def _refuse_batching(options: TritonOptions, model: Model) -> None:
    given = [
        flag for flag in ("max_batch", "preferred", "max_delay_us") if getattr(options, flag) is not None
    ]
    if given:
        size = model.inputs[0].shape[0]
        raise UsageError(
            f"--{given[0].replace('_', '-')}: {model.path} takes exactly {size} image{'s' * (size != 1)} a"
            " call, so Triton cannot put requests together. Leave it out, or build a plan with --dynamic"
            " MIN,OPT,MAX"
        )


def _max_batch(given: int | None, model: Model) -> int:
    if not model.profiles:
        return given or DEFAULT_MAX_BATCH
    largest, smallest = (
        pick(each[key] for each in model.profiles) for pick, key in ((max, "max"), (min, "min"))
    )
    if given is not None and not smallest <= given <= largest:
        raise UsageError(
            f"--max-batch {given}: {model.path} takes {smallest} to {largest} images. Build it again for"
            " more: distill export trt --dynamic MIN,OPT,MAX"
        )
    if smallest > 1:
        note(
            f"{model.path} takes {smallest} images or more a call; Triton fails a request of fewer that finds"
            " no others in time"
        )
    return given or largest


def _preferred(given: str | None, model: Model, max_batch: int) -> list[int]:
    if given is None:
        return sorted({each["opt"] for each in model.profiles if 1 < each["opt"] <= max_batch})
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", given):
        raise UsageError(f"--preferred {given}: expected batch sizes with commas between, such as 4,8")
    sizes = sorted({int(word) for word in given.split(",")})
    if not 1 <= sizes[0] <= sizes[-1] <= max_batch:
        raise UsageError(
            f"--preferred {given}: expected batch sizes from 1 to {max_batch}, the most in one call"
        )
    return sizes
