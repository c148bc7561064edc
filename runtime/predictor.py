"""Load an artifact, predict, close: the one code path for applications, evaluation and benchmarks.

In:  an artifact file; images (paths, bytes, PIL images, uint8 arrays) or preprocessed float batches.
Out: `Prediction`s with labels and probabilities, or raw logits.
Elsewhere: decoding and scaling (runtime.preprocess), the engine (runtime.backends), the file's own words
(runtime.artifact).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .artifact import Metadata
from .backends import Backend, BatchSizes, Settings, asked
from .errors import ArtifactError, UsageError
from .preprocess import Preprocess

if TYPE_CHECKING:
    from .images.decode import Image


class Prediction(NamedTuple):
    """One guess: the class's name and index, and its softmax probability (0 to 1)."""

    label: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a guess
    probability: float


def load(
    path: str | os.PathLike[str],
    device: str | None = None,
    *,
    backend: str | None = None,
    provider: str | None = None,
    threads: int | None = None,
    hint: str = "latency",
    contexts: int = 1,
    cuda_graph: bool = False,
    preprocess: Preprocess | None = None,
    class_names: Sequence[str] | None = None,
    verify: bool = True,
) -> Predictor:
    """Open an artifact on a device.

    path: an .onnx file, or a .plan with its metadata beside it (NAME.plan.json).
    device: cpu, cuda or cuda:INDEX; by default cpu for .onnx and cuda for .plan. backend: an engine of
    runtime.backends, such as onnxruntime (.onnx's default), openvino or tensorrt (.plan). provider: ONNX
    Runtime's, as cpu, cuda or tensorrt, by default that of the device. What is asked for is what is used, or
    MissingError.
    threads: CPU threads of the engine, all usable cores when None. hint: latency or throughput, for OpenVINO.
    contexts: so many calls may run on the GPU at once; cuda_graph: replay captured launches; both for .plan.
    preprocess, class_names: only for files that do not carry them. verify: check the file's seal or hash
    first, which reads the file once more; without it a plan of another origin opens too, with nothing beside
    it. Raises ArtifactError when the file cannot be used here or was changed after it was written, UsageError
    when it is not there or the engine does not read one of the settings.
    """
    path, settings = asked.file(path), Settings(device, provider, threads, hint, contexts, cuda_graph, verify)
    asked.require_types(settings, backend, preprocess, class_names)
    engine = asked.engine(path, backend)
    asked.refuse_unread(path, engine, settings)
    predictor = Predictor(*engine.open(path, settings), preprocess, class_names, gives=_gives(path))
    _require_size(predictor)
    if predictor.unknown:
        warnings.warn(
            f"{path}: carries no {' and no '.join(predictor.unknown)}. logits() works; "
            "give load(preprocess=..., class_names=...) for classify()",
            stacklevel=2,
        )
    if predictor.gives == "probabilities":
        warnings.warn(
            f"{path}: its last layer makes probabilities, so logits() gives these; classify() takes them as"
            " they are, without another softmax",
            stacklevel=2,
        )
    return predictor


def _gives(path: Path) -> str:
    """What the file's first output is, by its last layer: a foreign file may end in a softmax of its own."""
    if path.suffix != ".onnx":
        return "logits"
    from .backends.onnx_file import last_operator  # here, so that `import runtime` does not pay for it

    return "probabilities" if last_operator(path) in PROBABILITIES else "logits"


def _require_size(predictor: Predictor) -> None:
    """Raise ArtifactError when preprocessing makes images of a size or of channels that the network does not
    take.
    """
    if predictor.preprocess is None:
        return
    made, taken = predictor.preprocess.input_size, predictor.input_shape[1:]
    if any(size is not None and size != here for size, here in zip(taken, made, strict=True)):
        predictor.close()
        raise ArtifactError(
            f"{predictor.path}: takes images of {_size(taken)}, and its preprocessing makes {_size(made)}"
            " (channels, height, width). Give runtime.load(preprocess=Preprocess(input_size=...))"
        )


def _size(sizes: Sequence[int | None]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in sizes) + ")"


PROBABILITIES = ("Softmax", "Sigmoid", "HardSigmoid")
"""Operators that make probabilities of logits; the logarithm of a softmax is as good as logits."""


