"""The artifact under measurement: open it, say what it is, and make the two calls that are timed.

In:  a path and `RunOptions`; the images to feed it (real ones, or synthetic ones made here).
Out: a `Predictor`; its description; `Calls`, one argument-free function per timing boundary.
Elsewhere: the clock (bench.latency). Only what an application has is used: `runtime.load` and the Predictor's
public methods.

The boundaries:
    compute      Predictor.logits on a preprocessed float batch that already lies in host memory
    end_to_end   Predictor.classify on encoded images: read, decode, preprocess, compute, softmax and top-5
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

import runtime
from runtime import ArtifactError, Predictor, Preprocess, UsageError, env
from runtime.backends import Engine, Settings, registry
from runtime.cli.settings import Flag
from runtime.images import FolderSet, ImageSet
from runtime.preprocess import open_rgb

BOUNDARIES = ("compute", "end_to_end")

POOL = 64
"""Different images that the end-to-end calls go round, so that one small file does not stay in the nearest
cache."""

SYNTHETIC_SCALE = 1.15
"""Side of a synthetic JPEG divided by the network's input: about what remains of a photograph before the
0.875 crop."""


@dataclass(frozen=True)
class Calls:
    """What can be timed on one artifact."""

    functions: dict[str, Callable[[], Any]] = field(default_factory=dict)
    """Boundary -> one call on one batch."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Boundary -> what the call is fed, in words."""
    not_measured: dict[str, str] = field(default_factory=dict)
    """Boundary -> why it cannot be timed."""


if TYPE_CHECKING:
    EngineName = str
else:
    EngineName = Literal[registry.names()]  # the choices of the flag; a new engine is one of them


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Engine: what the artifacts run on. A flag is for the engines that read it, and an error when none of
    the files runs on one.
    """

    engine_backend: Annotated[EngineName | None, Flag(common=True)] = None
    """Engine to run on; by default onnxruntime for .onnx files and tensorrt for .plan files, which run on
    nothing else."""
    provider: Literal["cpu", "cuda", "tensorrt"] | None = None
    """ONNX Runtime's execution provider; by default that of --device."""
    device: Annotated[str | None, Flag("DEVICE", common=True)] = None
    """Device: cpu, cuda or cuda:INDEX, for OpenVINO cpu, gpu or npu; by default cpu for .onnx and cuda for
    .plan."""
    threads: Annotated[int | None, Flag("N", common=True)] = None
    """CPU threads of the engine; by default all usable cores."""
    hint: Literal["latency", "throughput"] | None = None
    """Goal that OpenVINO is tuned for; latency when not given."""
    contexts: int | None = None
    """Number of calls on a plan that may run at once, 1 or more; 1 when not given."""
    cuda_graph: bool = False
    """Replay a plan's launches as a CUDA graph."""

    def backend(self, path: Path) -> Engine:
        """The engine that a file runs on: the one asked for, where there is a choice."""
        able = registry.opening(path)
        if len(able) == 1:
            return able[0]
        known = registry.engines()
        return known[self.engine_backend] if self.engine_backend else (able or list(known.values()))[0]

    def require_read(self, paths: Sequence[Path]) -> None:
        """Raise UsageError for a flag that the engine of none of the files reads, and for an engine that
        cannot open one.
        """
        used = {path: self.backend(path) for path in paths}
        if self.engine_backend:
            self._require_used(registry.engines()[self.engine_backend], used)
        for flag in registry.SETTINGS:
            value = getattr(self, flag)
            if value is None or value is False or any(flag in engine.reads for engine in used.values()):
                continue
            raise UsageError(
                f"--{flag.replace('_', '-')} is read by {' and '.join(registry.readers(flag))} only, and"
                f" {paths[0].name} runs on {used[paths[0]].name}. Leave it out"
            )
        if self.contexts is not None and self.contexts < 1:
            raise UsageError(f"--contexts {self.contexts}: expected 1 or more")

    @staticmethod
    def _require_used(asked: Engine, used: Mapping[Path, Engine]) -> None:
        for path, engine in used.items():
            if engine == asked and registry.opening(path) and path.suffix not in asked.suffixes:
                raise UsageError(
                    f"--engine-backend {asked.name}: {path} is not {asked.file}. "
                    f"{asked.make.format(path=path)}"
                )
        if asked not in used.values():
            path, engine = next(iter(used.items()))
            raise UsageError(
                f"--engine-backend {asked.name}: {path} is {engine.file}, which runs on {engine.title} only."
                f" Give {asked.file}, or leave --engine-backend out"
            )


