"""Load an artifact, predict, close: the one code path for applications, evaluation and benchmarks.

In:  an artifact file; images (paths, bytes, PIL images, uint8 arrays) or preprocessed float batches.
Out: `Prediction`s with labels and probabilities, or raw logits.
Elsewhere: decoding and scaling (runtime.preprocess), the engine (runtime.backends), the file's own words (runtime.artifact).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .artifact import Metadata, check_file, read_map
from .errors import ArtifactError, UsageError
from .preprocess import Image, Preprocess


class Prediction(NamedTuple):
    """One guess: the class's name and index, and its softmax probability (0 to 1)."""

    label: str
    index: int
    probability: float


def load(path: str | Path, device: str = "cpu", *, threads: int | None = None,
         preprocess: Preprocess | None = None, class_names: Sequence[str] | None = None, verify: bool = True) -> Predictor:
    """Open an artifact on a device.

    path: an .onnx file. device: cpu, cuda or cuda:INDEX; the provider asked for is the one used, or MissingError.
    threads: CPU threads of the engine, all usable cores when None. preprocess, class_names: only for files that do not
    carry them. verify: check the file's seal first, if it has one, which reads the file once more.
    Raises ArtifactError when the file cannot be used here or was changed after it was written, UsageError when it is not there.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        raise UsageError(f"{path}: this runtime opens .onnx files. Make one: distill export onnx CKPT")
    from .backends.ort import OrtBackend  # here, so that an engine is imported only when it is used

    if verify and path.is_file():
        check_file(path)
    backend = OrtBackend(path, device, threads)
    try:
        metadata = read_map(backend.metadata_map(), str(path))
    except UsageError as error:  # a preprocessing spec this version does not know
        raise ArtifactError(f"{path}: {error}") from error
    if metadata.precision == "int8+fp16":  # ONNX Runtime 1.32 makes int32 biases with fp16 scales, which overflow
        backend = OrtBackend(path, device, threads, integer_kernels=False)
    predictor = Predictor(backend, metadata, preprocess or metadata.preprocess,
                          list(class_names) if class_names else metadata.class_names)
    if predictor.unknown:
        warnings.warn(f"{path}: carries no {' and no '.join(predictor.unknown)}. logits() works; "
                      "give load(preprocess=..., class_names=...) for classify()", stacklevel=2)
    return predictor


class Predictor:
    """An open artifact. All methods may be called from many threads; `close()` frees the engine."""

    def __init__(self, backend: Any, metadata: Metadata, preprocess: Preprocess | None, class_names: list[str] | None) -> None:
        self._backend = backend
        self._run = backend.run
        self.metadata = metadata
        self.preprocess = preprocess
        self.class_names = class_names
        self.path: Path = backend.path
        self.provider: str = backend.provider
        self.engine = f"{backend.engine} {backend.version}"
        self.threads: int | None = backend.threads
        self.input_shape: list[int | None] = backend.input_shape
        """(N, C, H, W); None where any size goes."""
        self._sizes = tuple(backend.input_shape)

    @property
    def unknown(self) -> list[str]:
        """Which of preprocess and class_names are known neither from the file nor from the caller."""
        return [name for name in ("preprocess", "class_names") if getattr(self, name) is None]

    def logits(self, batch: np.ndarray) -> np.ndarray:
        """Raw scores (N, K) float32 of a preprocessed batch (N, C, H, W) float32.

        Raises UsageError when dtype or shape are not what the network takes.
        """
        run = self._run
        if run is None:
            raise UsageError(f"{self.path}: closed. Call runtime.load again")
        if type(batch) is not np.ndarray or batch.dtype != np.float32 or not self._fits(batch.shape):
            raise UsageError(f"batch is {_describe(batch)}; expected float32 {self._expected()}. "
                             "For images use classify()")
        return run(batch)

    def classify(self, images: Image | Sequence[Image], top: int = 5) -> list[list[Prediction]]:
        """The `top` most probable classes of every image, best first.

        images: one or many of path, encoded bytes, PIL image, uint8 array (H, W, 3). A file without class names gives
        labels "class 17". Raises ArtifactError when preprocessing is unknown, DataError naming an image that cannot be read.
        """
        if self.preprocess is None:
            raise ArtifactError(f"{self.path}: preprocessing unknown. Give runtime.load(preprocess=Preprocess(...)), "
                                "or export the file with distill export onnx")
        if isinstance(images, (str, bytes, bytearray, Path)) or not isinstance(images, (Sequence, np.ndarray)) or (
                isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[2] in (1, 3, 4)):
            images = [images]
        if len(images) == 0:
            return []
        return self.predictions(self.logits(self.preprocess.batch(images)), top)

    def predictions(self, logits: np.ndarray, top: int = 5) -> list[list[Prediction]]:
        """Softmax and the `top` best of (N, K) logits; equal scores keep the lower class first."""
        names = self.class_names
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
        probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
        return [[Prediction(names[i] if names else f"class {i}", int(i), float(row[i])) for i in order]
                for row, order in zip(probabilities, best, strict=True)]

    def close(self) -> None:
        """Free the engine; calls still running in other threads end first, later ones raise UsageError."""
        self._run = self._backend = None

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fits(self, shape: tuple[int, ...]) -> bool:
        sizes = self._sizes
        return len(shape) == 4 and shape[0] > 0 and all(
            size is None or size == given for size, given in zip(sizes, shape, strict=True))

    def _expected(self) -> str:
        return "(" + ", ".join(str(size or name) for size, name in zip(self._sizes, "NCHW", strict=True)) + ")"


def _describe(batch: Any) -> str:
    return f"{batch.dtype} {batch.shape}" if isinstance(batch, np.ndarray) else f"a {type(batch).__name__}"
