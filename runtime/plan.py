"""Will this plan run here? Everything that can be known before TensorRT opens it, and TensorRT itself.

In:  a .plan file with its metadata beside it; what this machine has.
Out: the metadata, or one error that says which of version, GPU, system, driver or file is wrong; the TensorRT module and its log.
Elsewhere: opening and running it (runtime.backends.trt), what lies beside it (runtime.artifact), building it again (distill
     export trt --rebuild).

A plan's head (NVIDIA's trtexec reads it the same way for --getPlanVersionOnly, samples/common/sampleEngines.cpp): four letters,
and the version of the TensorRT that wrote it in bytes 24 to 27.
"""

from __future__ import annotations

import contextlib
import importlib
import platform
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from . import files
from .artifact import Metadata, read_sidecar, sidecar_of
from .errors import ArtifactError, MissingError, UsageError

MAGIC = {b"ftrt": "tensorrt", b"vtrt": "rtx"}
VERSION_AT = slice(24, 28)
MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx_bindings"}
PRODUCTS = {"tensorrt": "TensorRT", "rtx": "TensorRT for RTX"}

RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
"""GPUs that TensorRT for RTX names (docs.nvidia.com/deeplearning/tensorrt-rtx, support matrix); on others it is tried, and what
it says is passed on."""

KEPT = 40
"""Lines of TensorRT's log that are kept for messages."""

SHOWN = 3
"""Of them, errors that a message ends with."""

LAYER_DUMP = "Layers:\n"
"""How TensorRT for RTX begins the log message that lists the finished engine's layers."""


class Header(NamedTuple):
    """What a plan's first bytes say."""

    flavor: str
    """tensorrt or rtx."""
    version: tuple[int, int, int, int]
    """Of the TensorRT that wrote it."""


def read_header(path: str | Path) -> Header:
    """Raises ArtifactError for a file that is empty, too short or no plan."""
    with open(path, "rb") as file:
        head = file.read(VERSION_AT.stop)
    if not head:
        raise ArtifactError(f"{path}: empty. {_again(path)}")
    flavor = MAGIC.get(head[:4])
    if flavor is None:
        raise ArtifactError(f"{path}: not a TensorRT plan (it begins with {head[:4]!r}; expected b'ftrt' or b'vtrt'). "
                            f"{_again(path)}")
    if len(head) < VERSION_AT.stop:
        raise ArtifactError(f"{path}: cut short ({len(head)} bytes). {_again(path)}")
    return Header(flavor, tuple(head[VERSION_AT]))  # type: ignore[arg-type]


def preflight(path: str | Path, verify: bool = True) -> Metadata:
    """The plan's metadata, after all checks that need neither TensorRT nor a GPU: the file, what lies beside it, the system.

    verify: with False a plan of another origin passes, with nothing beside it, and its bytes are not hashed.
    Raises ArtifactError.
    """
    path = Path(path)
    read_header(path)
    if not verify and not sidecar_of(path).exists():
        return Metadata(precision="unknown")
    meta = read_sidecar(path)
    built = meta.engine
    if not built or "plan_sha256" not in built:
        raise ArtifactError(f"{sidecar_of(path)}: does not describe a plan. {_again(path)}")
    size = path.stat().st_size
    if size != built["plan_bytes"]:
        what = "cut short" if size < built["plan_bytes"] else "longer than it was written"
        raise ArtifactError(f"{path}: {size:,} bytes, {sidecar_of(path).name} says {built['plan_bytes']:,}: {what}, or the "
                            f"metadata is of another plan. {_again(path)}")
    if verify and files.sha256(path) != built["plan_sha256"]:
        raise ArtifactError(f"{path}: its SHA-256 is not the one in {sidecar_of(path).name}: changed since it was built, or the "
                            f"metadata is of another plan. {_again(path)}")
    here = f"{platform.system()} {platform.machine()}"
    if built["platform"] != here:
        raise ArtifactError(f"{path}: built on {built['platform']}, this is {here}; plans do not move between systems. "
                            f"{rebuild(path)}")
    return meta