def open_artifact(path: Path, on: RunOptions) -> Predictor:
    """`runtime.load`, whose warning about unknown fields is left to `describe`, which says the same in the
    result.
    """
    engine = on.backend(path)
    settings: dict[str, Any] = {
        flag: getattr(on, flag) for flag in engine.reads if getattr(on, flag) is not None
    }
    device = "cuda" if on.device is None and settings.get("provider") in ("cuda", "tensorrt") else on.device
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return runtime.load(path, device, backend=engine.name, **settings)


def describe(predictor: Predictor, on: RunOptions) -> dict[str, Any]:
    """Which file ran, on which engine, provider and device: as reported by the engine, not as asked for."""
    metadata = predictor.metadata
    reads = on.backend(predictor.path).reads
    return {
        "file": str(predictor.path),
        "model": metadata.model,
        "role": metadata.role,
        "precision": None if metadata.precision == "unknown" else metadata.precision,
        "engine": predictor.engine,
        "backend": predictor.engine.split()[0],
        "provider": predictor.provider,
        "device": predictor.device,
        "threads": predictor.threads or (env.usable_cores() if predictor.device == "cpu" else None),
        "hint": on.hint or Settings.hint if "hint" in reads else None,
        "contexts": on.contexts or Settings.contexts if "contexts" in reads else None,
        "cuda_graph": on.cuda_graph if "cuda_graph" in reads else None,
        "unknown": predictor.unknown,
    }


def where(about: dict[str, Any]) -> str:
    """The engine, what it runs on and how, of a `describe`, for a person."""
    words = [
        about["engine"],
        about["provider"],
        f"device {about['device']}",
        f"{about['threads']} threads" if about["threads"] else None,
        f"{about['contexts']} contexts" if (about["contexts"] or 1) > 1 else None,
        "CUDA graph" if about["cuda_graph"] else None,
    ]
    return ", ".join(word for word in words if word)


def label(predictor: Predictor, role: str | None = None) -> str:
    """'student int8', or the file's name when it says nothing about itself; ranges of noise are named."""
    metadata = predictor.metadata
    words = [role or metadata.role, None if metadata.precision == "unknown" else metadata.precision]
    if (metadata.quantization or {}).get("not_for_accuracy"):
        words.append("(not for accuracy)")
    return " ".join(word for word in words if word) or predictor.path.name


def parse_size(text: str) -> tuple[int, int]:
    """'224' -> (224, 224); '160x224' -> (160, 224), height first. Raises UsageError for anything else."""
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not found:
        raise UsageError(
            f"img-size {text!r}: expected pixels, such as 224, or height x width, such as 160x224"
        )
    return int(found[1]), int(found[2] or found[1])


def set_size(predictor: Predictor, size: tuple[int, int] | None) -> tuple[int, int]:
    """The (height, width) that the network is fed; where the file leaves it free, the preprocessing follows
    `size`.

    Raises UsageError when `size` is not what the file takes, or when nothing says what it could be.
    """
    fixed = tuple(predictor.input_shape[2:])
    if size is None:
        known = predictor.preprocess.input_size[1:] if predictor.preprocess else (None, None)
        height, width = (a or b for a, b in zip(fixed, known, strict=True))
        if height is None or width is None:
            raise UsageError(
                f"{predictor.path}: takes images of any size and does not say which. Add --img-size 224"
            )
        return height, width
    if any(has is not None and has != asked for has, asked in zip(fixed, size, strict=True)):
        raise UsageError(
            f"{predictor.path}: takes {fixed[0] or 'any'}x{fixed[1] or 'any'} images, not"
            f" {size[0]}x{size[1]}. Leave --img-size out"
        )
    if predictor.preprocess:
        predictor.preprocess = replace(predictor.preprocess, input_size=(3, *size))
    return size