class Predictor:
    """An open artifact. All methods may be called from many threads; `close()` frees the engine."""

    def __init__(
        self,
        backend: Backend,
        metadata: Metadata,
        preprocess: Preprocess | None = None,
        class_names: Sequence[str] | None = None,
        gives: str = "logits",
    ) -> None:
        self._backend: Backend | None = backend
        self._run: Callable[..., np.ndarray] | None = backend.run
        self._run_on_device: Callable[[Any, Any], Any] | None = getattr(backend, "run_on_device", None)
        self.metadata = metadata
        self.preprocess = preprocess or metadata.preprocess
        given = [] if class_names is None else [str(name) for name in class_names]
        self.class_names = given or metadata.class_names
        self.gives = gives
        """logits; or probabilities, where the file's last layer makes them."""
        self.path = backend.path
        self.provider = backend.provider
        self.engine = f"{backend.engine} {backend.version}"
        self.threads = backend.threads
        self.device = backend.device
        self.input_shape = backend.input_shape
        """(N, C, H, W); None where any size goes."""
        self.batch_sizes: BatchSizes = backend.batch_sizes
        self._sizes = tuple(backend.input_shape)

    @property
    def unknown(self) -> list[str]:
        """Which of preprocess and class_names are known neither from the file nor from the caller."""
        return [name for name in ("preprocess", "class_names") if getattr(self, name) is None]

    def logits(self, batch: Any, out: Any = None, finite: bool = True) -> Any:
        """Raw scores (N, K) float32 of a preprocessed batch (N, C, H, W) float32.

        batch: a numpy array; for a plan also an array on its GPU (anything with `__cuda_array_interface__` or
        `__dlpack__`), which is then read there. out: where the scores go, (N, K) float32, on the host or for
        a plan on the GPU; made when None. Returns out. finite: refuse scores that are not; those that stay on
        a GPU are not looked at. Raises UsageError when dtype or shape are not what the network takes, or when
        the batch holds NaN or infinity, ArtifactError for scores that are NaN or infinite.
        """
        run = self._run
        if run is None:
            raise UsageError(f"{self.path}: closed. Call runtime.load again")
        if type(batch) is np.memmap:  # as np.load(mmap_mode="r") gives it
            batch = batch.view(np.ndarray)
        if type(batch) is not np.ndarray and self._run_on_device is not None:
            return self._run_on_device(batch, out)
        if type(batch) is not np.ndarray or batch.dtype != np.float32 or not self._fits(batch.shape):
            raise UsageError(
                f"batch is {_describe(batch)}; expected float32 {self._expected()}. For images use classify()"
            )
        flat = batch.reshape(-1)
        # a sum of squares is finite only when each value is; int8 engines would hide one that is not
        with np.errstate(over="ignore", invalid="ignore"):
            is_finite = math.isfinite(np.dot(flat, flat))
        if not is_finite and not np.isfinite(flat).all():
            what = "NaN" if np.isnan(flat).any() else "infinity"
            raise UsageError(
                f"batch holds {what} ({int((~np.isfinite(flat)).sum())} of {flat.size} values). Check what"
                " made it"
            )
        scores = run(batch) if out is None else run(batch, out)
        if finite and isinstance(scores, np.ndarray):
            self._require_finite(scores)
        return scores

    def _require_finite(self, scores: np.ndarray) -> None:
        """Raise ArtifactError where an image has no largest score; -inf for some classes is one's right."""
        if scores.size and not np.isfinite(scores.max(axis=-1)).all():
            raise ArtifactError(
                f"{self.path}: gives scores that are NaN or infinite. Export it again, or look at its"
                " checkpoint: distill eval CKPT"
            )

    @property
    def largest_batch(self) -> int | None:
        """Most images in one call; None: no limit."""
        sizes = [most for _, most in self.batch_sizes if most is not None]
        return max(sizes) if len(sizes) == len(self.batch_sizes) else None

    def fit(self, count: int) -> int:
        """How many images to give for `count`: the smallest batch that holds them, or the largest there is
        when none does.
        """
        holding = [max(count, least) for least, most in self.batch_sizes if most is None or count <= most]
        return min(holding) if holding else max(most for _, most in self.batch_sizes if most is not None)

    def logits_in_batches(self, images: np.ndarray, size: int = 64, finite: bool = True) -> np.ndarray:
        """Raw scores (N, K) float32 of any number of preprocessed images (N, C, H, W) float32, N of 1 or
        more.

        Takes as many calls as it needs: of `size` images, or as near to it as the file allows. Where a call
        needs more images than are left, the last one is repeated, and its further scores are dropped. Raises
        as `logits` does.
        """
        if type(images) is np.memmap:
            images = images.view(np.ndarray)
        if type(images) is not np.ndarray:
            raise UsageError(f"images are {_describe(images)}; expected float32 {self._expected()}")
        size, found = self.fit(_whole("size", size)), []
        for start in range(0, len(images) or 1, size):
            part = images[start : start + size]
            filling = np.repeat(part[-1:], self.fit(len(part)) - len(part), axis=0)
            filled = np.concatenate([part, filling]) if len(filling) else part
            # who puts another `logits` in its place need not know of the flag
            scores = self.logits(filled) if finite else self.logits(filled, finite=False)
            found.append(scores[: len(part)])
        return found[0] if len(found) == 1 else np.concatenate(found)

    def classify(self, images: Image | Sequence[Image], top: int = 5) -> list[list[Prediction]]:
        """The `top` most probable classes of every image, best first.

        images: one or many of path, encoded bytes, PIL image, uint8 array (H, W, 3). A file without class
        names gives labels "class 17". Raises ArtifactError when preprocessing is unknown, DataError naming an
        image that cannot be read.
        """
        if self.preprocess is None:
            raise ArtifactError(
                f"{self.path}: preprocessing unknown. Give runtime.load(preprocess=Preprocess(...)), "
                "or export the file with distill export onnx"
            )
        if (
            isinstance(images, (str, bytes, bytearray, memoryview, Path))
            or not isinstance(images, (Sequence, np.ndarray))
            or (
                isinstance(images, np.ndarray)
                and (images.ndim in (0, 2) or (images.ndim == 3 and images.shape[2] in (1, 3, 4)))
            )
        ):
            images = [images]
        if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[0] in (1, 3, 4):
            raise UsageError(
                f"array of {images.dtype} {images.shape}: one image with channels first, or"
                f" {images.shape[0]} gray ones? Give (height, width, 3), or a list of arrays"
            )
        if len(images) == 0:
            return []
        top = _whole("top", top)
        return self.predictions(self.logits_in_batches(self.preprocess.batch(images), len(images)), top)

    def predictions(self, logits: np.ndarray, top: int = 5) -> list[list[Prediction]]:
        """Softmax and the `top` best of (N, K) logits; equal scores keep the lower class first. Where the
        file itself gives probabilities, they are taken as they are.

        Raises ArtifactError for scores that are NaN or infinite.
        """
        top = _whole("top", top)
        if not isinstance(logits, np.ndarray):
            raise UsageError(f"logits are a {type(logits).__name__}; expected an array (N, classes)")
        if logits.ndim != 2:
            raise ArtifactError(f"{self.path}: gives {logits.shape}, not logits (N, classes)")
        names = self.class_names
        if names and len(names) != logits.shape[1]:
            raise ArtifactError(
                f"{self.path}: gives {logits.shape[1]} scores per image, and there are {len(names)} class"
                " names. Give runtime.load(class_names=...) one for each, in the order of the scores"
            )
        self._require_finite(logits)
        largest = logits.max(axis=1, keepdims=True)
        probabilities = logits
        if self.gives == "logits":
            exponents = np.exp(logits - largest, dtype=np.float64)
            probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
        return [
            [Prediction(names[i] if names else f"class {i}", int(i), float(row[i])) for i in order]
            for row, order in zip(probabilities, best, strict=True)
        ]

    def __reduce__(self) -> Any:
        raise UsageError(
            f"{self.path}: an open artifact cannot be pickled or copied, because its engine belongs to this"
            " process. Call runtime.load in each process"
        )

    def close(self) -> None:
        """Free the engine; calls still running in other threads end first, later ones raise UsageError."""
        backend, self._backend, self._run, self._run_on_device = self._backend, None, None, None
        if backend is not None:
            backend.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        what = self.metadata.precision.replace("unknown", "")
        about = " ".join(word for word in (what, self.metadata.model) if word) or "unknown network"
        ran_on = "closed" if self._backend is None else f"{self.engine} on {self.device}"
        return f"<Predictor {self.path}: {about}, input {self._expected()}, {self._classes()}, {ran_on}>"

    def _classes(self) -> str:
        if not self.class_names:
            return "classes not named"
        some = ", ".join(self.class_names[:3]) + (", ..." if len(self.class_names) > 3 else "")
        return f"{len(self.class_names)} classes ({some})"

    def _fits(self, shape: tuple[int, ...]) -> bool:
        sizes = self._sizes
        return (
            len(shape) == 4
            and shape[0] > 0
            and all(size is None or size == given for size, given in zip(sizes, shape, strict=True))
        )

    def _expected(self) -> str:
        return (
            "(" + ", ".join(str(size or name) for size, name in zip(self._sizes, "NCHW", strict=True)) + ")"
        )


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise UsageError(f"{name} {value!r}: expected a whole number, 1 or more")
    if value < 1:
        raise UsageError(f"{name} {value}: expected 1 or more")
    return int(value)


def _describe(batch: Any) -> str:
    if not isinstance(batch, np.ndarray):
        return f"a {type(batch).__name__}"
    kind = "" if type(batch) is np.ndarray else f"a {type(batch).__name__} of "
    return f"{kind}{batch.dtype} {batch.shape}"