def require_version(path: str | Path, meta: Metadata) -> ModuleType:
    """The TensorRT module that the plan needs. Raises MissingError where it is not here, ArtifactError for another version."""
    header = read_header(path)
    trt = tensorrt_module(header.flavor)
    wrote, here = ".".join(map(str, header.version)), str(trt.__version__)
    parts = min(len(here.split(".")), len(header.version))  # a module may leave the build number out
    compatible = bool(meta.engine and meta.engine["flags"]["version_compat"])
    same = here.split(".")[:parts] == wrote.split(".")[:parts]
    if not same and not (compatible and here.split(".")[0] >= wrote.split(".")[0]):
        raise ArtifactError(f"{path}: built by {PRODUCTS[header.flavor]} {wrote}, here is {here}; a plan runs on its own version "
                            f"only. {rebuild(path)}")
    return trt


def require_gpu(path: str | Path, meta: Metadata, device: Any) -> None:
    """Raise ArtifactError when the plan was built for another kind of GPU. device: a runtime.cuda.Device."""
    built, header = meta.engine, read_header(path)
    if built is None or header.flavor == "rtx" or built["compute_capability"] is None:
        return
    needs, has = tuple(map(int, built["compute_capability"].split("."))), tuple(device.compute_capability)
    level = built["flags"]["hardware_compat"]
    fits = {"none": has == needs, "same_cc": has == needs, "ampere_plus": has >= (8, 0)}[level]
    if not fits:
        raise ArtifactError(f"{path}: built for compute capability {built['compute_capability']} ({built['gpu']}), {device.name} "
                            f"has {'.'.join(map(str, has))}. {rebuild(path)}")


def gpu_index(device: str) -> int:
    """'cuda' -> 0, 'cuda:1' -> 1. Raises UsageError for anything else: a plan runs on an NVIDIA GPU."""
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise UsageError(f"device {device!r}: a plan runs on an NVIDIA GPU. Give cuda or cuda:INDEX, or the .onnx file beside it "
                         "for a CPU")
    return int(index or 0)


def tensorrt_module(flavor: str) -> ModuleType:
    """TensorRT's Python module, or that of TensorRT for RTX. Raises MissingError naming the extra."""
    try:
        return importlib.import_module(MODULES[flavor])
    except ImportError as error:
        extra = "rtx" if flavor == "rtx" else "tensorrt"
        where = "" if flavor == "rtx" else " (on Jetson it comes with JetPack: use its system Python packages)"
        raise MissingError(f'this needs {PRODUCTS[flavor]}, which is not here ({" ".join(str(error).split())}). Install it: '
                           f'pip install "large2small[{extra}]"{where}') from error


def rebuild(path: str | Path) -> str:
    """How to get a plan that fits."""
    return f"Build it again here, from the .onnx file beside it: distill export trt --rebuild {path}"


def _again(path: str | Path) -> str:
    return f"Copy it again from its source, or build it again: distill export trt --rebuild {path}"


class Log:
    """The last warnings and errors of TensorRT, and the list of an engine's layers, which TensorRT for RTX logs."""

    def __init__(self) -> None:
        self.lines: deque[tuple[str, str]] = deque(maxlen=KEPT)
        self.layer_dump: str | None = None

    def add(self, severity: str, text: str) -> None:
        if severity in ("INTERNAL_ERROR", "ERROR", "WARNING"):
            self.lines.append((severity, " ".join(text.split())))
        elif text.startswith(LAYER_DUMP):
            self.layer_dump = text

    def of(self, *severities: str) -> list[str]:
        """Different lines of these severities, oldest first."""
        return list(dict.fromkeys(text for severity, text in self.lines if severity in severities))

    def reason(self) -> str:
        """The last errors in one line."""
        return "; ".join(self.of("INTERNAL_ERROR", "ERROR")[-SHOWN:]) or "TensorRT gave no reason"


_LISTENING: list[Log] = []
_LOGGERS: dict[str, Any] = {}


@contextlib.contextmanager
def logged() -> Iterator[Log]:
    """Everything TensorRT says while the block runs, in any thread: its calls only return None or False when they fail."""
    log = Log()
    _LISTENING.append(log)
    try:
        yield log
    finally:
        _LISTENING[:] = [each for each in _LISTENING if each is not log]


def logger(trt: ModuleType) -> Any:
    """The one logger of this process: TensorRT ignores every other, and keeps it for ever."""
    if trt.__name__ not in _LOGGERS:
        class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
            """TensorRT's callback; it may come from several threads, and a deque's append is atomic."""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                for log in tuple(_LISTENING):
                    log.add(severity.name, message)

        _LOGGERS[trt.__name__] = Logger()
    return _LOGGERS[trt.__name__]
