"""The flags of `distill export triton`.

In:  flags (runtime.cli.flags).
Out: a `TritonOptions`.
Elsewhere: what they mean for an artifact (export.triton.serving).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from runtime.cli import settings
from runtime.cli.settings import Flag

DEFAULT_MAX_BATCH = 8
"""For an .onnx file of free batch size, which has no limit of its own."""


@dataclass(frozen=True)
class TritonOptions:
    """What to serve and how."""

    artifact: Annotated[Path, Flag("ARTIFACT", positional=True)]
    """Artifact to serve: a .plan built by TensorRT, with its .plan.json beside it, or an .onnx file."""
    repository: Annotated[Path, Flag("DIR")]
    """Folder of the model repository; made when it does not exist."""
    name: str | None = None
    """Name of the model for clients; by default the file's name without its ending."""
    version: Annotated[int, Flag("N", least=1)] = 1
    """Version to write, 1 or more; Triton serves the highest one it finds."""
    max_batch: Annotated[int | None, Flag("N", least=1)] = None
    """Largest number of images in one call; by default a plan's own limit, or 8. Not for a file of fixed
    batch size."""
    max_delay_us: Annotated[int | None, Flag("MICROSECONDS", least=0)] = None
    """Time a request waits for others to share a call with, 0 or more; 500 when not given."""
    preferred: Annotated[str | None, Flag("N,N,..")] = None
    """Batch sizes to wait for, with commas between; by default those a plan was tuned for."""
    instances: Annotated[int, Flag("N", least=1)] = 1
    """Copies of the model that run at once (on each GPU), 1 or more."""
    device: Literal["gpu", "cpu"] | None = None
    """Device that Triton runs the model on; by default gpu for .plan and cpu for .onnx."""
    overwrite: bool = False
    """Replace the model's config and this version of it; other versions stay."""
    json: bool = False
    """Print the result as one JSON object and nothing else."""

    def __post_init__(self) -> None:
        settings.check(self)
