"""export.graph.read: a file is whole, unchanged and holds its own weights, or one line says what is wrong."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.graph.read import parse, read_onnx, require_classifier
from runtime.artifact import seal
from runtime.errors import ArtifactError, UsageError

MODEL = onnx.parser.parse_model(
    """<ir_version: 9, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) <float[2] w = {3, 4}>
    { y = Mul (x, w) }"""
)


def refused(path, **more):
    with pytest.raises(ArtifactError) as error:
        read_onnx(path, **more)
    said = str(error.value)
    assert said.startswith(str(path)) and "\n" not in said
    return said


def written(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    return path


def test_a_sealed_and_an_unsealed_file_are_read_as_written(tmp_path):
    for content in (MODEL.SerializeToString(), seal(MODEL.SerializeToString())):
        found = read_onnx(written(tmp_path, content))
        assert found.graph == MODEL.graph


def test_a_changed_file_is_refused_unless_its_seal_is_not_asked_for(tmp_path):
    content = seal(MODEL.SerializeToString())
    changed = content.replace(np.float32([3, 4]).tobytes(), np.float32([3, 5]).tobytes())
    assert len(changed) == len(content) and changed != content
    path = written(tmp_path, changed)
    assert "changed since it was written" in refused(path)
    assert numpy_helper.to_array(read_onnx(path, check=False).graph.initializer[0]).tolist() == [3, 5]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\3\4 something else", "not an ONNX file"),
        (b"", "holds no graph"),
        (MODEL.SerializeToString()[:-5], "cut short"),
        (helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString(), "holds no graph"),
    ],
    ids=["zip", "empty", "cut", "no nodes"],
)
def test_what_is_not_a_whole_onnx_file_is_said(tmp_path, content, said):
    assert said in refused(written(tmp_path, content))


def test_a_folder_or_a_missing_file_is_said(tmp_path):
    with pytest.raises(UsageError, match="is not a regular file"):
        read_onnx(tmp_path)
    assert "cannot be read (No such file" in refused(tmp_path / "absent.onnx")


def outside(location="weights.bin"):
    tensor = onnx.TensorProto(name="far", data_type=onnx.TensorProto.FLOAT, dims=[2])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def as_initializer(model):
    model.graph.initializer.append(outside())


def in_a_constant(model):
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=outside("*/_ORT_MEM_ADDR_/*")))


def in_a_branch(model):
    def branch():
        return helper.make_graph([helper.make_node("Constant", [], ["c"], value=outside())], "b", [], [])

    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch(), else_branch=branch()))


def sparse(model):
    tensor = onnx.SparseTensorProto(dims=[2])
    tensor.values.CopyFrom(outside())
    model.graph.sparse_initializer.append(tensor)


def without_saying_so(model):
    tensor = outside()
    tensor.data_location = onnx.TensorProto.DEFAULT
    model.graph.initializer.append(tensor)


@pytest.mark.parametrize("put", [as_initializer, in_a_constant, in_a_branch, sparse, without_saying_so])
def test_weights_outside_of_the_file_are_refused_wherever_they_are_named(tmp_path, put):
    model = onnx.ModelProto.FromString(MODEL.SerializeToString())
    put(model)
    assert "far are in another file" in refused(written(tmp_path, model.SerializeToString()))


def test_bytes_are_read_as_files_are():
    assert parse(MODEL.SerializeToString(), "here").graph == MODEL.graph
    with pytest.raises(ArtifactError, match=r"^here: not an ONNX file"):
        parse(b"\xff\xff", "here")


@pytest.mark.parametrize("port", ["input", "output"])
def test_an_element_type_that_nobody_knows_is_refused_by_name(port):
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> '
        "g (float[N, 3, 8, 8] x) => (float[N, 192] y) { y = Flatten(x) }"
    )
    require_classifier(model, "a.onnx")
    getattr(model.graph, port)[0].type.tensor_type.elem_type = 99
    with pytest.raises(
        ArtifactError, match=rf"^a\.onnx: its {port}s are [xy]: unknown .*; expected .*float32"
    ):
        require_classifier(model, "a.onnx")
