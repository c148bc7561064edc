"""ONNX Runtime, imported with its telemetry off: `from runtime.backends.telemetry import onnxruntime`.

In:  ORT_DISABLE_TELEMETRY of the environment, where the user has set it.
Out: the package. Official builds send usage to Microsoft and keep an identifier of the device in the user's
     cache, unless the variable is 1 before the first import (Privacy.md in the package).
Elsewhere: what is done with it (runtime.backends.ort). OpenVINO sends something only in its converter, which
nothing here calls.
"""

from __future__ import annotations

import os
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "onnxruntime":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime
