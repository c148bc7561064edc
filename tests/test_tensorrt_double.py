"""The test double of TensorRT refuses what the real bindings of each version refuse; else the tests on it
would prove little.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorrt_double as double
from onnx import TensorProto, helper, numpy_helper

DOUBLES = Path(__file__).parent / "doubles"


@pytest.fixture(params=["10.3", "11.4", "rtx-1.7"])
def trt(request):
    return double.make(request.param)


@pytest.fixture
def logger(trt):
    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.lines = []

        def log(self, severity, msg):
            self.lines.append((severity.name, msg))

    return Log()


def test_enum_numbers_are_those_of_the_version():
    old, new = double.make("10.3"), double.make("11.4")
    numbers = [
        (int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED), int(trt.BuilderFlag.STRIP_PLAN))
        for trt in (old, new)
    ]
    assert numbers == [(1, 19), (0, 18)]
    assert hasattr(new.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY")
    assert not hasattr(old.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY")
    assert hasattr(old.BuilderFlag, "FP16") and not hasattr(new.BuilderFlag, "FP16")


def test_an_enum_is_not_a_number(trt):
    with pytest.raises(TypeError):
        1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert int(trt.BuilderFlag.TF32) != trt.BuilderFlag.TF32


def test_names_that_a_version_lacks_are_refused():
    assert double.make("10.3").__version__ == "10.3.0"
    for version in ("10.3", "11.4"):
        trt = double.make(version)
        with pytest.raises(AttributeError):
            trt.IInt8EntropyCalibrator3  # noqa: B018
        with pytest.raises(AttributeError):
            trt.Runtime.max_batch_size  # noqa: B018


@pytest.fixture
def config(trt, logger):
    return trt.IBuilderConfig(logger)


def test_attributes_that_are_not_there_cannot_be_set(config):
    with pytest.raises(AttributeError, match="max_workspace_size"):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError, match="num_optimization_profiles"):
        config.num_optimization_profiles = 1
    with pytest.raises(TypeError, match="profiling_verbosity"):
        config.profiling_verbosity = 2
    config.builder_optimization_level = 5


def test_arguments_are_checked_as_pybind11_does(config, trt):
    config.set_memory_pool_limit(pool=trt.MemoryPoolType.WORKSPACE, pool_size=1 << 20)
    for wrong in ((trt.MemoryPoolType.WORKSPACE,), (0, 1), (trt.MemoryPoolType.WORKSPACE, "1")):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            config.set_memory_pool_limit(*wrong)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size=1)


def test_what_the_double_does_not_do_is_loud(config):
    with pytest.raises(NotImplementedError, match="not in this test double"):
        config.max_aux_streams  # noqa: B018


def test_subclass_that_forgets_the_base_constructor_is_refused():
    trt = double.make("rtx-1.7")

    class Forgetful(trt.ILogger):
        def __init__(self):
            return

    with pytest.raises(TypeError, match="must be called"):
        trt.Builder(Forgetful())


def graph(sizes=("N", 3, 4, 4)):
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["out"], name="conv"),
        helper.make_node("Flatten", ["out"], ["logits"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, list(sizes))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [sizes[0], 18])],
        [numpy_helper.from_array(np.ones((2, 3, 2, 2), np.float32), "w")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Build:
    """One build on the flavor whose builder needs no driver."""

    def __init__(self, model=None):
        self.trt = trt = double.make("rtx-1.7")

        class Log(trt.ILogger):
            def __init__(self):
                trt.ILogger.__init__(self)
                self.lines = []

            def log(self, severity, msg):
                self.lines.append(msg)

        self.log = Log()
        self.builder = trt.Builder(self.log)
        self.network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        assert trt.OnnxParser(self.network, self.log).parse((model or graph()).SerializeToString())
        self.config = self.builder.create_builder_config()

    def profile(self, *sizes, name="image"):
        profile = self.builder.create_optimization_profile()
        profile.set_shape(name, *((size, 3, 4, 4) for size in sizes))
        return self.config.add_optimization_profile(profile)

    def plan(self):
        return self.builder.build_serialized_network(self.network, self.config)


def test_plan_has_the_head_of_a_real_one():
    build = Build()
    assert build.profile(1, 2, 4) == 0
    plan = bytes(build.plan())
    assert plan[:8] == b"vtrt" + bytes(4) and tuple(plan[24:28]) == (1, 7, 1, 116)


def test_failure_is_none_and_a_line_in_the_log():
    build = Build()
    assert build.plan() is None and "no optimization profile has been defined" in build.log.lines[-1]
    assert build.profile(4, 2, 8) == -1
    assert build.profile(1, 2, 4, name="typo") == 0
    assert build.plan() is None and "missing dimensions in profile 0" in build.log.lines[-1]


@pytest.mark.parametrize("answer", [False, None, "raises"])
def test_monitor_that_does_not_say_true_cancels(answer, capsys):
    build = Build(graph((1, 3, 4, 4)))
    told = []

    class Monitor(build.trt.IProgressMonitor):
        def __init__(self):
            build.trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name, parent_phase, num_steps):
            told.append((phase_name, parent_phase))

        def step_complete(self, phase_name, step):
            if answer == "raises":
                raise ValueError
            return answer

    build.config.progress_monitor = Monitor()
    assert build.plan() is None and "canceled" in build.log.lines[-1]
    assert told[:2] == [("Building engine", None), ("Optimizing graph", "Building engine")]


def test_ten_needs_the_strongly_typed_flag():
    weak, eleven = (
        double.make("10.3").INetworkDefinition(0, None),
        double.make("11.4").INetworkDefinition(0, None),
    )
    assert (weak._strongly_typed, eleven._strongly_typed) == (False, True)
    wrong = double.make("10.3").INetworkDefinition(1 << 0, None)  # 11's number
    assert not wrong._strongly_typed


def test_parser_names_opset_garbage_and_types():
    def errors(version, content):
        trt = double.make(version)

        class Log(trt.ILogger):
            def __init__(self):
                trt.ILogger.__init__(self)

            def log(self, severity, msg):
                return

        parser = trt.OnnxParser(trt.INetworkDefinition(2, None), Log())
        assert parser.parse(content) is (parser.num_errors == 0)
        return [
            (parser.get_error(i).code().name, parser.get_error(i).node_name())
            for i in range(parser.num_errors)
        ]

    late = graph()
    late.opset_import[0].version = 21
    assert errors("10.3", late.SerializeToString()) == [("UNSUPPORTED_GRAPH", "")]
    assert errors("10.9", late.SerializeToString()) == []
    assert errors("11.4", b"garbage") == [("MODEL_DESERIALIZE_FAILED", "")]
    mixed = graph()
    mixed.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((2, 3, 2, 2), np.float16), "w"))
    assert errors("11.4", mixed.SerializeToString()) == [("UNSUPPORTED_NODE", "conv")]


def test_on_the_path_it_answers_to_the_name():
    code = "import tensorrt; print(tensorrt.__version__, 'TEST DOUBLE' in tensorrt.__doc__)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(DOUBLES / "modules"), "TENSORRT_DOUBLE_VERSION": "10.16"},
    )
    assert ran.stdout.split() == ["10.16.1.11", "True"]
