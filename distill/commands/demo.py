"""`distill demo`: the whole pipeline on handwritten digits, on a CPU, in minutes.

In:  nothing but scikit-learn's bundled digits.
Out: DIR/ with a large-kernel teacher, the same student with and without it, fp32 and int8 artifacts, and the
table.
Elsewhere: every step is a command a user could type; each one is printed before it runs.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from runtime.cli import settings
from runtime.cli.settings import Flag
from runtime.errors import MissingError, UsageError

SUMMARY = "run the whole pipeline on handwritten digits, in minutes on a CPU"
DESCRIPTION = """1,797 digits, a teacher with 13 x 13 kernels, a student trained with and without it, fp32
and int8 artifacts, and the table of accuracy against latency. Every step is printed as the command it is.

example:
  distill demo --output demo-run"""

NEEDED = {
    "train": ("torch", "torchvision", "timm", "yaml"),
    "export": ("onnx", "onnxscript", "onnxslim"),
    "cpu": ("onnxruntime",),
    "demo": ("sklearn",),
}
"""Packages that the steps import, by the extra that brings them; export brings those of train, too."""
MARK = "this folder was written by distill demo"
"""In DIR/README.txt: only such a folder is ever replaced."""


@dataclass(frozen=True)
class Options:
    """Flags of `distill demo`."""

    output: Annotated[str, Flag("DIR", aliases=("-o",))] = "demo-run"
    """Folder for everything the demo makes."""
    overwrite: bool = False
    """Replace the folder of an earlier demo."""
    seed: int = 0
    """Seed for all three trainings."""
    teacher_epochs: Annotated[int, Flag("N", least=1)] = 16
    """Passes of the teacher over the 1,352 training digits."""
    epochs: Annotated[int, Flag("N", least=1)] = 5
    """Passes of student and control over the same digits."""
    iterations: Annotated[int, Flag("N", least=1)] = 300
    """Timed calls per artifact in the table."""

    def __post_init__(self) -> None:
        settings.check(self)


def commands_of(options: Options) -> list[list[str]]:
    """What the demo types, in order: arguments after `distill`."""
    out = Path(options.output)
    seed = ["--seed", str(options.seed)]
    teacher, student = out / "teacher", out / "student"
    files = {name: str(out / f"{name}.onnx") for name in ("teacher", "control", "student", "student.int8")}
    return [
        [
            "train",
            "--recipe",
            "demo",
            "--teacher",
            "none",
            "--student",
            "convnext_atto",
            "--student-args",
            "kernel_sizes=13",
            "depths=[1,1,2,1]",
            "dims=[32,64,128,256]",
            "patch_size=1",
            "ls_init_value=1.0",
            "norm_layer=batchnorm2d",
            "conv_mlp=true",
            "--epochs",
            str(options.teacher_epochs),
            "--lr",
            "5e-3",
            "--output",
            str(teacher),
            *seed,
        ],
        [
            "train",
            "--recipe",
            "demo",
            "--teacher-ckpt",
            str(teacher / "best.pth"),
            "--control",
            "--epochs",
            str(options.epochs),
            "--output",
            str(student),
            *seed,
        ],
        ["export", "onnx", str(teacher / "best.pth"), "--output", files["teacher"]],
        ["export", "onnx", str(student / "control" / "best.pth"), "--output", files["control"]],
        ["export", "onnx", str(student / "best.pth"), "--output", files["student"]],
        [
            "export",
            "onnx",
            str(student / "best.pth"),
            "--int8",
            "--placement",
            "cpu",
            "--calib",
            "digits",
            "--output",
            files["student.int8"],
        ],
        [
            "bench",
            "table",
            files["student"],
            files["student.int8"],
            "--data",
            "digits",
            "--teacher",
            files["teacher"],
            "--control",
            files["control"],
            "--iterations",
            str(options.iterations),
            "--output",
            str(out / "table"),
        ],
    ]


def run(options: Options) -> int:
    """Run every command; the first that fails has said why, and ends the demo with its exit code."""
    from runtime.cli.front_door import main

    require_packages()
    _prepare(Path(options.output), options.overwrite)
    began = time.monotonic()
    for arguments in commands_of(options):
        print(f"\n$ distill {shlex.join(arguments)}", file=sys.stderr, flush=True)
        if code := main(arguments):
            print(f"the demo stopped at: distill {shlex.join(arguments)}", file=sys.stderr)
            return code
    print(
        f"everything is in {options.output}/ ({time.monotonic() - began:.0f} s). On your own images:"
        " distill --help",
        file=sys.stderr,
    )
    return 0


def require_packages() -> None:
    """Raise MissingError naming all that is missing, before the first step."""
    missing = {
        extra: [name for name in names if importlib.util.find_spec(name) is None]
        for extra, names in NEEDED.items()
    }
    extras = [extra for extra, names in missing.items() if names]
    if "export" in extras and "train" in extras:
        extras.remove("train")
    if extras:
        packages = ", ".join(name for names in missing.values() for name in names)
        raise MissingError(
            f'the demo needs {packages}. Install them: pip install "large2small[{",".join(extras)}]"'
        )


def _prepare(folder: Path, overwrite: bool) -> None:
    note = folder / "README.txt"
    if folder.exists():
        ours = note.is_file() and MARK in note.read_text(encoding="utf-8", errors="replace")
        if not (overwrite and ours):
            raise UsageError(
                f"{folder} exists already"
                + (
                    ". Add --overwrite to replace it"
                    if ours
                    else " and was not made by the demo. Choose another --output"
                )
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    note.write_text(f"{MARK}\n", encoding="utf-8")
