"""TEST DOUBLE: on PYTHONPATH this answers `import tensorrt`; the version is $TENSORRT_DOUBLE_VERSION, 10.3 by
default.
"""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import tensorrt_double

_made = tensorrt_double.make(os.environ.get("TENSORRT_DOUBLE_VERSION", "10.3"))
_made.__spec__ = __spec__  # other packages ask importlib whether there is a tensorrt
sys.modules[__name__] = _made
