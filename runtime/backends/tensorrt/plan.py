"""Will this plan run here? Everything that can be known before TensorRT opens it, and TensorRT itself.

In:  a .plan file with its metadata beside it; what this machine has.
Out: the metadata, or one error that says which of version, GPU, system, driver or file is wrong; the TensorRT
module.
Elsewhere: opening and running it (runtime.backends.tensorrt.backend), what is beside it (runtime.artifact),
     what TensorRT says (runtime.backends.tensorrt.messages), building it again (distill export trt
     --rebuild).

A plan's head (NVIDIA's trtexec reads it the same way for --getPlanVersionOnly,
samples/common/sampleEngines.cpp): four letters, and the version of the TensorRT that wrote it in bytes 24 to
27.
"""

from __future__ import annotations

import contextlib
import importlib
import platform
import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ... import files
from ...artifact import Metadata, read_sidecar, sidecar_of
from ...errors import ArtifactError, MissingError, UsageError
from ...records import EngineRecord
from .. import is_index

MAGIC = {b"ftrt": "tensorrt", b"vtrt": "rtx"}
VERSION_AT = slice(24, 28)
MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx_bindings"}
FLAVORS = {module: flavor for flavor, module in MODULES.items()}
PRODUCTS = {"tensorrt": "TensorRT", "rtx": "TensorRT for RTX"}

RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
"""GPUs that TensorRT for RTX names (docs.nvidia.com/deeplearning/tensorrt-rtx, support matrix); on others it
is tried, and what it says is passed on."""

RECORDED = (
    "flavor",
    "version",
    "plan_sha256",
    "plan_bytes",
    "platform",
    "onnx",
)
"""What the metadata beside a plan must say for these checks."""


class Header(NamedTuple):
    """What a plan's first bytes say."""

    flavor: str
    """tensorrt or rtx."""
    version: tuple[int, int, int, int] | None
    """Of the TensorRT that wrote it; None when a version-compatible plan does not say."""


def read_header(path: str | Path) -> Header:
    """Raises ArtifactError for a file that is empty, too short or not a plan."""
    with files.open_regular(path) as file:
        head = file.read(VERSION_AT.stop)
    if not head:
        raise ArtifactError(f"{path}: empty. {_again(path)}")
    flavor = MAGIC.get(head[:4])
    if flavor is None:
        raise ArtifactError(
            f"{path}: not a TensorRT plan (it begins with {head[:4]!r}; expected b'ftrt' or b'vtrt'). "
            f"{_again(path)}"
        )
    if len(head) < VERSION_AT.stop:
        raise ArtifactError(f"{path}: cut short ({len(head)} bytes). {_again(path)}")
    major, minor, patch, build = head[VERSION_AT]
    return Header(flavor, (major, minor, patch, build))


def preflight(path: str | Path, verify: bool = True) -> Metadata:
    """The plan's metadata, after all checks that need neither TensorRT nor a GPU: the file, what is beside
    it, the system.

    verify: with False a plan of another origin passes, with nothing beside it, and its bytes are not hashed.
    Raises ArtifactError.
    """
    meta = require_whole(path, verify)
    built, here = meta.engine.platform if meta.engine else None, f"{platform.system()} {platform.machine()}"
    if built not in (None, here):
        raise ArtifactError(
            f"{path}: built on {built}, this is {here}; plans do not move between systems. {rebuild(path)}"
        )
    return meta


def require_whole(path: str | Path, verify: bool = True) -> Metadata:
    """The plan's metadata, when both files are as they were written and belong together. Raises
    ArtifactError.
    """
    path = Path(path)
    header(path)
    if not verify and not sidecar_of(path).exists():
        return Metadata(precision="unknown")
    meta = read_sidecar(path)
    built = meta.engine or EngineRecord()
    missing = [name for name in RECORDED if getattr(built, name) is None]
    if missing:
        raise ArtifactError(
            f"{sidecar_of(path)}: does not describe a plan (no {', '.join(missing)}). {_again(path)}"
        )
    size = path.stat().st_size
    expected = built.plan_bytes or 0
    if size != expected:
        what = "cut short" if size < expected else "longer than it was written"
        raise ArtifactError(
            f"{path}: {size:,} bytes, {sidecar_of(path).name} says {expected:,}: {what}, or the "
            f"metadata is of another plan. {_again(path)}"
        )
    if verify and files.sha256(path) != built.plan_sha256:
        raise ArtifactError(
            f"{path}: its SHA-256 is not the one in {sidecar_of(path).name}: changed since it was built, or"
            f" the metadata is of another plan. {_again(path)}"
        )
    return meta


