"""`distill env`: what this machine has, and for every thing one may want to do, whether it can be done here
and what is missing.

In:  nothing but the machine; every library is asked in a way that may fail.
Out: a table, or with --json one object; exit code 0, whatever is missing.
Elsewhere: which engines there are and what they need (runtime.backends.registry), the conditions written
beside every number (runtime.env), the own words of the driver (runtime.backends.tensorrt.driver).
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .. import backends, env, files
from ..backends import registry
from ..backends.tensorrt import driver
from ..cli.terminal import screen

SUMMARY = "show what this machine has, and what is missing for what"
DESCRIPTION = """examples:
  distill env
  distill env --json"""

PIPE_WIDTH = 100
"""Columns of output that goes to a file or a pipe, where rich would assume 80."""

SHOWN_PACKAGES = (
    *env.PACKAGES,
    *env.ENGINE_PACKAGES,
    "tensorrt_rtx_cu13_libs",
    "onnxscript",
    "onnxslim",
    "large2small",
)

JETPACK = "JetPack's own packages: python3 -m venv --system-site-packages"
"""Where a Jetson's TensorRT and driver are from."""

NO_DRIVER = "NVIDIA's driver, which pip does not have"


def _extra(name: str) -> str:
    return f'pip install "large2small[{name}]"'


def _libraries() -> dict[str, backends.Library]:
    """Name -> library, of all engines."""
    return {library.name: library for engine in registry.engines().values() for library in engine.libraries}


FIXES = {
    "torch": _extra("train"),
    "timm": _extra("train"),
    "yaml": _extra("train"),
    "torch with CUDA": "a CUDA build, from pytorch.org",
    "onnx": _extra("export"),
    "onnxscript": _extra("export"),
    "onnxslim": _extra("export"),
    "sklearn": _extra("demo"),
    "matplotlib": _extra("report"),
    "jinja2": _extra("report"),
    "CUDAExecutionProvider": _extra("gpu"),
    "TensorrtExecutionProvider": _extra("gpu"),
    "tensorrt or tensorrt_rtx": _extra("tensorrt"),
    "pycuda or cuda-python": _extra("cuda-python"),
    "cuda-python": _extra("cuda-python"),
    "a GPU": NO_DRIVER,
    "a GPU of compute capability 8.0": "a newer one; cuDNN on others",
    "triton": "torch for Linux; cuDNN elsewhere",
    **{library.name: library.install for library in _libraries().values()},
}
"""What a capability needs -> how to get it. "or" is for needs with an alternative."""


def _runs() -> dict[str, tuple[str, ...]]:
    """Running a file on each engine -> what that needs; the preferred engine of a file is not named."""
    return {
        f"run {suffix}" + ("" if engine.preferred else f" on {engine.title}"): engine.needs
        or tuple(library.name for library in engine.libraries)
        for engine in registry.engines().values()
        for suffix in engine.suffixes
    }


EXPORT = ("torch", "timm", "yaml", "onnx", "onnxscript", "onnxslim", "onnxruntime")

CAPABILITIES: dict[str, tuple[str, ...]] = {
    "train, eval": ("torch", "timm", "yaml"),
    "report": ("torch", "timm", "yaml", "matplotlib", "jinja2"),
    "train on a GPU": ("torch", "timm", "yaml", "torch with CUDA", "a GPU"),
    "large kernels by Triton": (
        "torch with CUDA",
        "triton",
        "a GPU of compute capability 8.0",
    ),
    "export onnx, --int8, --fp16": EXPORT,
    "export trt CKPT": ("tensorrt", "a GPU", *EXPORT),
    "export trt FILE.onnx": ("tensorrt", "a GPU", "onnx", "onnxruntime"),
    "export trt --flavor rtx": ("tensorrt_rtx", "onnx"),
    "export triton": ("onnx",),
    **_runs(),
    "run .onnx --provider cuda": ("CUDAExecutionProvider", "a GPU"),
    "run .onnx --provider tensorrt": ("TensorrtExecutionProvider", "tensorrt", "a GPU"),
    "run .plan --cuda-graph": ("tensorrt or tensorrt_rtx", "cuda-python", "a GPU"),
    "demo": (*EXPORT, "sklearn"),
}
"""What one may want to do -> what it needs, as named in FIXES."""


@dataclass(frozen=True)
class Options:
    """Settings of `distill env`."""

    json: bool = False
    """Print one JSON object and nothing else."""


