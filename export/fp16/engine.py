"""What ONNX Runtime's CPU engine here makes of fp16 with Q/DQ, and what to judge where that is wrong.

In:  ONNX model.
Out: the model to run in its place for numbers that other engines give too; a sentence about it.
Elsewhere: the graph that rounds to half in float32 (export.fp16.cast), the numbers (export.checks.verify).
"""

from __future__ import annotations

import functools

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from runtime.backends.telemetry import onnxruntime

from ..graph import run
from .cast import HALF, rounded, types


@functools.cache
def drops_fractions() -> bool:
    """Does QuantizeLinear of this engine cut a half where ONNX asks for the nearest step?

    ONNX Runtime does before 1.30 (measured: 1.20 to 1.29; mended by microsoft/onnxruntime pull request
    32452): half of all values come out one step nearer to zero. The int8+fp16 logits of the ResNet-20 that
    is right on 99 % of the digits are off by 0.62 with 1.23.2 (root mean square) and by 0.05 with 1.32; one
    that is right on 73 % decides as fp32 does on 61 % and on 93 %. One node tells, not the version.
    """
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["steps"])]
    constants = [numpy_helper.from_array(np.float16(1), "scale"), numpy_helper.from_array(np.int8(0), "zero")]
    graph = helper.make_graph(
        nodes,
        "three quarters of a step",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1])],
        [helper.make_tensor_value_info("steps", TensorProto.INT8, [1])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return int(run.session(model).run(None, {"x": np.array([0.75], np.float16)})[0][0]) == 0


def judged(model: ModelProto) -> ModelProto:
    """What to run on this engine to learn what the model computes: the model; or, where it quantizes halves
    and the engine drops their fractions, the same in float32, rounded to half wherever the model stores half.
    """
    return rounded(model) if drops_fractions() and quantizes_half(model) else model


def quantizes_half(model: ModelProto) -> bool:
    """Does a QuantizeLinear read half?"""
    kinds = types(model)
    return any(
        node.op_type == "QuantizeLinear" and kinds.get(node.input[0]) == HALF for node in model.graph.node
    )


def sentence(version: str = onnxruntime.__version__) -> str:
    """What a person has to know who reads numbers of `judged`."""
    return (
        "judged on a float32 copy that rounds to fp16 where the file does, because ONNX Runtime"
        f" {version} drops fractions where fp16 becomes int8: on it the file itself is less accurate. Other"
        " engines, and ONNX Runtime from 1.30 on, round"
    )
