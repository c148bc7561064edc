"""What an engine's list of layers is read as: both forms of the inspector, the build log, and what is worth a
sentence.
"""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.trt import layers
from runtime.artifact import Metadata
from runtime.records import EngineRecord


@pytest.fixture(scope="module")
def model():
    """conv1 in int8 by its Q/DQ, conv2 in float, then a matrix product."""

    def scale(name):
        return [
            numpy_helper.from_array(np.float32(0.1), f"{name}_scale"),
            numpy_helper.from_array(np.int8(0), f"{name}_zero"),
        ]

    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"], "x_QuantizeLinear"),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"], "x_DequantizeLinear"),
        helper.make_node("DequantizeLinear", ["w1", "w_scale", "w_zero"], ["wd"], "w_DequantizeLinear"),
        helper.make_node("Conv", ["xd", "wd"], ["a"], "conv1"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "conv2"),
        helper.make_node("Flatten", ["c"], ["d"], "flatten"),
        helper.make_node("MatMul", ["d", "w3"], ["y"], "fc"),
    ]
    constants = [
        *scale("x"),
        *scale("w"),
        numpy_helper.from_array(np.ones((4, 3, 1, 1), np.int8), "w1"),
        numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w2"),
        numpy_helper.from_array(np.ones((4, 2), np.float32), "w3"),
    ]
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 1, 1])
    logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    made = helper.make_model(
        helper.make_graph(nodes, "g", [images], [logits], constants),
        opset_imports=[helper.make_opsetid("", 19)],
    )
    onnx.checker.check_model(made)
    return made


def layer(name, kind, taken, given, *nodes, key="Format/Datatype"):
    def tensors(formats):
        return [{"Name": "t", "Dimensions": [1, 4, 1, 1], key: text} for text in formats]

    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": tensors(taken),
        "Outputs": tensors(given),
        "Metadata": "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes),
    }


INT8, HALF, FLOAT = (
    ("Thirty-two wide channel vectorized row major Int8 format",),
    ("Channel major FP16 format",),
    ("Row major linear FP32",),
)

GOOD = [
    layer("x_QuantizeLinear", "Reformat", FLOAT, INT8, "x_QuantizeLinear", "x_DequantizeLinear"),
    layer("conv1 + relu", "CaskConvolution", INT8, FLOAT, "conv1", "w_DequantizeLinear", "relu"),
    layer("conv2", "CaskConvolution", FLOAT, FLOAT, "conv2"),
    layer("fc", "MatrixMultiply", FLOAT, FLOAT, "fc", "flatten"),
]


@pytest.mark.parametrize(
    "top", [{"Bindings": ["x", "y"]}, {"I/O Tensors": [{"Name": "x", "IOMode": "Input"}]}]
)
def test_both_forms_of_the_inspector(model, top):
    read = layers.from_inspector(json.dumps({"Layers": GOOD, **top}))
    found = layers.summarize(read, model, "engine inspector")
    assert found["convolutions"] == {"int8": 1, "fp32": 1} and found["matrix_products"] == {"fp32": 1}
    assert found["int8_convolutions_percent"] == 50 and found["fp16_convolutions_percent"] == 0
    assert (
        found["layers"] == 4
        and found["reformats"] == 1
        and found["not_int8"] == []
        and found["unknown"] == []
    )
    assert found["unfused_conversions"] == ["x_QuantizeLinear"]  # computes nothing but the two conversions


def test_newer_key_for_the_type_of_a_tensor(model):
    newer = layer("conv1", "conv", ["Half"], ["Half"], "conv1", key="Datatype")
    read = layers.from_inspector(json.dumps({"Layers": [newer]}))
    assert layers.summarize(read, model, "")["convolutions"] == {"fp16": 1, "unknown": 1}


def test_bare_names_are_counted_and_their_precision_said_to_be_unknown(model):
    found = layers.summarize(
        layers.from_inspector(json.dumps({"Layers": ["conv1", "conv2 + relu"]})), model, ""
    )
    assert found["convolutions"] == {"unknown": 2} and found["unknown"] == ["conv1", "conv2", "fc"]
    assert "cannot be read from the engine: conv1, conv2, fc" in layers.sentences(found, "int8")[-1]


