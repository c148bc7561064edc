"""The lowest versions that pyproject.toml allows, as constraints for pip; `make test-oldest` installs them.

    python tests/helpers/lowest_versions.py > constraints.txt

In:  pyproject.toml of this repository: dependencies and extras, each `NAME>=VERSION`.
Out: a line `NAME==VERSION` for each on stdout, with its environment marker. What a dependency itself needs is
     left to pip.
Elsewhere: how `make test` installs the newest (Makefile).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:  # pip reads its own settings with the same package
    from pip._vendor import tomli as tomllib

UNTESTED = {"cuda-bindings"}
"""Left to pip: torch, which most tests need, asks for 13, and boards with CUDA 12 for 12."""
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)>=(?P<version>[\w.]+)(?P<marker> *;.*)?")


def constraints(pyproject: str) -> list[str]:
    """One line for each package, in alphabetical order.

    pyproject: the file's text. Raises ValueError for a requirement that is not `NAME>=VERSION`, and for a
    package with two lower bounds.
    """
    project = tomllib.loads(pyproject)["project"]
    wanted = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        wanted += [each for each in extra if not each.startswith(f"{project['name']}[")]
    lowest: dict[str, str] = {}
    for each in wanted:
        found = REQUIREMENT.fullmatch(each)
        if found is None:
            raise ValueError(
                f"pyproject.toml: {each!r}: expected NAME>=VERSION, so that the oldest can be tested"
            )
        name, line = found["name"], f"{found['name']}=={found['version']}{found['marker'] or ''}"
        if lowest.setdefault(name, line) != line:
            raise ValueError(f"pyproject.toml: {name} has two lower bounds, {lowest[name]} and {line}")
    return [lowest[name] for name in sorted(lowest) if name not in UNTESTED]


if __name__ == "__main__":
    print("\n".join(constraints(PYPROJECT.read_text(encoding="utf-8"))))
