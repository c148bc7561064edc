"""Weights of an .onnx file that are not in it: no engine is given such a file.

OpenVINO takes `*/_ORT_MEM_ADDR_/*` with an offset for an address in this process's memory; every engine reads
the file that a tensor names.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import runtime
from runtime.backends import onnx_file
from runtime.cli.front_door import main

ENGINES = ["onnxruntime", "openvino"]
LOCATIONS = ["weights.bin", "../weights.bin", "/etc/passwd", "*/_ORT_MEM_ADDR_/*"]


def outside(location: str = "weights.bin", name: str = "far") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[8])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "4096"), ("length", "32")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def network() -> onnx.ModelProto:
    """The mean of each channel, through a Gemm: (N, 3, 4, 4) -> (N, 8)."""
    inner = numpy_helper.from_array(np.ones((3, 8), np.float32), "w")
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["p"]),
        helper.make_node("Add", ["p", "far"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [inner, numpy_helper.from_array(np.arange(8, dtype=np.float32), "far")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def initializer(model, location):
    model.graph.initializer[1].CopyFrom(outside(location))


def without_saying_so(model, location):
    """Entries, but the default place: some readers look at these alone."""
    model.graph.initializer[1].CopyFrom(outside(location))
    model.graph.initializer[1].data_location = TensorProto.DEFAULT


def constant(model, location):
    del model.graph.initializer[1]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["far"], value=outside(location)))


def branch(model, location):
    """In a subgraph of a subgraph."""

    def inner(deeper):
        nodes = [helper.make_node("Constant", [], ["c"], value=outside(location))]
        if deeper:
            nodes = [helper.make_node("If", ["b"], ["c"], then_branch=inner(False), else_branch=inner(False))]
        return helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [8])])

    del model.graph.initializer[1]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "b"))
    chosen = helper.make_node("If", ["b"], ["far"], then_branch=inner(True), else_branch=inner(False))
    model.graph.node.insert(0, chosen)


def sparse(model, location):
    tensor = onnx.SparseTensorProto(dims=[8])
    tensor.values.CopyFrom(outside(location))
    tensor.indices.CopyFrom(numpy_helper.from_array(np.arange(8), "i"))
    del model.graph.initializer[1]
    tensor.values.name = "far"
    model.graph.sparse_initializer.append(tensor)


def sparse_constant(model, location):
    tensor = onnx.SparseTensorProto(dims=[8])
    tensor.values.CopyFrom(outside(location))
    tensor.indices.CopyFrom(numpy_helper.from_array(np.arange(8), "i"))
    del model.graph.initializer[1]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["far"], sparse_value=tensor))


def function(model, location):
    del model.graph.initializer[1]
    made = helper.make_function(
        "ours",
        "Far",
        [],
        ["c"],
        [helper.make_node("Constant", [], ["c"], value=outside(location))],
        [helper.make_opsetid("", 17)],
    )
    model.functions.append(made)
    model.opset_import.append(helper.make_opsetid("ours", 1))
    model.graph.node.insert(0, helper.make_node("Far", [], ["far"], domain="ours"))


def training(model, location):
    model.training_info.add().initialization.initializer.append(outside(location))


PLACES = [
    initializer,
    without_saying_so,
    constant,
    branch,
    sparse,
    sparse_constant,
    function,
    training,
]


@pytest.fixture
def write(tmp_path):
    def made(put=None, location="weights.bin"):
        model = network()
        if put is not None:
            put(model, location)
        (tmp_path / "weights.bin").write_bytes(bytes(8192))
        (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "net.onnx"

    return made


@pytest.mark.filterwarnings("ignore:.*carries no")
@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_network_with_its_weights_inside_runs(engine, write):
    pytest.importorskip(engine)
    logits = runtime.load(write(), backend=engine).logits(np.ones((1, 3, 4, 4), np.float32))
    np.testing.assert_allclose(logits, 3 + np.arange(8, dtype=np.float32)[None], rtol=1e-6)


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("put", PLACES)
@pytest.mark.parametrize("engine", ENGINES)
def test_no_engine_sees_it(engine, put, location, write, monkeypatch):
    package = pytest.importorskip(engine)
    if engine == "onnxruntime":
        monkeypatch.setattr(package, "InferenceSession", lambda *_, **__: pytest.fail("the engine saw it"))
    else:
        monkeypatch.setattr(package.Core, "read_model", lambda *_: pytest.fail("the engine saw it"))
    for verify in (True, False):
        with pytest.raises(runtime.ArtifactError, match="weights such as far are in another file"):
            runtime.load(write(put, location), backend=engine, verify=verify)


@pytest.mark.parametrize("command", [["bench", "latency", "--engine"], ["export", "triton"]])
def test_commands_end_with_4(command, write, capsys, tmp_path):
    more = ["--repository", str(tmp_path / "models")] if "triton" in command else []
    code = main([*command, str(write(initializer)), *more])
    said = capsys.readouterr().err
    assert code == 4 and said.count("error: ") == 1 and "far are in another file" in said


@pytest.mark.parametrize("put", PLACES)
def test_a_plan_is_not_built_from_it(put, write):
    from export.stages import source

    with pytest.raises(runtime.ArtifactError, match="far are in another file"):
        source.read_onnx(write(put))


def test_a_field_that_is_given_twice_or_hidden_is_seen():
    """protobuf merges what comes twice: every part counts."""
    once = network().SerializeToString()
    hidden = onnx.ModelProto()
    hidden.graph.initializer.append(outside())
    found = [name for name, is_outside in onnx_file._tensors(once + hidden.SerializeToString()) if is_outside]
    assert found == ["far"]


def test_large_weights_are_skipped_not_read(tmp_path):
    model = network()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2**24, np.float32), "large"))
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    seen = onnx_file._tensors((tmp_path / "net.onnx").read_bytes())
    assert sorted(name for name, _ in seen) == ["far", "large", "w"]
    onnx_file.require_whole(tmp_path / "net.onnx")
