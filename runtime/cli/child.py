"""How another Python process is started that does work for a command.

In:  a module of this project with a function `main() -> exit code`; where that process finds modules.
Out: the words behind the interpreter, and the environment.
Elsewhere: the processes (bench.measuring.elsewhere, export.trt.process).
"""

from __future__ import annotations

import os
from collections.abc import Iterable


def words(module: str) -> list[str]:
    """Call `main` of a module. Not `-m`, with which Python looks for modules in the current folder first,
    among the user's own files.
    """
    return [
        "-c",
        f"import sys; sys.path[:] = filter(None, sys.path); from {module} import main; sys.exit(main())",
    ]


def environment(places: Iterable[str]) -> dict[str, str]:
    """This process's, with modules looked for in `places` first."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)}
