"""TEST DOUBLE, the half that builds: parser, network, builder configuration, builder, progress.

In:  ONNX files.
Out: plans that the other half (tensorrt_double) runs; refusals where TensorRT refuses, with its words in the
logger.
Elsewhere: the module and running (tensorrt_double).

$TENSORRT_DOUBLE_STEP_SECONDS: how long a step of the build takes, so that a test can stop it.
"""

import os
import re
import time
import traceback

import onnx
from onnx import TensorProto, numpy_helper, shape_inference

TYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
}
OPSETS = {"10.3": 20, "10.7": 20, "10.9": 22, "10.13": 24, "10.16": 24}
"""Highest operator set of a version's parser; later ones read 25."""


def log(logger, severity: str, text: str) -> None:
    logger.log(type(logger).Severity[severity], text)


class IProgressMonitor:
    def __init__(self):
        self._made = True

    def phase_start(self, phase_name, parent_phase, num_steps):
        return None

    def step_complete(self, phase_name, step):
        return True

    def phase_finish(self, phase_name):
        return None


class Builder:
    def __init__(self, logger):
        from tensorrt_double import DRIVER

        if not getattr(logger, "_made", False):
            raise TypeError("__init__() must be called when overriding __init__")
        if not self._trt.__name__.startswith("tensorrt_rtx") and not DRIVER.there():
            log(
                logger,
                "ERROR",
                "CUDA initialization failure with error: 35. Please check your CUDA installation",
            )
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    @property
    def logger(self):
        return self._logger

    def create_network(self, flags=0):
        return self._trt.INetworkDefinition(flags, self._logger)

    def create_builder_config(self):
        return self._trt.IBuilderConfig(self._logger)

    def create_optimization_profile(self):
        return self._trt.IOptimizationProfile()

    def build_serialized_network(self, network, config):
        """The plan, or None; never an exception."""
        reason = _why_not(self._trt, network, config) or _progress(self._trt, network, config)
        if reason:
            log(self._logger, "ERROR", reason)
            return None
        return self._trt.IHostMemory(_plan(self._trt, network, config))


def _why_not(trt, network, config) -> str | None:
    if network._model is None:
        return (
            "IBuilder::buildSerializedNetwork: Error Code 4: Internal Error (Network must have at least one"
            " output)"
        )
    if not network._strongly_typed:
        return "this test double builds strongly typed networks only"
    dynamic = [tensor for tensor in network._inputs if -1 in tuple(tensor.shape)]
    if dynamic and not config._profiles:
        return (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network has dynamic or shape"
            " inputs, but no optimization profile has been defined.)"
        )
    for number, profile in enumerate(config._profiles):
        for tensor in dynamic:
            if tensor.name not in profile._shapes:
                return f"Error Code 4: Internal Error ({tensor.name}: missing dimensions in profile {number})"
            for shape in profile._shapes[tensor.name]:
                if any(
                    fixed not in (-1, size) for fixed, size in zip(tuple(tensor.shape), shape, strict=True)
                ):
                    return (
                        f"Error Code 4: Internal Error ({tensor.name}: static dimensions differ in profile"
                        f" {number})"
                    )
    return None


def _progress(trt, network, config) -> str | None:
    """Tell the monitor of the phases; a reason when it wants no more of it."""
    monitor, pause = config.progress_monitor, float(os.environ.get("TENSORRT_DOUBLE_STEP_SECONDS", 0))
    if monitor is None:
        return None
    nodes = len(network._model.graph.node)
    canceled = (
        "IBuilder::buildSerializedNetwork: Error Code 1: Internal Error (Build canceled by progress monitor)"
    )
    try:
        monitor.phase_start("Building engine", None, 2)
        for step, (phase, steps) in enumerate((("Optimizing graph", 3), ("Tactic selection", nodes))):
            monitor.phase_start(phase, "Building engine", steps)
            for inner in range(steps):
                time.sleep(pause)
                if monitor.step_complete(phase, inner) is not True:  # None cancels too
                    return canceled
            monitor.phase_finish(phase)
            if monitor.step_complete("Building engine", step) is not True:
                return canceled
        monitor.phase_finish("Building engine")
    except Exception:  # the bindings print it and take it for a no
        traceback.print_exc()
        return canceled
    return None


