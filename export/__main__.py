"""`python -m export onnx CKPT`: the same as `distill export onnx CKPT`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m export"))