@pytest.mark.parametrize("text", ["{}", '{"Layers": null}', '{"Layers": [{}]}'])
def test_missing_keys_are_not_an_error(model, text):
    assert layers.summarize(layers.from_inspector(text), model, "")["convolutions"] == {"unknown": 2}


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        ("Row major linear FP32", "fp32"),
        ("Float", "fp32"),
        ("Channel major BFloat16 format", "bf16"),
        ("Half", "fp16"),
        ("Row major Int8 format", "int8"),
        ("Int32", "unknown"),
        ("FP8", "fp8"),
    ],
)
def test_words_for_formats(words, precision):
    assert layers.from_inspector(json.dumps({"Layers": [layer("a", "b", [words], [])]}))[0].inputs == [
        precision
    ]


def dumped(name, kind, taken, given, *nodes):
    """An entry as TensorRT for RTX 1.7 logs it, with fewer fields of each tensor."""

    def tensors(kinds):
        return ", ".join(
            f"{{ Name: t, Dimensions: [1,4,1,1], Strides: [4,1,1,1], Datatype: {each}, Format: (NHWC) Channel"
            " major }"
            for each in kinds
        )

    metadata = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {tensors(taken)}], Constants: [ {tensors(['Float'])}], "
        f"Outputs: [ {tensors(given)}], TacticName: stub, StreamId: 0, Metadata: {metadata}"
    )


DUMP = "\n".join(
    [
        "Layers:",
        dumped("__myl_Quant_0", "kgen", ["Float"], ["Int8"], "x_QuantizeLinear", "conv1"),
        dumped("conv1_myl0_1", "correlation", ["Int8"], ["Float"], "conv1"),
        dumped("conv2_myl0_2", "correlation", ["Half"], ["Half"], "conv2"),
        "",
        "I/O Tensors:",
        " Name: x, IOMode: Input",
    ]
)


def test_build_log_of_tensorrt_for_rtx(model):
    read = layers.from_dump(DUMP)
    assert [entry.name for entry in read] == ["__myl_Quant_0", "conv1_myl0_1", "conv2_myl0_2"]
    assert [entry.inputs + entry.outputs for entry in read] == [
        ["fp32", "int8"],
        ["int8", "fp32"],
        ["fp16", "fp16"],
    ]
    found = layers.summarize(read, model, "build log")
    assert found["convolutions"] == {"int8": 1, "fp16": 1} and found["source"] == "build log"


def test_sentences_about_what_is_bad_and_none_about_what_is_good(model):
    fused = layers.from_inspector(json.dumps({"Layers": GOOD[1:]}))
    assert layers.sentences(layers.summarize(fused, model, ""), "int8") == []
    slow = [
        layer("conv1", "CaskConvolution", FLOAT, FLOAT, "conv1"),
        GOOD[2],
        GOOD[3],
        *(layer(f"Reformatting CopyNode {i}", "Reformat", FLOAT, INT8) for i in range(3)),
    ]
    found = layers.summarize(layers.from_inspector(json.dumps({"Layers": slow})), model, "")
    said = " ".join(layers.sentences(found, "int8+fp16"))
    assert "1 layers are int8 in the graph but not in the engine: conv1" in said
    assert "2 of 2 convolutions run in fp32 although fp16 was asked for" in said
    assert "3 layers only change a tensor's format, beside 2 convolutions" in said
    assert "fp16 was asked for" not in " ".join(layers.sentences(found, "int8"))


def test_report_for_a_person(model, tmp_path, capsys):
    summary = layers.summarize(layers.from_dump(DUMP), model, "build log")
    built = {
        "flavor": "rtx",
        "version": "1.7.1.116",
        "plan_bytes": 3_242_268,
        "build_seconds": 0.4,
        "build_peak_mib": 222.0,
        "gpu": None,
        "compute_capability": None,
        "profiles": [{"min": 1, "opt": 8, "max": 32}, {"min": 64, "opt": 64, "max": 64}],
        "layers": summary,
        "warnings": ["one sentence"],
        "state": "built, not run",
    }
    layers.show(tmp_path / "a.plan", Metadata(precision="int8", engine=EngineRecord.from_dict(built, "test")))
    printed = capsys.readouterr().out
    for words in (
        "TensorRT for RTX 1.7.1.116, int8, 3.2 MB",
        "0.4 s, 222 MiB, without a GPU",
        "1 to 32, tuned for 8; 64",
        "1 int8, 1 fp16 (build log, 3 layers)",
        "built, not run",
        "note: one sentence",
    ):
        assert words in printed
