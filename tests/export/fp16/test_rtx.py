"""fp16 and int8+fp16 graphs through NVIDIA's parser and builder: TensorRT for RTX builds strongly typed
engines without a GPU.
"""

import json
import subprocess
import sys
from importlib.util import find_spec

import families
import numpy as np
import onnx
import pytest
from rtx_script import PARSE

from export.fp16 import cast
from export.graph import rewrite
from export.int8 import quantize
from export.int8.calibrate import calibrate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is not installed"
    ),
]

BUILD = (
    PARSE
    + """
import json
config, profile = builder.create_builder_config(), builder.create_optimization_profile()
images = network.get_input(0)
profile.set_shape(images.name, *[(batch, *images.shape[1:]) for batch in (1, 2, 4)])
config.add_optimization_profile(profile)
plan = builder.build_serialized_network(network, config)
if plan is None:
    sys.exit("; ".join(log.lines[-5:]))
print(json.dumps({"types": [str(t.dtype) for t in (images, network.get_output(0))],
                  "int8 in half": sum(
    "Converting conv activation scales to fp32" in line for line in log.lines)}))
"""
)


def build(made, folder):
    """What the builder says about a graph; a process of its own, because builds in one process have crashed
    one another.
    """
    onnx.save(made, folder / "candidate.onnx")
    command = [sys.executable, "-c", BUILD, str(folder / "candidate.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(params=["resnet20", "repvgg", "convnext"])
def network(request):
    if request.param == "repvgg":
        return families.graph("repvgg")
    return request.getfixturevalue({"resnet20": "student_onnx", "convnext": "convnext_onnx"}[request.param])


def quantized(network):
    made = rewrite.prepare(network)
    sides = [d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim[1:]]
    plan = quantize.lay_out(made, "tensorrt")
    ranges = calibrate(
        made, plan.tensors, [np.random.default_rng(0).normal(size=(2, *sides)).astype(np.float32)], "minmax"
    )
    return plan, quantize.quantize(made, plan, ranges)


def some(made):
    """Every fourth node that computes."""
    nodes = [
        node.name for node in made.graph.node if node.op_type not in ("QuantizeLinear", "DequantizeLinear")
    ]
    return set(nodes[1::4])


def test_half_builds_with_and_without_kept_nodes(network, tmp_path):
    for keep in (set(), some(network)):
        assert build(cast.to_half(network, keep), tmp_path)["types"] == ["DataType.FLOAT"] * 2


def test_every_int8_convolution_is_recognized_with_half_around(network, tmp_path):
    plan, made = quantized(network)
    kinds = {node.name: node.op_type for node in made.graph.node}
    layers = {name for name in plan.layers if kinds[name] == "Conv"}
    assert build(cast.to_half(made), tmp_path)["int8 in half"] == len(layers)
    keep = some(made) | set(sorted(layers)[::3])
    assert layers - keep
    assert build(cast.to_half(made, keep), tmp_path)["int8 in half"] == len(
        layers - keep
    )  # the others have float32 scales
