"""What imports cost, in milliseconds: numpy and Pillow, and this project beside numpy.

In:  nothing; every import is timed in processes of its own.
Out: medians, and their difference to an interpreter that imports nothing, or numpy alone.
Elsewhere: which modules may be loaded (tests/runtime/test_imports.py); each module's share:
`python -X importtime -c "import large2small"`.

    python measurements/import_time.py [--runs 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

TARGET_MS = 20.0
"""Largest time beside numpy's that is accepted of `import runtime` and of `import large2small`."""

TIMED = "import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
SUBJECTS = {
    "numpy": "import numpy",
    "PIL.Image": "import PIL.Image",
    "runtime, beside numpy": "import runtime",
    "large2small, beside numpy": "import large2small",
}
"""Name -> the statement that is timed."""


def milliseconds(statement: str, *, after_numpy: bool) -> float:
    """The time that a statement takes in a new process, in which numpy may be there already."""
    code = ("import numpy; " if after_numpy else "") + TIMED.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return 1000 * float(done.stdout)


def medians(runs: int) -> dict[str, float]:
    """Name -> median of `runs` processes, ms; the subjects alternate, so that a busy moment hits all."""
    taken: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    for _ in range(runs):
        for name, statement in SUBJECTS.items():
            taken[name].append(milliseconds(statement, after_numpy="beside" in name))
    return {name: statistics.median(each) for name, each in taken.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="processes for each import, 1 or more")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error(f"--runs {options.runs}: expected 1 or more")
    found = medians(options.runs)
    for name, value in found.items():
        print(f"{name:<26} {value:7.1f} ms  (median of {options.runs} processes)")
    slow = {name: value for name, value in found.items() if "beside" in name and value > TARGET_MS}
    print(f"target: at most {TARGET_MS:g} ms beside numpy: {'missed' if slow else 'met'}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