def make_calls(
    predictor: Predictor,
    batch: int,
    *,
    size: tuple[int, int] | None = None,
    images: ImageSet | None = None,
    seed: int = 0,
) -> Calls:
    """The calls on `batch` images, one per boundary.

    size: (height, width) for a network of free size. images: real ones; None makes synthetic ones from
    `seed`. Raises UsageError when the file is fixed to another batch size or image size, DataError for an
    unreadable image.
    """
    fixed = predictor.input_shape[0]
    if fixed is not None and fixed != batch:
        raise UsageError(f"{predictor.path}: its batch size is fixed at {fixed}. Add --batch {fixed}")
    height, width = set_size(predictor, size)
    calls = Calls()
    if predictor.preprocess is None:
        calls.not_measured["end_to_end"] = (
            "the file does not say how images are preprocessed, so there is no way from an image to its input"
        )
    else:
        groups, words = _image_groups(images, batch, height, width, seed)
        calls.functions["end_to_end"] = _round_robin(predictor.classify, groups)
        calls.inputs["end_to_end"] = words
    if images is not None and predictor.preprocess is not None:
        x, words = predictor.preprocess.batch(groups[0]), f"{images.name}, preprocessed"
    else:
        x = np.random.default_rng(seed).standard_normal(
            (batch, predictor.input_shape[1] or 3, height, width), np.float32
        )
        words = f"synthetic, normal distribution, seed {seed}"
    calls.functions["compute"] = lambda: predictor.logits(x)
    calls.inputs["compute"] = f"{words}, {'x'.join(map(str, x.shape))} float32"
    return calls


def require_preprocess(predictor: Predictor) -> Preprocess:
    """How images become its input. Raises ArtifactError when the artifact cannot be fed images."""
    if predictor.preprocess is None:
        raise ArtifactError(
            f"{predictor.path}: does not say how images are preprocessed, so accuracy cannot be measured. "
            "Export it with distill export onnx"
        )
    return predictor.preprocess


def _image_groups(
    images: ImageSet | None, batch: int, height: int, width: int, seed: int
) -> tuple[list[list[Any]], str]:
    """Batches of encoded images, and what they are in words."""
    wanted = max(POOL // batch, 1) * batch
    rng = np.random.default_rng(seed)
    if images is None:
        sides = round(height * SYNTHETIC_SCALE), round(width * SYNTHETIC_SCALE)
        encoded: list[Any] = [_synthetic_jpeg(*sides, rng) for _ in range(min(wanted, POOL))]
        words = f"synthetic JPEG, {sides[0]}x{sides[1]}, seed {seed}, in memory"
    else:
        chosen = rng.permutation(len(images))[:wanted]
        encoded = [_encoded(images, int(i)) for i in chosen]
        words = f"{images.name}, {'files' if isinstance(images, FolderSet) else 'encoded as PNG in memory'}"
    endless = itertools.cycle(encoded)
    groups = [list(itertools.islice(endless, batch)) for _ in range(wanted // batch)]
    return groups, f"{words}, {len(encoded)} different"


def _encoded(images: ImageSet, index: int) -> Any:
    """A path where there is a file, else the image as PNG bytes."""
    return images.item_name(index) if isinstance(images, FolderSet) else _encode(images.image(index), "PNG")


def _synthetic_jpeg(height: int, width: int, rng: np.random.Generator) -> bytes:
    """A JPEG that compresses like a photograph: coarse patches of colour with a little noise on them."""
    coarse = (
        rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3))
        .repeat(16, 0)
        .repeat(16, 1)[:height, :width]
    )
    noise = rng.normal(0, 8, (height, width, 3))
    return _encode(open_rgb(np.clip(coarse + noise, 0, 255).astype(np.uint8)), "JPEG")


def _encode(image: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=90)  # quality is JPEG's; PNG ignores it
    return buffer.getvalue()


def _round_robin(function: Callable[[Any], Any], arguments: list[Any]) -> Callable[[], Any]:
    following = itertools.cycle(arguments)
    return lambda: function(next(following))