def header(path: str | Path) -> Header:
    """`read_header`, and for a version-compatible plan, which may begin with its own runtime, the flavor its
    metadata says.
    """
    path = Path(path)
    try:
        return read_header(path)
    except ArtifactError:
        with contextlib.suppress(ArtifactError):  # what is wrong with the plan itself is the one to tell
            built = read_sidecar(path).engine
            if built and built.flavor in PRODUCTS and path.stat().st_size and built.flags.version_compat:
                return Header(built.flavor, None)
        raise


def require_version(path: str | Path, meta: Metadata) -> ModuleType:
    """The TensorRT module that the plan needs. Raises MissingError where it is not here, ArtifactError for
    another version.

    A plan runs on its own version to the build number; a version-compatible one on later ones too.
    """
    found = header(path)
    trt = tensorrt_module(found.flavor)
    compatible = bool(meta.engine and meta.engine.flags.version_compat)
    wrote = found.version or _numbers((meta.engine and meta.engine.version) or "")
    here = _numbers(str(trt.__version__))
    parts = min(len(here), len(wrote))  # a module may leave the build number out
    same, later = here[:parts] == wrote[:parts], here[:parts] > wrote[:parts]
    if not same and not (compatible and later):
        raise ArtifactError(
            f"{path}: built by {PRODUCTS[found.flavor]} {'.'.join(map(str, wrote))}, here is"
            f" {trt.__version__}; a plan runs on its own"
            f" version{' or a later one' if compatible else ' only'}. {rebuild(path)}"
        )
    return trt


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version)[:4])


def require_gpu(path: str | Path, meta: Metadata, device: Any) -> None:
    """Raise ArtifactError when the plan was built for another kind of GPU. device: a
    runtime.backends.tensorrt.cuda.Device.

    TensorRT for RTX makes its kernels on the user's GPU, so its plans fit any that it supports.
    """
    built = meta.engine
    if built is None or built.flavor == "rtx" or built.compute_capability is None:
        return
    needs, has = _numbers(built.compute_capability), tuple(device.compute_capability)
    fits = has >= (8, 0) if built.flags.hardware_compat == "ampere_plus" else has == needs
    if not fits:
        raise ArtifactError(
            f"{path}: built for compute capability {built.compute_capability} ({built.gpu}),"
            f" {device.name} has {'.'.join(map(str, has))}. {rebuild(path)}"
        )


def unsupported_gpu(flavor: str, device: Any) -> str:
    """A sentence for a GPU that TensorRT for RTX does not name, else nothing."""
    if flavor != "rtx" or tuple(device.compute_capability) in RTX_CAPABILITIES:
        return ""
    names = ", ".join(".".join(map(str, each)) for each in RTX_CAPABILITIES)
    return (
        f" TensorRT for RTX names GPUs of compute capability {names}; this one has "
        f"{'.'.join(map(str, device.compute_capability))}."
    )


def gpu_index(device: str) -> int:
    """'cuda' -> 0, 'cuda:1' -> 1. Raises UsageError for anything else: a plan runs on an NVIDIA GPU."""
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not is_index(index)):
        raise UsageError(
            f"device {device!r}: a plan runs on an NVIDIA GPU. Give cuda or cuda:INDEX, or the .onnx file"
            " beside it for a CPU"
        )
    return int(index or 0)


def tensorrt_module(flavor: str) -> ModuleType:
    """TensorRT's Python module, or that of TensorRT for RTX. Raises MissingError naming the extra."""
    try:
        return importlib.import_module(MODULES[flavor])
    except (ImportError, OSError) as error:  # OSError: a shared library did not load
        extra = "rtx" if flavor == "rtx" else "tensorrt"
        where = (
            "" if flavor == "rtx" else " (on Jetson it comes with JetPack: use its system Python packages)"
        )
        raise MissingError(
            f"this needs {PRODUCTS[flavor]}, which is not here ({' '.join(str(error).split())}). Install it: "
            f'pip install "large2small[{extra}]"{where}'
        ) from error


def rebuild(path: str | Path) -> str:
    """How to get a plan that fits."""
    return f"Build it again here, from the .onnx file beside it: distill export trt --rebuild {path}"


def _again(path: str | Path) -> str:
    return f"Copy it again from its source, or build it again: distill export trt --rebuild {path}"
