"""`python -m bench latency ...` is the same as `distill bench latency ...`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m bench"))
