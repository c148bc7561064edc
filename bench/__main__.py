"""`python -m bench`, and the console script `bench`: the front door with the first word typed already."""

import sys
from collections.abc import Sequence

from runtime.cli import front_door


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of this group and return its exit code."""
    return front_door.main(argv, "bench")


if __name__ == "__main__":
    sys.exit(main())