def _plan(trt, network, config) -> bytes:
    from tensorrt_double import DRIVER, MAGIC, pack

    model = onnx.ModelProto()
    model.CopyFrom(network._model)
    for value, tensor in zip(model.graph.input, network._inputs, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, tuple(tensor.shape), strict=True):
            if size >= 0:
                dim.dim_value = size
    if network._inputs[0]._changed:  # what follows from a batch size that is fixed now
        batch, *_ = network._inputs[0].shape
        for value in model.graph.output:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    stripped = []
    if "STRIP_PLAN" in config._flags:
        for initializer in model.graph.initializer:
            if len(initializer.raw_data) > 64:
                stripped.append(initializer.name)
                initializer.raw_data = bytes(len(initializer.raw_data))
    name = network._inputs[0].name
    capability = DRIVER.compute_capability() if DRIVER.there() else None
    about = {
        "profiles": [[list(shape) for shape in profile._shapes[name]] for profile in config._profiles],
        "quirks": {},
        "verbosity": config.profiling_verbosity.name,
        "compute_capability": capability,
        "stripped": stripped,
        "hardware_compat": config.hardware_compatibility_level.name,
        "version_compat": "VERSION_COMPATIBLE" in config._flags,
    }
    return pack(model.SerializeToString(), about, trt.__version__, MAGIC[trt.__name__])


class INetworkDefinition:
    def __init__(self, flags: int, logger):
        flag = self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        always = self._trt.__version__.startswith("11.") or self._trt.__name__ != "tensorrt"
        self._flags, self._logger = flags, logger
        self._strongly_typed = always or bool(flags >> int(flag) & 1)
        self._model, self._inputs, self._outputs = None, [], []

    @property
    def num_inputs(self):
        return len(self._inputs)

    @property
    def num_outputs(self):
        return len(self._outputs)

    @property
    def num_layers(self):
        return len(self._model.graph.node) if self._model else 0

    @property
    def flags(self):
        return self._flags

    def get_flag(self, flag):
        return self._strongly_typed if flag.name == "STRONGLY_TYPED" else bool(self._flags >> int(flag) & 1)

    def get_input(self, index):
        return self._inputs[index]

    def get_output(self, index):
        return self._outputs[index]


class ITensor:
    def __init__(self, value, dtype):
        shape = value.type.tensor_type.shape.dim
        self._name, self._dtype, self._changed = value.name, dtype, False
        self._shape = tuple(each.dim_value if each.HasField("dim_value") else -1 for each in shape)

    @property
    def name(self):
        return self._name

    @property
    def dtype(self):
        return self._dtype

    @property
    def shape(self):
        return self._trt.Dims(self._shape)

    @shape.setter
    def shape(self, shape):
        self._changed = self._changed or tuple(shape) != self._shape
        self._shape = tuple(shape)


class IBuilderConfig:
    def __init__(self, logger):
        trt = self._trt
        self._logger, self._flags, self._profiles, self._limits, self._cache = logger, {"TF32"}, [], {}, None
        self.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
        self._monitor = None

    @property
    def progress_monitor(self):
        return self._monitor

    @progress_monitor.setter
    def progress_monitor(self, monitor):
        if monitor is not None and not getattr(monitor, "_made", False):
            raise TypeError("__init__() must be called when overriding __init__")
        self._monitor = monitor

    @property
    def num_optimization_profiles(self):
        return len(self._profiles)

    def set_flag(self, flag):
        self._flags.add(flag.name)

    def clear_flag(self, flag):
        self._flags.discard(flag.name)

    def get_flag(self, flag):
        return flag.name in self._flags

    def set_memory_pool_limit(self, pool, pool_size):
        self._limits[pool.name] = pool_size

    def get_memory_pool_limit(self, pool):
        return self._limits.get(pool.name, 2**34)

    def add_optimization_profile(self, profile):
        for shapes in profile._shapes.values():
            least, tuned, most = shapes
            if any(not low <= middle <= high for low, middle, high in zip(least, tuned, most, strict=True)):
                log(
                    self._logger,
                    "ERROR",
                    "IBuilderConfig::addOptimizationProfile: Error Code 4: dimensions not in order",
                )
                return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache):
        content = bytes(serialized_timing_cache)
        if content and not content.startswith(b"double cache "):
            log(self._logger, "WARNING", "Unable to read the timing cache; starting with an empty one")
            content = b""
        return self._trt.ITimingCache(content)

    def set_timing_cache(self, cache, ignore_mismatch):
        fits = not cache._content or cache._content == cache._for_here()
        if fits or ignore_mismatch:
            self._cache = cache
        return fits or ignore_mismatch

    def get_timing_cache(self):
        return self._cache


