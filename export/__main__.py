"""`python -m export`: the front door with the first word typed already. No console script has this name: in
a POSIX shell `export` is a builtin, which would take the rest as variable names.
"""

import sys
from collections.abc import Sequence

from runtime.cli import front_door


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of this group and return its exit code."""
    return front_door.main(argv, "export")


if __name__ == "__main__":
    sys.exit(main())