class Library(NamedTuple):
    """A library that was asked: its version when it answers, or why it does not."""

    version: str | None
    error: str | None
    details: list[str]
    """What the engine shows of it: providers, devices."""


class Capability(NamedTuple):
    """Something one may want to do here."""

    name: str
    available: bool
    missing: list[str]
    install: list[str]
    """What to do about it, in order."""


def collect() -> dict[str, Any]:
    """Everything, as JSON values; null where not known or not there."""
    found = driver.find()
    libraries = {
        name: _ask(library.module or name, library.details) for name, library in _libraries().items()
    }
    board = env.jetson()
    here = _present(found, libraries)
    return {
        "system": {
            "system": env.system(),
            "python": platform.python_version(),
            "memory_gib": env.memory_gib(),
            "cores": env.usable_cores(),
            "cpu": env.cpu_model(),
            "cpu_features": env.cpu_features(),
            "jetson": board,
        },
        "gpu": _gpu(found),
        **_by_engine(libraries),
        "packages": env.versions(SHOWN_PACKAGES),
        "capabilities": [
            capability(name, needs, here, on_jetson=board is not None)._asdict()
            for name, needs in CAPABILITIES.items()
        ],
    }


def capability(
    name: str, needs: Sequence[str], here: Mapping[str, bool], on_jetson: bool = False
) -> Capability:
    """Whether all needs are here, and otherwise what to do, each command once. "a or b" is met by either."""
    missing = [need for need in needs if not any(here[each] for each in need.split(" or "))]
    fixes = (
        FIXES | {"tensorrt": JETPACK, "tensorrt or tensorrt_rtx": JETPACK, "a GPU": JETPACK}
        if on_jetson
        else FIXES
    )
    return Capability(name, not missing, missing, list(dict.fromkeys(fixes[need] for need in missing)))


def _ask(module: str, details: Any = None) -> Library:
    """Import a library and ask it. Whatever it raises is its answer: half-installed engines fail in many
    ways.
    """
    if importlib.util.find_spec(module) is None:
        return Library(None, "not installed", [])
    try:
        imported = importlib.import_module(module)
        return Library(
            str(imported.__version__).split("-")[0], None, list(details(imported)) if details else []
        )
    except Exception as error:
        return Library(None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", [])


def _by_engine(libraries: Mapping[str, Library]) -> dict[str, dict[str, Any]]:
    """{engine: its usual library, with any other one under its own name}."""
    found: dict[str, dict[str, Any]] = {}
    for engine in registry.engines().values():
        for library in engine.libraries:
            asked = libraries[library.name]._asdict()
            if engine.name in found:
                found[engine.name][_short(engine, library)] = asked
            else:
                found[engine.name] = asked
    return found


def _short(engine: backends.Engine, library: backends.Library) -> str:
    """tensorrt_rtx -> rtx, below tensorrt."""
    return library.name.removeprefix(f"{engine.name}_")


def _present(found: driver.Driver | str, libraries: Mapping[str, Library]) -> dict[str, bool]:
    """Every single need of FIXES -> whether it is here."""
    here = {
        name: importlib.util.find_spec(name) is not None
        for name in (
            "torch",
            "timm",
            "yaml",
            "onnx",
            "onnxscript",
            "onnxslim",
            "sklearn",
            "matplotlib",
            "jinja2",
            "pycuda",
            "triton",
        )
    }
    here |= {name: library.version is not None for name, library in libraries.items()}
    providers = libraries["onnxruntime"].details
    gpus = found.gpus if isinstance(found, driver.Driver) else []
    return here | {
        "torch with CUDA": _torch_cuda() is not None,
        "CUDAExecutionProvider": "CUDAExecutionProvider" in providers,
        "TensorrtExecutionProvider": "TensorrtExecutionProvider" in providers,
        "cuda-python": bool(env.versions(("cuda-bindings",))),
        "a GPU": bool(gpus),
        "a GPU of compute capability 8.0": any(_capability(gpu) >= (8, 0) for gpu in gpus),
    }


def _capability(gpu: driver.Gpu) -> tuple[int, ...]:
    return tuple(int(part) for part in gpu.compute_capability.split("."))


def _torch_cuda() -> str | None:
    """The CUDA that torch was built for, from its version file: importing it would take seconds."""
    spec = importlib.util.find_spec("torch")
    try:
        text = (
            (Path(spec.origin).parent / "version.py").read_text("utf-8", "replace")
            if spec and spec.origin
            else ""
        )
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=]*=\s*'([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else None


