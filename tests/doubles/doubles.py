"""How tests use the TEST DOUBLES of TensorRT and of the CUDA driver: the environment of a process that finds
them.

In:  a folder to compile into.
Out: environment variables for a child process, never for this one, where a driver would make other tests see
     a GPU; what is written beside a plan.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.records import EngineRecord

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KINDS = ("device", "pinned", "streams", "events", "graphs", "contexts", "bytes")
"""What the double of the driver counts, in its order."""


def environment(
    folder: Path, *, version: str = "10.3", driver: bool = True, tensorrt: bool = True, **settings: object
) -> dict:
    """settings: more variables, such as LIBCUDA_DOUBLE_CAPABILITY=86. Skips the test where no C
    compiler is.
    """
    paths = [
        ROOT,
        ROOT / "tests" / "helpers",
        HERE,
        *([HERE / "modules"] if tensorrt else []),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    found = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "TENSORRT_DOUBLE_VERSION": version,
        "OMP_NUM_THREADS": "1",
        **{name: str(value) for name, value in settings.items()},
    }
    if driver:
        found["LD_LIBRARY_PATH"] = os.pathsep.join(
            [str(compiled(folder)), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        )
    return found


def compiled(folder: Path) -> Path:
    """The folder with libcuda.so.1 in it, compiled there once."""
    target = folder / "libcuda.so.1"
    if not target.exists():
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None or not sys.platform.startswith("linux"):
            pytest.skip("the test double of the CUDA driver needs Linux and a C compiler")
        subprocess.run(
            [
                compiler,
                "-O1",
                "-Wall",
                "-Werror",
                "-shared",
                "-fPIC",
                "-Wl,-soname,libcuda.so.1",
                "-o",
                target,
                HERE / "libcuda_double.c",
                "-lpthread",
            ],
            check=True,
        )
    return folder


def alive() -> dict[str, int]:
    """What exists on the double of the driver, in this process."""
    library = ctypes.CDLL("libcuda.so.1")
    library.double_live.restype = ctypes.c_long
    return {kind: library.double_live(number) for number, kind in enumerate(KINDS)}


def about(plan: bytes, onnx: Path, **changes: object) -> EngineRecord:
    """What `distill export trt` writes beside a plan about how it was built."""
    flags = {
        "workspace_bytes": None,
        "opt_level": 3,
        "hardware_compat": "none",
        "version_compat": False,
        "strip_weights": False,
        "sparsity": False,
        "tf32": True,
    }
    built = {
        "flavor": "tensorrt",
        "version": "10.3.0",
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
        "plan_bytes": len(plan),
        "platform": f"{platform.system()} {platform.machine()}",
        "gpu": "Test Double GPU",
        "compute_capability": "9.0",
        "driver": None,
        "flags": flags | changes.pop("flags", {}),
        "onnx": {"file": onnx.name, "sha256": hashlib.sha256(onnx.read_bytes()).hexdigest()},
        "layers": None,
        "warnings": [],
        "state": "built, not run",
    }
    return EngineRecord.from_dict(built | changes, "the double")
