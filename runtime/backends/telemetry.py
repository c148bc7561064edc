"""The engines that report home, imported with that off: `from runtime.backends.telemetry import onnxruntime`.

In:  ORT_DISABLE_TELEMETRY of the environment, and OpenVINO's consent file, where the user has set them.
Out: the packages onnxruntime and openvino. Left alone, the first sends usage to Microsoft and keeps an
     identifier of the device in the user's cache (Privacy.md in the package); the second sends an event to
     Google Analytics at every import and keeps its own identifier in ~/intel (openvino.tools.ovc).
Elsewhere: what is done with them (runtime.backends.ort, runtime.backends.openvino).
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

OPENVINO_SENDER = "openvino_telemetry"
"""The package by which OpenVINO sends; without it, it takes a stub of its own that does nothing."""


def __getattr__(name: str) -> Any:
    if name == "onnxruntime":
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        return importlib.import_module(name)
    if name == "openvino":
        return _openvino()
    raise AttributeError(f"module {__name__} has no attribute {name}")


def _openvino() -> Any:
    if "openvino" in sys.modules or _is_accepted():
        return importlib.import_module("openvino")
    modules: dict[str, Any] = sys.modules
    before = modules.get(OPENVINO_SENDER)
    modules[OPENVINO_SENDER] = None  # which Python's import takes for a package that is not there
    try:
        return importlib.import_module("openvino")
    finally:
        if before is None:
            del modules[OPENVINO_SENDER]
        else:
            modules[OPENVINO_SENDER] = before


def _is_accepted() -> bool:
    """Whether the user has said yes by OpenVINO's own means (`opt_in_out --opt_in`)."""
    try:
        from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker
    except ImportError:
        return False
    return bool(OptInChecker().check(enable_opt_in_dialog=False) == ConsentCheckResult.ACCEPTED)
