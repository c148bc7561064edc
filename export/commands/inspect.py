"""`distill inspect`: what is this file, where does it come from, is it still what was written?

In:  an .onnx file (ours or foreign), a plan, a checkpoint or a run folder; on wish its ancestors. Only a
     checkpoint needs torch, and only the operators of a graph need onnx.
Out: about twelve lines, with --all or --json everything: metadata, precision by operator, recorded checks,
     lineage hashed again, warnings; exit code 4 when a hash does not hold.
Elsewhere: the seal (runtime.artifact), hashing ancestors (export.inspection.lineage), precision
     (export.graph.precision), what the numbers were measured on (export.checks.verify); running the file
     against its checkpoint (export.commands.parity).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from runtime import files
from runtime.cli.settings import Flag
from runtime.cli.terminal import loading
from runtime.errors import ArtifactError, Large2SmallError, UsageError

from ..inspection import contents, lineage

SUMMARY = "show what a file is, where it comes from, and whether it is still what was written"
DESCRIPTION = """Hashes are compared with what is beside the file under the recorded name, and with what the
flags name.

examples:
  distill inspect best.int8.onnx
  distill inspect runs/a --all
  distill inspect best.int8.onnx --checkpoint runs/a/best.pth --data data/val --calib data/train
  distill inspect best.pth --teacher teacher.pth --json"""


@dataclass(frozen=True)
class Options:
    """Flags of `distill inspect`."""

    file: Annotated[Path, Flag("FILE", positional=True)]
    """File to inspect: an .onnx file, a .plan file, a checkpoint, or a run folder for its best.pth."""
    all: bool = False
    """Print everything that the file says, not the main lines alone."""
    checkpoint_key: Annotated[str, Flag("KEY")] = ""
    """Entry of a foreign file that holds the weights, for example ema.module; by default averaged weights
    before others."""
    checkpoint: Annotated[Path | None, Flag("CKPT")] = None
    """Checkpoint that the file was exported from; by default the file of the recorded name beside it."""
    teacher: Annotated[Path | None, Flag("CKPT")] = None
    """Checkpoint of the teacher."""
    student: Annotated[Path | None, Flag("CKPT")] = None
    """Checkpoint that a quantization-aware training began with."""
    fp32: Path | None = None
    """File in fp32 that an int8 or fp16 one was made from; by default NAME.onnx beside it."""
    data: Annotated[str | None, Flag("DATA")] = None
    """Labeled images of validation and evaluation: DIR, npz:FILE, digits."""
    calib: Annotated[str | None, Flag("DATA")] = None
    """Training images, some of which were used for calibration."""
    follow: bool = False
    """Look for what the file was made from at the paths that it names, also outside of its folder."""
    json: bool = False
    """Print the result as one JSON object and nothing else."""


def run(options: Options) -> int:
    """Print the report; returns 4, or raises ArtifactError, when a hash does not hold."""
    path = _file(options.file)
    if path.suffix not in (*contents.ARTIFACTS, *contents.CHECKPOINTS):
        raise UsageError(
            f"{path}: neither an .onnx file nor a checkpoint ({', '.join(contents.CHECKPOINTS)}) nor a .plan"
            " file"
        )
    with loading(f"reading {path.name}"):
        seal = (
            contents.ARTIFACTS[path.suffix][0](path)
            if path.suffix in contents.ARTIFACTS
            else contents.checksums(path)
        )
    try:
        return _report(replace(options, file=path), seal)
    except Large2SmallError:
        raise
    except Exception as error:  # what was changed may be of any type, in any place
        if not contents.is_broken(seal):
            raise
        raise ArtifactError(contents.problem_of(path, seal, ())) from error


def _file(path: Path) -> Path:
    """What is inspected: the file itself, or the best.pth of a run folder."""
    if (path / "best.pth").is_file():
        return path / "best.pth"
    if not path.is_file():
        what = "a folder, without a best.pth in it" if path.is_dir() else "no such file"
        raise UsageError(f"{path}: {what}. Expected an .onnx file, a plan, a checkpoint or a run folder")
    return path


def _report(options: Options, seal: str | None) -> int:
    path = options.file
    with loading(f"reading {path.name}"):
        if path.suffix in contents.ARTIFACTS:
            if options.checkpoint_key:
                raise UsageError(f"--checkpoint-key is only read for a checkpoint, and {path} is not one")
            values = contents.ARTIFACTS[path.suffix][1](path, seal or "")
        else:
            values = contents.inspect_checkpoint(path, seal, options.checkpoint_key)
    given = lineage.Given(
        options.checkpoint,
        options.teacher,
        options.student,
        options.fp32,
        options.data,
        options.calib,
        options.follow,
    )
    about = values["metadata"]
    with loading("hashing what it was made from"):
        ancestors = lineage.check(about.get("lineage") or {}, about.get("quantization"), path, given)
    values["lineage"] = [ancestor.to_dict() for ancestor in ancestors]
    problem = contents.problem_of(path, seal, ancestors)
    if options.json:
        failure = {"error": problem, "exit_code": ArtifactError.exit_code} if problem else {}
        print(files.json_text(values | failure))
        if problem:
            print(f"error: {problem}", file=sys.stderr)
        return ArtifactError.exit_code if problem else 0
    from ..inspection import report

    if options.all:
        report.show(values)
    else:
        report.show_main(values)
    if problem:
        raise ArtifactError(problem)
    return 0
