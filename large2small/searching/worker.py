"""The other process of a step: a command as it is typed, or a candidate with fresh weights as an ONNX file.

In:  argv: the process that started it, then the words of a command; or `untrained`, the file to write, int8
     or fp32, and the words of `distill train`.
Out: what the command prints and its exit code; the ONNX file.
Elsewhere: who starts it (large2small.searching.processes).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from runtime import files
from runtime.cli import front_door, outcome

UNTRAINED = "untrained"
PR_SET_PDEATHSIG = 1
"""Of Linux, in <sys/prctl.h>."""
IMAGES = 16
"""Images that the file is compared with torch on; its speed does not depend on more of them."""
NOISE = 32
"""Images of noise that ranges of int8 are taken from, for the same reason."""

NO_BUDGET = 100.0
"""Points of top-1 that int8 may lose: fresh weights have none to keep."""


def main() -> int:
    """Do what argv says."""
    starter, *words = sys.argv[1:]
    _end_with(int(starter))
    if words[0] == UNTRAINED:
        return outcome.run(lambda: untrained(Path(words[1]), words[2] == "int8", words[3:]))
    return front_door.main(words)


def _end_with(starter: int) -> None:
    """Let the system end this process as SIGTERM does when the one that started it has ended, however it
    ended: two trainings in one folder would be in each other's way. Only Linux can.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != starter:  # it has ended before
            os.kill(os.getpid(), signal.SIGTERM)


def untrained(target: Path, int8: bool, words: Sequence[str]) -> None:
    """Write the student that `distill train` would begin with as an ONNX file, after one step of a training
    that is not kept. Raises what building, trying and exporting it raise.
    """
    from distill import checkpoint
    from distill.commands import train
    from distill.run import job
    from distill.training import parts
    from distill.training.trainer import Trainer
    from export.options.onnx import OnnxOptions, check_onnx
    from export.stages import onnx

    options = replace(train.parse(words), report=False)
    with files.scratch_folder() as folder:
        ready = job.prepare(options, folder / "run", Trainer)
        for name, text in ready.data.lists.items():  # by which its own images are found again
            files.write_text(folder / "run" / name, text)
        task = ready.tasks[0]
        student = parts.open_student(task)
        weights = {key: value.detach().contiguous() for key, value in student.model.state_dict().items()}
        made = checkpoint.Checkpoint(
            student.architecture,
            student.model_args,
            weights,
            task.preprocess,
            task.class_names,
            task.role,
            lineage=task.lineage,
        )
        checkpoint.save(made, folder / files.BEST)
        asked = OnnxOptions(folder / files.BEST, output=target, overwrite=True, verify_size=IMAGES)
        if int8:
            asked = replace(asked, int8=True, calib="random", calib_size=NOISE, accuracy_size=NOISE)
            asked = replace(asked, max_drop=NO_BUDGET)
        check_onnx(asked)
        onnx.write(asked, onnx.export(asked))
