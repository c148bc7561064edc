"""Data that tests use and the repository does not hold: CIFAR-10, published weights, photographs.

In:  the environment variable L2S_TEST_DATA, the folder with that data; where it is not set, the folder
     `shared` beside the checkout.
Out: paths in it; for a test whose data is not there, a skip that names the variable.
Elsewhere: the reference numbers that the repository itself holds (tests/golden/data).
"""

import os
from pathlib import Path

import pytest

VARIABLE = "L2S_TEST_DATA"


def folder() -> Path:
    """The folder with the data, whether it exists or not. Raises UsageError when the variable names none: who
    sets it wants these tests to run.
    """
    named = os.environ.get(VARIABLE)
    if named and not Path(named).is_dir():
        raise pytest.UsageError(f"{VARIABLE}={named}: no such folder")
    return Path(named) if named else Path(__file__).resolve().parents[2].parent / "shared"


def path(*parts: str) -> Path:
    """A path in the folder, whether it exists or not."""
    return folder().joinpath(*parts)


def needed(*parts: str) -> Path:
    """A path in the folder; skips the test that asks when it is not there."""
    if not path(*parts).exists():
        pytest.skip(_reason(parts))
    return path(*parts)


def needs(*parts: str) -> pytest.MarkDecorator:
    """A mark that skips a test when a path in the folder is not there."""
    return pytest.mark.skipif(not path(*parts).exists(), reason=_reason(parts))


def _reason(parts: tuple[str, ...]) -> str:
    return f"no {'/'.join(parts) or 'data'} outside the repository: {VARIABLE} names the folder that holds it"
