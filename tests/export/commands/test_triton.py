"""`distill export triton`: plans and ONNX files, what is chosen for them, and what is refused before anything
is written.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import triton_schema
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper

from export import __main__ as cli
from runtime.artifact import Metadata, seal, sidecar_bytes, sidecar_of
from runtime.preprocess import Preprocess
from runtime.records import EngineRecord

SPEC = Preprocess(input_size=(3, 8, 8), interpolation="bilinear", crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))
META = Metadata(
    model="mean_color",
    preprocess=SPEC,
    class_names=["blue", "green", "red"],
    lineage={"checkpoint": {"sha256": "ab"}},
)


def onnx_bytes(meta=META, batch="N"):
    """logits = the mean of each channel."""
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Add", ["flat", "bias"], ["logits"]),
        ],
        "mean_color",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(np.zeros(3, np.float32), "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    if meta:
        helper.set_model_props(model, meta.to_map())
    return seal(model.SerializeToString())


@pytest.fixture
def student(tmp_path):
    (tmp_path / "student.onnx").write_bytes(onnx_bytes())
    return tmp_path / "student.onnx"


@pytest.fixture
def plan(tmp_path):
    """A function that writes student.plan and its sidecar, with changes to the engine's entry, or without one
    of its fields.
    """

    def make(without=None, **changes):
        path, content = (
            tmp_path / "student.plan",
            b"ftrt a plan of TensorRT, as far as Triton's folder is concerned",
        )
        path.write_bytes(content)
        batch = -1 if changes.get("profiles", [{"min": 1, "max": 16}])[0]["max"] > 1 else 1
        engine = {
            "flavor": "tensorrt",
            "version": "10.3.0.30",
            "plan_sha256": hashlib.sha256(content).hexdigest(),
            "state": "run",
            "inputs": [{"name": "image", "dtype": "float32", "shape": [batch, 3, 8, 8]}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": [batch, 3]}],
            "profiles": [{"min": 1, "opt": 8, "max": 16}],
            "onnx": {"file": "student.onnx", "sha256": "cd"},
            "flags": {"version_compat": False, "strip_weights": False},
            **changes,
        }
        engine.pop(without, None)
        sidecar_of(path).write_bytes(
            sidecar_bytes(replace(META, precision="int8", engine=EngineRecord.from_dict(engine, "test")))
        )
        return path

    return make


@pytest.fixture
def served(tmp_path, capsys):
    """A function that runs the command and returns (exit code, the config read by the schema or None, what
    was said).
    """

    def run(artifact, *flags):
        code = cli.main(["triton", str(artifact), "--repository", str(tmp_path / "models"), *flags])
        said = capsys.readouterr()
        configs = list((tmp_path / "models").glob("*/config.pbtxt"))
        return (
            code,
            text_format.Parse(configs[0].read_text(), triton_schema.message()) if configs else None,
            said,
        )

    run.models = tmp_path / "models"
    return run


def test_an_onnx_file_becomes_a_model_on_the_cpu(student, served):
    code, config, said = served(student)
    assert (code, config.name, config.platform, config.max_batch_size) == (
        0,
        "student",
        "onnxruntime_onnx",
        8,
    )
    assert (config.instance_group[0].kind, list(config.input[0].dims), list(config.output[0].dims)) == (
        2,
        [3, 8, 8],
        [3],
    )
    assert (
        config.dynamic_batching.max_queue_delay_microseconds == 500
        and not config.dynamic_batching.preferred_batch_size
    )
    assert (served.models / "student/1/model.onnx").read_bytes() == student.read_bytes()
    assert (served.models / "student/labels.txt").read_text() == "blue\ngreen\nred\n"
    values = {key: config.parameters[key].string_value for key in config.parameters}
    assert Preprocess.from_dict(json.loads(values["large2small.preprocess"])) == SPEC
    assert json.loads(values["large2small.lineage"]) == META.lineage
    assert values["large2small.sha256"] == hashlib.sha256(student.read_bytes()).hexdigest()
    assert f"tritonserver --model-repository={served.models}" in said.out


def test_the_flags_are_in_the_config(student, served):
    code, config, said = served(
        student,
        "--name",
        "pets.v2",
        "--version",
        "7",
        "--max-batch",
        "32",
        "--max-delay-us",
        "0",
        "--preferred",
        "16,4",
        "--instances",
        "2",
        "--device",
        "gpu",
        "--json",
    )
    assert (code, config.name, config.max_batch_size) == (0, "pets.v2", 32)
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert (config.instance_group[0].count, config.instance_group[0].kind) == (2, 1)
    assert (served.models / "pets.v2/7/model.onnx").is_file()
    result = json.loads(said.out)
    assert (result["max_batch_size"], result["max_delay_us"], result["device"]) == (32, 0, "gpu")
    assert all(Path(path).is_file() for path in result["files"])


def test_a_plan_is_served_up_to_its_profile_and_waits_for_what_it_was_tuned_for(plan, served):
    code, config, said = served(plan())
    assert (code, config.platform, config.max_batch_size, config.default_model_filename) == (
        0,
        "tensorrt_plan",
        16,
        "model.plan",
    )
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert (config.instance_group[0].kind, list(config.instance_group[0].profile)) == (1, [])
    assert config.parameters["large2small.tensorrt"].string_value == "10.3.0.30"
    assert said.err == ""


def test_a_plan_of_two_profiles_names_both(plan, served):
    _, config, _ = served(plan(profiles=[{"min": 1, "opt": 4, "max": 4}, {"min": 1, "opt": 8, "max": 32}]))
    assert config.max_batch_size == 32 and list(config.instance_group[0].profile) == ["0", "1"]
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]


def test_a_plan_of_one_size_is_not_batched(plan, served):
    _, config, said = served(plan(profiles=[{"min": 1, "opt": 1, "max": 1}]))
    assert config.max_batch_size == 0 and list(config.input[0].dims) == [1, 3, 8, 8]
    assert "1 a call" in said.out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": "built, not run"}, "is built, not run: nothing is known"),
        ({"flags": {"version_compat": True, "strip_weights": False}}, "version-compatible=true"),
        ({"profiles": [{"min": 4, "opt": 8, "max": 16}]}, "takes 4 images or more a call"),
    ],
)
def test_what_the_one_who_serves_it_must_know_is_said(plan, served, changes, words):
    code, _, said = served(plan(**changes))
    assert code == 0 and words in said.err and said.err.startswith("note: ")


def test_fp16_files_and_free_sizes_of_another_origin_are_served_without_labels(student, served):
    student.write_bytes(onnx_bytes(meta=None))
    code, config, said = served(student)
    assert code == 0 and "carries no class names" in said.err
    assert config.output[0].label_filename == "" and list(config.parameters) == ["large2small.sha256"]
    assert not (served.models / "student/labels.txt").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-batch", "17"], "takes 1 to 16 images"),
        (["--max-batch", "0"], "expected 1 or more"),
        (["--preferred", "4,20"], "expected batch sizes from 1 to 16"),
        (["--preferred", "4;8"], "with commas between"),
        (["--preferred", "0"], "from 1 to 16"),
        (["--version", "0"], "expected 1 or more"),
        (["--instances", "0"], "expected 1 or more"),
        (["--max-delay-us", "-1"], "expected 0 or more"),
        (["--device", "cpu"], "Give the .onnx file"),
        (["--name", "a/b"], "--name"),
        (["--name", ".hidden"], "--name"),
        (["--name", ""], "--name"),
        (["--devise", "gpu"], "did you mean --device?"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_a_flag_that_the_plan_cannot_follow_is_refused_and_nothing_is_written(plan, served, flags, words):
    code, config, said = served(plan(), *flags)
    assert (code, config) == (2, None)
    assert words in said.err and said.err.count("\n") == 1
    assert not served.models.exists()


@pytest.mark.parametrize("flag", [["--max-batch", "4"], ["--preferred", "2"], ["--max-delay-us", "9"]])
def test_a_file_of_fixed_batch_size_cannot_be_batched(student, served, flag):
    student.write_bytes(onnx_bytes(batch=4))
    code, _, said = served(student, *flag)
    assert code == 2 and "takes exactly 4 images a call" in said.err
    code, config, said = served(student)
    assert (code, config.max_batch_size, list(config.input[0].dims)) == (0, 0, [4, 3, 8, 8])
    assert "labels do not fit" in said.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plan_sha256": "0" * 64}, "not the plan that student.plan.json describes"),
        ({"flavor": "rtx"}, "distill export trt student.onnx --flavor tensorrt"),
        ({"flags": {"strip_weights": True, "version_compat": False}}, "its weights are not in it"),
        ({"without": "profiles"}, "does not say 'profiles'"),
        ({"flags": {}}, "does not say 'strip_weights'"),
    ],
)
def test_a_plan_that_triton_cannot_run_is_refused(plan, served, changes, words):
    code, config, said = served(plan(**changes))
    assert (code, config) == (4, None) and words in said.err


def test_one_changed_byte_is_refused(plan, student, served):
    path = plan()
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    assert served(path)[:2] == (4, None)
    student.write_bytes(student.read_bytes().replace(b"mean_color", b"mean-color", 1))
    code, _, said = served(student)
    assert code == 4 and "changed since it was written" in said.err


def test_a_plan_alone_is_refused(plan, served):
    path = plan()
    sidecar_of(path).unlink()
    code, _, said = served(path)
    assert code == 4 and "student.plan.json is not beside it" in said.err


@pytest.mark.parametrize("content", [b"", b"not a model at all" * 9], ids=["empty", "junk"])
def test_a_file_that_is_not_a_model_is_refused(student, served, content):
    student.write_bytes(content)
    code, config, said = served(student)
    assert (code, config) == (4, None) and said.err.count("\n") == 1


def test_int8_with_fp16_is_served_as_a_plan_only(student, served):
    student.write_bytes(onnx_bytes(replace(META, precision="int8+fp16")))
    code, _, said = served(student)
    assert code == 4 and "Serve it as a plan: distill export trt" in said.err


def test_weights_in_another_file_are_refused(tmp_path, served):
    model = onnx.load_from_string(onnx_bytes(meta=None))
    del model.metadata_props[:]  # and with it the seal
    onnx.save(
        model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    code, _, said = served(tmp_path / "m.onnx")
    assert code == 4 and "are in another file" in said.err


@pytest.mark.parametrize(
    ("name", "words"), [("none.onnx", "no such file"), ("best.pth", "a .plan or an .onnx file")]
)
def test_what_is_not_an_artifact_is_a_usage_error(tmp_path, served, name, words):
    (tmp_path / "best.pth").write_bytes(b"x")
    code, _, said = served(tmp_path / name)
    assert code == 2 and words in said.err


def test_the_name_is_made_of_the_files(tmp_path, served):
    (tmp_path / "my student.int8.onnx").write_bytes(onnx_bytes())
    assert served(tmp_path / "my student.int8.onnx")[1].name == "my_student.int8"