def _gpu(found: driver.Driver | str) -> dict[str, Any]:
    """What the driver says, beside what nvidia-smi says."""
    states, seen = env.gpu_states(), env.gpu()
    known = found if isinstance(found, driver.Driver) else None
    gpus = [asdict(gpu) for gpu in known.gpus] if known else []
    listed = seen.splitlines() if seen else []
    note = (
        f"nvidia-smi lists {len(listed)} GPUs, CUDA {len(gpus)}"
        if listed and len(listed) != len(gpus)
        else None
    )
    return {
        "cuda": known.cuda if known else None,
        "error": None if known else found,
        "gpus": gpus,
        "nvidia_smi": listed,
        "state": states,
        "note": note,
    }


def to_rich(values: Mapping[str, Any]) -> Any:
    """Two tables: what there is, and what can be done with it."""
    from rich.console import Group

    return Group(_machine_table(values), _capability_table(values["capabilities"]))


def _machine_table(values: Mapping[str, Any]) -> Any:
    made = _table("this machine", ("", False), ("", True))
    for name, text in _machine_rows(values):
        made.add_row(name, _text(text))
    return made


def _machine_rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    system, gpu = values["system"], values["gpu"]
    features = (
        "not known"
        if system["cpu_features"] is None
        else " ".join(system["cpu_features"]) or "none that matters"
    )
    rows = [
        ("system", f"{system['system']}, Python {system['python']}"),
        (
            "CPU",
            f"{system['cpu'] or 'unknown'}, {system['cores']} cores, {system['memory_gib'] or 'unknown'} GiB",
        ),
        ("CPU features", features),
    ]
    if system["jetson"]:
        rows.append(
            ("Jetson", ", ".join(f"{key} {value or 'unknown'}" for key, value in system["jetson"].items()))
        )
    rows += [
        (
            f"GPU {each['index']}",
            (
                f"{each['name']}, compute capability {each['compute_capability']}, "
                f"{each['memory_bytes'] / 2**30:.1f} GiB"
            ),
        )
        for each in gpu["gpus"]
    ]
    rows += [("driver", gpu["error"] or f"CUDA {gpu['cuda']}" + ("" if gpu["gpus"] else ", no GPU"))]
    rows += [("nvidia-smi", line) for line in gpu["nvidia_smi"]]
    if gpu["note"]:
        rows.append(("", gpu["note"]))
    rows += [
        (about.title, _said(values[engine.name] if not index else values[engine.name][_short(engine, about)]))
        for engine in registry.engines().values()
        for index, about in enumerate(engine.libraries)
    ]
    return [
        *rows,
        ("packages", ", ".join(f"{name} {version}" for name, version in values["packages"].items())),
    ]


def _said(library: Mapping[str, Any]) -> str:
    """Version and details of a library, or why it does not answer."""
    details = f": {', '.join(library['details'])}" if library["details"] else ""
    return str(library["error"]) if library["version"] is None else f"{library['version']}{details}"


def _capability_table(capabilities: Sequence[Mapping[str, Any]]) -> Any:
    made = _table(
        "what can be done here", ("to", True), ("", False), ("missing, and where it comes from", True)
    )
    for each in capabilities:
        needs = [
            ", ".join(each["missing"]),
            *(f"  {fix}" for fix in each["install"]),
        ]  # a command on a line of its own
        made.add_row(
            _text(each["name"]), "yes" if each["available"] else "no", _text("\n".join(needs).rstrip())
        )
    return made


def _table(title: str, *columns: tuple[str, bool]) -> Any:
    """Columns as (heading, whether it may be broken into lines)."""
    from rich import box
    from rich.table import Table

    made = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_header=any(heading for heading, _ in columns),
    )
    for heading, wraps in columns:
        made.add_column(heading, no_wrap=not wraps, overflow="fold")
    return made


def _text(words: str) -> Any:
    """Plain text: in markup, large2small[train] would lose its brackets."""
    from rich.text import Text

    return Text(words)


def run(options: Options) -> None:
    """Look, and print what was found."""
    values = collect()
    if options.json:
        print(files.json_text(values, indent=2))
        return
    screen(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(to_rich(values))
