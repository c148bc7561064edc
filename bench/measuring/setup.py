"""What is timed of one artifact, as values that another process can be told.

In:  a path, engine flags, batch, boundary, images.
Out: a contestant in this process, ready for its turns.
Elsewhere: the calls (bench.clock.calls), whose turn it is (bench.comparing.race), other processes
(bench.comparing.isolated, bench.measuring.elsewhere).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime import Predictor, UsageError
from runtime.images import open_images

from ..clock import calls
from ..comparing.race import Here
from ..subject import RunOptions, describe, open_artifact


@dataclass(frozen=True)
class Setup:
    """One artifact and how it is called."""

    path: Path
    on: RunOptions
    batch: int = 1
    boundary: str = "compute"
    """As it is typed: compute or end-to-end."""
    img_size: str | None = None
    data: str | None = None
    """Images to feed; None: synthetic ones."""
    split: str = "val"
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"path": str(self.path)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Setup:
        """The same again."""
        known = {name: value for name, value in values.items() if name not in ("path", "on")}
        return cls(Path(values["path"]), RunOptions(**values["on"]), **known)


@contextmanager
def opened(setup: Setup) -> Iterator[Here]:
    """The artifact, ready to be timed in this process."""
    with open_artifact(setup.path, setup.on) as predictor:
        yield ready(predictor, setup)


def ready(predictor: Predictor, setup: Setup) -> Here:
    """An open artifact with its calls. Raises UsageError where there are none at this boundary."""
    fed, call = called(predictor, setup)
    return Here(describe(predictor, setup.on), fed, call)


def called(predictor: Predictor, setup: Setup) -> tuple[str, Callable[[], Any]]:
    """What the calls are fed, in words, and one call. Raises as `ready` does."""
    images = open_images(setup.data, setup.split) if setup.data else None
    size = calls.parse_size(setup.img_size) if setup.img_size else None
    boundary = setup.boundary.replace("-", "_")
    made = calls.make_calls(
        predictor, setup.batch, size=size, images=images, seed=setup.seed, boundaries=(boundary,)
    )
    if boundary not in made.functions:
        raise UsageError(f"{setup.path}: --boundary {setup.boundary}: {made.not_measured[boundary]}")
    return made.inputs[boundary], made.functions[boundary]
