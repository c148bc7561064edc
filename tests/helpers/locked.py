"""What `pip install "large2small[cpu]"` installs in the tested versions, with hashes; `make lock` writes it.

    python tests/helpers/locked.py > requirements.lock

In:  pyproject.toml of this repository; the packages that are installed here, in which the tests ran; the
     package index.
Out: a line `NAME==VERSION --hash=sha256:...` for each package on stdout, for this machine's kind and Python.
Elsewhere: the lowest versions (tests/helpers/lowest_versions.py).
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HEAD = """\
# The tested versions of what large2small[cpu] needs, with the hashes of their wheels. `make lock` writes it.
# {python}, {system}
#   pip install --require-hashes --requirement requirements.lock
#   pip install --no-deps large2small"""


def report(pins: str) -> dict[str, Any]:
    """What pip would install for [cpu] where `pins` has `NAME==VERSION` in each line."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(pins)
        constraints.flush()
        words = ["install", "--dry-run", "--quiet", "--ignore-installed", "--only-binary", ":all:"]
        words += ["--report", "-", "--constraint", constraints.name, f"{ROOT}[cpu]"]
        done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """The packages of a report but this one, in alphabetical order."""
    made = []
    for each in found["install"]:
        about, archive = each["metadata"], each["download_info"].get("archive_info")
        if archive is not None:  # this project is a folder
            made.append(f"{about['name']}=={about['version']} --hash=sha256:{archive['hashes']['sha256']}")
    return sorted(made, key=str.lower)


if __name__ == "__main__":
    here = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    here.pop("large2small", None)
    chosen = lines(report("\n".join(f"{name}=={version}" for name, version in sorted(here.items()))))
    python, system = f"Python {platform.python_version()}", f"{platform.system()} {platform.machine()}"
    print("\n".join([HEAD.format(python=python, system=system), *chosen]))
