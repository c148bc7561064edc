"""`python -m distill`, and the console script `distill`: the front door."""

import sys
from collections.abc import Sequence

from runtime.cli import front_door


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return front_door.main(argv)


if __name__ == "__main__":
    sys.exit(main())
