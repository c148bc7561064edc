"""An engine that is a function, to put known faults behind a `Predictor`."""

from pathlib import Path

from runtime import Predictor
from runtime.artifact import Metadata


class FunctionBackend:
    """`run(batch)` is `function(batch)`; `given` lists the batch sizes it was called with."""

    path, provider, engine, version, threads, device = Path("a.plan"), "here", "function", "1", None, "cpu"

    def __init__(self, function, batch_sizes, image):
        self.function, self.batch_sizes, self.given, self.input_shape = (
            function,
            batch_sizes,
            [],
            (None, *image),
        )

    def run(self, batch):
        assert any(
            least <= len(batch) and (most is None or len(batch) <= most) for least, most in self.batch_sizes
        ), len(batch)
        self.given.append(len(batch))
        return self.function(batch)

    def close(self):
        pass


def predictor_of(function, batch_sizes=((1, None),), image=(None, None, None)):
    """function: (N, C, H, W) -> (N, K). batch_sizes as of `Predictor`; image: (C, H, W)."""
    return Predictor(FunctionBackend(function, batch_sizes, image), Metadata())


def given(predictor):
    """The batch sizes that the engine was called with, in order."""
    return predictor._backend.given
