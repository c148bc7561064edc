"""A graph in memory, run on ONNX Runtime's CPU engine to look at its tensors; not the way applications run
it.

In:  an ONNX model, often one with more outputs than its file has.
Out: an ONNX Runtime session that says nothing but errors.
Elsewhere: files as an application opens them (runtime.predictor), more outputs (export.graph.edit).
"""

from __future__ import annotations

from onnx import ModelProto

from runtime.backends.telemetry import onnxruntime as ort


def session(model: ModelProto, *, fetches_much: bool = False) -> ort.InferenceSession:
    """Open a model. fetches_much: its outputs are large and are used between two calls."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if fetches_much:
        settings.enable_cpu_mem_arena = False  # what was fetched is given back at once
        # its idle threads leave the cores to those who use what was fetched
        settings.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