class IOptimizationProfile:
    def __init__(self):
        self._shapes = {}

    def set_shape(self, input, min, opt, max):
        self._shapes[input] = [tuple(min), tuple(opt), tuple(max)]  # neither order nor name is looked at here

    def get_shape(self, input):
        return [self._trt.Dims(shape) for shape in self._shapes[input]]


class ITimingCache:
    def __init__(self, content: bytes):
        self._content = content

    def _for_here(self) -> bytes:
        return f"double cache {self._trt.__version__}".encode()

    def serialize(self):
        return self._trt.IHostMemory(self._content or self._for_here())


class ParserError:
    def __init__(self, code, desc, node=-1, name="", operator=""):
        self._code, self._desc, self._node, self._name, self._operator = code, desc, node, name, operator

    def code(self):
        return self._trt.ErrorCode[self._code]

    def desc(self):
        return self._desc

    def node(self):
        return self._node

    def node_name(self):
        return self._name

    def node_operator(self):
        return self._operator

    def local_function_stack(self):
        return []


class OnnxParser:
    def __init__(self, network, logger):
        self._network, self._logger, self._errors = network, logger, []

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, index):
        return self._errors[index]

    def clear_errors(self):
        self._errors = []

    def parse_from_file(self, model):
        try:
            with open(model, "rb") as file:
                content = file.read()
        except OSError:
            content = b"no such file"
        return self.parse(content, model)

    def parse(self, model, path=None):
        try:
            graph = onnx.load_from_string(bytes(model))
            onnx.checker.check_model(graph)
        except Exception as error:  # protobuf's and the checker's errors share no public base
            found = re.search(r"No Op registered for (\w+)", str(error))
            if found:
                desc = "Plugin not found, are the plugin name, version, and namespace correct?"
                self._fail("INVALID_NODE", desc, 0, "", found[1])
            else:
                self._fail("MODEL_DESERIALIZE_FAILED", f"Failed to parse the ONNX model {path or ''}")
            return False
        surface = next(
            (limit for version, limit in OPSETS.items() if self._trt.__version__.startswith(f"{version}.")),
            25,
        )
        opset = max(entry.version for entry in graph.opset_import)
        if opset > surface:
            self._fail(
                "UNSUPPORTED_GRAPH",
                f"opset {opset} is above {surface}, the highest this test double's parser reads",
            )
            return False
        before, known = len(self._errors), _known(graph)
        for number, node in enumerate(graph.graph.node):
            for desc in _refusals(node, *known):
                self._fail("UNSUPPORTED_NODE", desc, number, node.name, node.op_type)
        if len(self._errors) > before:
            return False
        network, trt = self._network, self._trt
        network._model = graph
        for held, values in ((network._inputs, graph.graph.input), (network._outputs, graph.graph.output)):
            held += [
                trt.ITensor(value, trt.DataType[TYPES[value.type.tensor_type.elem_type]]) for value in values
            ]
        return True

    def _fail(self, code, desc, node=-1, name="", operator=""):
        self._errors.append(self._trt.ParserError(code, desc, node, name, operator))
        log(self._logger, "ERROR", f"ModelImporter: {operator} {name}: {desc}")


def _known(model):
    """(constants by name, element types by name)"""
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    inferred = shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    types = {each.name: each.type.tensor_type.elem_type for each in values} | {
        each.name: each.data_type for each in model.graph.initializer
    }
    return constants, types


def _refusals(node, constants, types):
    """The rules of a strongly typed network with explicit Q/DQ, as the parser of TensorRT for RTX 1.7 states
    them.
    """
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        scale = constants.get(node.input[1])
        if scale is not None and not (scale > 0).all():
            yield "Scale coefficients must all be positive"
        if len(node.input) > 2 and node.input[2] in constants and constants[node.input[2]].any():
            yield "Non-zero zero point is not supported. Please use symmetric quantization"
        if node.op_type == "DequantizeLinear" and types.get(node.input[0]) == TensorProto.INT32:
            yield "input has type Int32 but must have type FP8, FP4, Int4, Int8, or UInt8"
    if node.op_type in ("Conv", "Gemm", "Add", "Mul", "LayerNormalization"):
        kinds = {types[name] for name in node.input if name in types}
        if len(kinds) > 1:
            yield (
                "inputs must have the same type, found"
                f" {', '.join(sorted(TYPES.get(kind, str(kind)) for kind in kinds))}"
            )


BUILDING = {
    each.__name__: each
    for each in (
        IProgressMonitor,
        Builder,
        INetworkDefinition,
        ITensor,
        IBuilderConfig,
        IOptimizationProfile,
        ITimingCache,
        ParserError,
        OnnxParser,
    )
}
