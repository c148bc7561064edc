"""What a file takes and gives is named when it is opened, on every engine: not at the first image, nor in
numbers that look right.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import runtime
from runtime.backends.onnx_file import last_operator
from runtime.backends.signature import Port, require_classifier
from runtime.errors import ArtifactError
from runtime.preprocess import Preprocess

ENGINES = ("onnxruntime", "openvino")
POOL = [
    helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
    helper.make_node("Flatten", ["pooled"], ["flat"]),
    helper.make_node("Gemm", ["flat", "weights"], ["logits"], transB=1),
]
SPEC = Preprocess(input_size=(3, 8, 8), crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def save(path, nodes, outputs, inputs=None, scale=1.0, channels=3):
    """A network over the mean color: its weights are `scale` times the identity."""
    graph = helper.make_graph(
        nodes,
        "foreign",
        inputs or [value("image", ["N", 3, 8, 8])],
        outputs,
        [
            numpy_helper.from_array(np.eye(3, channels, dtype=np.float32) * scale, "weights"),
            numpy_helper.from_array(np.array([0, 3, 1, 1]), "map"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), str(path))
    return path


LABELS = helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0)
UNSQUEEZED = helper.make_node("Reshape", ["logits", "map"], ["scores"])
HALF = helper.make_node("Cast", ["logits"], ["half"], to=TensorProto.FLOAT16)
TO_LAST = helper.make_node("Transpose", ["nhwc"], ["image"], perm=[0, 3, 1, 2])
WRONG = {
    "labels first": (
        [*POOL, LABELS],
        [value("label", ["N"], TensorProto.INT64), value("logits", ["N", 3])],
        None,
        ["label: int64 (any)", "logits: float32 (any, 3)", "scores of all classes come first"],
    ),
    "labels alone": (
        [*POOL, LABELS],
        [value("label", ["N"], TensorProto.INT64)],
        None,
        ["label: int64 (any)"],
    ),
    "logits of a map": (
        [*POOL, UNSQUEEZED],
        [value("scores", [1, 3, 1, 1])],
        [value("image", [1, 3, 8, 8])],
        ["scores: float32 (1, 3, 1, 1)", "end it with a Flatten layer"],
    ),
    "a feature map": (
        [helper.make_node("AveragePool", ["image"], ["map_"], kernel_shape=[2, 2], strides=[2, 2])],
        [value("map_", ["N", 3, 4, 4])],
        None,
        ["map_: float32 (any, 3, 4, 4)", "classifies whole images"],
    ),
    "half precision": (
        [*POOL, HALF],
        [value("half", ["N", 3], TensorProto.FLOAT16)],
        None,
        ["half: float16 (any, 3)"],
    ),
    "channels last": (
        [TO_LAST, *POOL],
        [value("logits", ["N", 3])],
        [value("nhwc", ["N", 8, 8, 3])],
        ["nhwc: float32 (any, 8, 8, 3)", "with the channels last", "--inputs-as-nchw"],
    ),
    "bytes": (
        [helper.make_node("Cast", ["bytes"], ["image"], to=TensorProto.FLOAT), *POOL],
        [value("logits", ["N", 3])],
        [value("bytes", ["N", 3, 8, 8], TensorProto.UINT8)],
        ["bytes: uint8 (any, 3, 8, 8)", "expected one float32 input (N, C, H, W)"],
    ),
    "two inputs": (
        [helper.make_node("Add", ["left", "right"], ["image"]), *POOL],
        [value("logits", ["N", 3])],
        [value("left", ["N", 3, 8, 8]), value("right", ["N", 3, 8, 8])],
        ["left: float32 (any, 3, 8, 8); right: float32 (any, 3, 8, 8)"],
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_a_classifier_is_named_when_it_is_opened(case, engine, tmp_path):
    pytest.importorskip(engine)
    nodes, outputs, inputs, words = WRONG[case]
    path = save(tmp_path / "foreign.onnx", nodes, outputs, inputs)
    with pytest.raises(ArtifactError) as found:
        runtime.load(path, backend=engine)
    assert str(found.value).startswith(f"{path}: its ") and "\n" not in str(found.value)
    for word in words:
        assert word in str(found.value)


def test_a_shape_that_the_file_does_not_say_is_taken():
    image = [Port("image", "float32", [None, 3, None, None])]
    require_classifier("x", image, [Port("logits", "float32", None)])
    require_classifier("x", image, [Port("logits", "float32", [None, None]), Port("map", "int64", [1, 2, 3])])
    require_classifier("x", [Port("image", "float32", [4, 3, 32, 3])], [Port("logits", "float32", [4, 10])])
    with pytest.raises(ArtifactError, match="its outputs are none"):
        require_classifier("x", image, [])


ENDS = {
    "Softmax": ([helper.make_node("Softmax", ["logits"], ["out"], axis=1)], "probabilities"),
    "Softmax behind Identity": (
        [
            helper.make_node("Softmax", ["logits"], ["soft"], axis=1),
            helper.make_node("Identity", ["soft"], ["out"]),
        ],
        "probabilities",
    ),
    "LogSoftmax": ([helper.make_node("LogSoftmax", ["logits"], ["out"], axis=1)], "logits"),
    "nothing": ([helper.make_node("Identity", ["logits"], ["out"])], "logits"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("end", ENDS)
def test_a_softmax_at_the_end_is_not_done_twice(end, engine, tmp_path):
    """Red has the logits (5, 0, 0): its probability is e^5 / (e^5 + 2) = 0.98670 in each of these files."""
    pytest.importorskip(engine)
    nodes, gives = ENDS[end]
    path = save(tmp_path / "foreign.onnx", [*POOL, *nodes], [value("out", ["N", 3])], scale=5.0)
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    if gives == "probabilities":
        with pytest.warns(UserWarning, match="its last layer makes probabilities"):
            predictor = runtime.load(path, backend=engine, preprocess=SPEC, class_names=["r", "g", "b"])
    else:
        predictor = runtime.load(path, backend=engine, preprocess=SPEC, class_names=["r", "g", "b"])
    with predictor:
        best = predictor.classify(red)[0][0]
    assert predictor.gives == gives and best.label == "r"
    assert best.probability == pytest.approx(np.exp(5) / (np.exp(5) + 2), abs=1e-5)


def test_the_last_operator_of_each_output_is_looked_for_from_the_end(tmp_path):
    """A softmax in the middle (of attention) says nothing."""
    inside = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["raw"]),
        helper.make_node("Softmax", ["raw"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "weights"], ["logits"], transB=1),
    ]
    assert last_operator(save(tmp_path / "a.onnx", inside, [value("logits", ["N", 3])])) == "Gemm"
    second = [*POOL, helper.make_node("Softmax", ["logits"], ["soft"], axis=1)]
    both = [value("logits", ["N", 3]), value("soft", ["N", 3])]
    assert last_operator(save(tmp_path / "b.onnx", second, both)) == "Gemm"
    assert last_operator(save(tmp_path / "c.onnx", second, both[::-1])) == "Softmax"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_a_fixed_batch_is_filled_up(batch, count, engine, tmp_path):
    pytest.importorskip(engine)
    path = save(
        tmp_path / "fixed.onnx", POOL, [value("logits", [batch, 3])], [value("image", [batch, 3, 8, 8])], 5.0
    )
    colors = np.zeros((count, 8, 8, 3), np.uint8)
    for number in range(count):
        colors[number, ..., number % 3] = 255
    with runtime.load(path, backend=engine, preprocess=SPEC, class_names=["r", "g", "b"]) as predictor:
        assert [best[0].index for best in predictor.classify(list(colors))] == [n % 3 for n in range(count)]


def test_images_that_preprocessing_makes_too_large_are_said_when_it_is_opened(tmp_path):
    path = save(tmp_path / "x.onnx", POOL, [value("logits", ["N", 3])])
    with pytest.raises(
        ArtifactError, match=r"takes images of \(3, 8, 8\), and its preprocessing makes \(3, 9, 8\)"
    ):
        runtime.load(path, preprocess=Preprocess(input_size=(3, 9, 8)))
    one = [value("image", ["N", 1, 8, 8])]
    gray = save(tmp_path / "gray.onnx", POOL, [value("logits", ["N", 3])], one, channels=1)
    with pytest.raises(ArtifactError, match=r"takes images of \(1, 8, 8\)"):
        runtime.load(gray, preprocess=SPEC)
