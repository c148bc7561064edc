"""TEST DOUBLE of NVIDIA's `tensorrt` module: its names and refusals, none of its kernels.

In:  a version; ONNX files; the driver that `libcuda.so.1` is here (tests/doubles/libcuda_double.c).
Out: `make(version)`, a module with exactly that version's names; plans that hold the ONNX graph and run on
ONNX Runtime.
Elsewhere: the names (tensorrt_surface), building (tensorrt_double_build), the driver (libcuda_double.c).

What it refuses, and in which words, follows what was seen of the real libraries; see the comments. It is
stricter than they are: where TensorRT would crash or go wrong quietly, a line beginning with FAULT goes to
stderr and into `module.FAULTS`, and using a Runtime without a driver ends the process.
"""

import ctypes
import enum
import hashlib
import itertools
import json
import os
import sys
import threading
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import tensorrt_surface
from tensorrt_double_build import BUILDING, TYPES, log
from tensorrt_surface import Surface, restrict

MAGIC = {"tensorrt": b"ftrt", "tensorrt_rtx_bindings": b"vtrt"}
BUILDS = {"10.3.0": "10.3.0.30", "10.7.0": "10.7.0.23"}
"""Where the module leaves the build number out, what stands in its plans."""

FAULTS: list[str] = []


def make(version: str) -> ModuleType:
    """The module. version: one of tensorrt_surface.VERSIONS, or rtx-1.7."""
    surface = Surface(version)
    module = ModuleType("tensorrt_rtx_bindings" if version.startswith("rtx") else "tensorrt", __doc__)
    module.__version__, module.FAULTS = surface.full_version, FAULTS
    types: dict[str, type] = {}
    for name in tensorrt_surface.ENUMS:
        values = {member: fact["value"] for member, fact in surface.members(name).items()}
        types[name] = _enum(name, values)
    severity = _enum("Severity", surface.facts["ILogger.Severity"]["members"])
    for name, base in {**RUNNING, **BUILDING}.items():
        made = restrict(base, name, surface, types)
        made._trt = module
    types["ILogger"].Severity = types["Severity"] = severity
    for member in severity:
        setattr(types["ILogger"], member.name, member)
    for name in types:
        if name in surface.facts:
            setattr(module, name, types[name])
    for name in tensorrt_surface.ALIASES:
        setattr(module, name, getattr(types["DataType"], surface.facts[name]["of"].split(".")[1]))
    return module


def _enum(name: str, values: dict[str, int]) -> type:
    """Like pybind11's: int() works, arithmetic and comparing with numbers do not."""
    return enum.Enum(name, values, type=_Number)


class _Number:
    def __int__(self):
        return self.value

    def __index__(self):
        return self.value


def fault(text: str) -> None:
    """Something that would go wrong in the real library without an error."""
    FAULTS.append(text)
    os.write(2, f"FAULT (TensorRT test double): {text}\n".encode())


class Driver:
    """The few calls of libcuda that TensorRT itself makes."""

    def __init__(self) -> None:
        self._library = None

    @property
    def library(self):
        if self._library is None:
            library = ctypes.CDLL("libcuda.so.1")
            library.cuMemFree_v2.argtypes = [ctypes.c_uint64]
            library.cuMemAlloc_v2.argtypes = [ctypes.POINTER(ctypes.c_uint64), ctypes.c_size_t]
            library.cuLaunchHostFunc.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
            library.cuStreamIsCapturing.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]
            self._library = library
        return self._library

    def there(self) -> bool:
        count = ctypes.c_int()
        try:
            return (
                self.library.cuInit(0) == 0
                and self.library.cuDeviceGetCount(ctypes.byref(count)) == 0
                and count.value > 0
            )
        except OSError:
            return False

    def has_context(self) -> bool:
        current = ctypes.c_void_p()
        return self.library.cuCtxGetCurrent(ctypes.byref(current)) == 0 and bool(current.value)

    def compute_capability(self) -> str:
        device, value = ctypes.c_int(), ctypes.c_int()
        self.library.cuCtxGetDevice(ctypes.byref(device))
        parts = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
            self.library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            parts.append(str(value.value))
        return ".".join(parts)

    def alloc(self, nbytes: int) -> int | None:
        address = ctypes.c_uint64()
        return address.value if self.library.cuMemAlloc_v2(ctypes.byref(address), nbytes) == 0 else None

    def free(self, address: int, what: str) -> None:
        if not self.has_context() or self.library.cuMemFree_v2(address) != 0:
            fault(f"{what} was freed without its CUDA context current")

    def capturing(self, stream: int) -> bool:
        state = ctypes.c_int()
        self.library.cuStreamIsCapturing(stream, ctypes.byref(state))
        return state.value == 1


DRIVER = Driver()
JOBS: dict[int, tuple] = {}
_NUMBERS = itertools.count(1)


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _run_job(number):
    """What a launch does when the stream comes to it."""
    context, captured, work = JOBS.get(number, ({"freed": True}, False, None))
    if context["freed"]:
        fault("a launch of an execution context that was freed")
        return
    if not captured:
        del JOBS[number]
    try:
        work()
    except Exception as error:  # in a C callback nobody would hear it
        fault(f"a launch failed: {error!r}")


class ILogger:
    def __init__(self):
        self._made = True


class Dims:
    def __init__(self, shape=()):
        self._sizes = tuple(shape)

    def __len__(self):
        return len(self._sizes)

    def __getitem__(self, place):
        return self._sizes[place]

    def __eq__(self, other):
        return self._sizes == tuple(other)

    __hash__ = None

    def __repr__(self):
        return repr(self._sizes)


class IHostMemory:
    """Bytes through the buffer protocol, which Python classes have from 3.12 on; `bytes()` works
    everywhere.
    """

    def __init__(self, content: bytes):
        self._content = content

    def __bytes__(self):
        return self._content

    def __buffer__(self, flags):
        return memoryview(self._content)

    @property
    def nbytes(self):
        return len(self._content)


def pack(content: bytes, about: dict, version: str, magic: bytes) -> bytes:
    """A plan: the head as in the real ones (letters at 0, version at 24 to 27), a checksum, facts, the ONNX
    bytes.
    """
    parts = [int(part) for part in BUILDS.get(version, version).split(".")][:4]
    facts = json.dumps(about).encode()
    body = len(facts).to_bytes(4, "little") + facts + content
    head = magic + bytes(4) + len(body).to_bytes(8, "little") + bytes(8) + bytes((parts + [0] * 4)[:4])
    return head + hashlib.sha256(body).digest() + body


class Runtime:
    def __init__(self, logger):
        if not DRIVER.there():
            os.abort()  # what the lean runtime's first use does without a driver: a crash
        if not getattr(logger, "_made", False):
            raise TypeError("__init__() must be called when overriding __init__")
        self._logger, self._host_code = logger, False

    @property
    def logger(self):
        return self._logger

    @property
    def engine_host_code_allowed(self):
        return self._host_code

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, allowed):
        self._host_code = allowed

    def deserialize_cuda_engine(self, serialized_engine):
        plan = bytes(serialized_engine)
        reason, about, content = self._open(plan)
        if reason:
            log(self._logger, "ERROR", reason)
            return None
        return self._trt.ICudaEngine(self, about, content)

    def _open(self, plan: bytes):
        """(why not, facts, ONNX bytes), in the wordings of libnvinfer."""
        here = BUILDS.get(self._trt.__version__, self._trt.__version__)
        if not plan:
            return (
                (
                    "IRuntime::deserializeCudaEngine: Error Code 3: Cannot deserialize with an empty memory"
                    " buffer."
                ),
                {},
                b"",
            )
        if plan[:4] != MAGIC[self._trt.__name__]:
            return (
                "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Magic tag does not match)",
                {},
                b"",
            )
        body, wrote = plan[60:], ".".join(map(str, plan[24:28]))
        if len(body) != int.from_bytes(plan[8:16], "little") or hashlib.sha256(body).digest() != plan[28:60]:
            return (
                "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Magic tag does not match)",
                {},
                b"",
            )
        size = int.from_bytes(body[:4], "little")
        about, content = json.loads(body[4 : 4 + size]), body[4 + size :]
        if wrote != ".".join((here.split(".") + ["0"] * 4)[:4]) and not about["version_compat"]:
            return (
                (
                    "The engine plan file is not compatible with this version of TensorRT, expecting library"
                    f" version {here} got {wrote}, please rebuild."
                ),
                {},
                b"",
            )
        if about["version_compat"] and not self._host_code:
            return (
                (
                    "Cannot deserialize engine with lean runtime since IRuntime::getEngineHostCodeAllowed()"
                    " is false."
                ),
                {},
                b"",
            )
        capability = DRIVER.compute_capability()
        if about["compute_capability"] not in (capability, None) and about["hardware_compat"] == "NONE":
            return (
                (
                    "The engine plan file is generated on an incompatible device, expecting compute"
                    f" {capability} got compute {about['compute_capability']}, please rebuild."
                ),
                {},
                b"",
            )
        return None, about, content


class ICudaEngine:
    """facts: profiles [[min, opt, max]] as shapes, quirks for tests (host, format, dtype of tensors; shape of
    the output).
    """

    def __init__(self, runtime, about: dict, content: bytes):
        self._runtime, self._about, self._model = runtime, about, onnx.load_from_string(content)
        graph = self._model.graph
        self._inputs, self._outputs = (
            [each.name for each in graph.input],
            [each.name for each in graph.output],
        )
        self._values = {each.name: each.type.tensor_type for each in (*graph.input, *graph.output)}
        self._missing = set(about["stripped"])
        self._session, self._lock = None, threading.Lock()
        self._memory = DRIVER.alloc(4096)

    def __del__(self):
        if self.__dict__.get("_memory"):
            DRIVER.free(self._memory, "an engine")

    @property
    def num_io_tensors(self):
        return len(self._inputs) + len(self._outputs)

    @property
    def num_optimization_profiles(self):
        return max(len(self._about["profiles"]), 1)

    @property
    def refittable(self):
        return bool(self._about["stripped"])

    def get_tensor_name(self, index):
        return (self._inputs + self._outputs)[index]

    def get_tensor_mode(self, name):
        return self._trt.TensorIOMode.INPUT if name in self._inputs else self._trt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        sizes = self._about["quirks"].get("shape", {}).get(name) or [
            each.dim_value if each.HasField("dim_value") else -1 for each in self._values[name].shape.dim
        ]
        return self._trt.Dims(sizes)

    def get_tensor_dtype(self, name):
        return self._trt.DataType[TYPES[self._values[name].elem_type]]

    def get_tensor_location(self, name):
        return self._trt.TensorLocation["HOST" if name in self._about["quirks"].get("host", []) else "DEVICE"]

    def get_tensor_format(self, name, profile_index=0):
        return self._trt.TensorFormat[
            "CHW4" if name in self._about["quirks"].get("vectorized", []) else "LINEAR"
        ]

    def get_tensor_format_desc(self, name, profile_index=0):
        return "Four wide channel vectorized row major format (kCHW4)"

    def get_tensor_profile_shape(self, name, profile_index):
        profiles = self._about["profiles"] or [[list(self.get_tensor_shape(name))] * 3]
        return [self._trt.Dims(shape) for shape in profiles[profile_index]]

    def create_execution_context(self, strategy=None):
        if not DRIVER.has_context():
            log(self._runtime._logger, "ERROR", "CUDA initialization failure with error: 201")
            return None
        memory = DRIVER.alloc(2048)
        if memory is None:
            log(
                self._runtime._logger,
                "ERROR",
                "IExecutionContext: Error Code 2: OutOfMemory (Requested size was 2048 bytes.)",
            )
            return None
        return self._trt.IExecutionContext(self, memory)

    def create_engine_inspector(self):
        return self._trt.EngineInspector(self)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        with self._lock:
            if self._session is None:
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = 1
                self._session = onnxruntime.InferenceSession(
                    self._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
        return self._session.run(None, {self._inputs[0]: batch})[0]


class IExecutionContext:
    def __init__(self, engine, memory: int):
        self._engine, self._memory = engine, memory
        self._shape, self._addresses, self._profile, self._warm = None, {}, 0, False
        self._life, self._in_use, self._captured = {"freed": False}, threading.Lock(), []
        if not engine._about["profiles"]:
            self._shape = tuple(engine.get_tensor_shape(engine._inputs[0]))

    def __del__(self):
        if "_life" in self.__dict__:
            self._life["freed"] = True
            for number in self._captured:
                JOBS.pop(number, None)
            DRIVER.free(self._memory, "an execution context")

    @property
    def engine(self):
        return self._engine

    @property
    def active_optimization_profile(self):
        return self._profile

    def _error(self, text: str) -> bool:
        log(self._engine._runtime._logger, "ERROR", text)
        return False

    def set_optimization_profile_async(self, profile_index, stream_handle):
        if not 0 <= profile_index < self._engine.num_optimization_profiles or self._engine._about[
            "quirks"
        ].get("profile"):
            raise RuntimeError("Error in set optimization profile async.")
        self._profile, self._shape, self._warm = profile_index, None, False
        return True

    def set_input_shape(self, name, shape):
        shape = tuple(shape)
        if name not in self._engine._inputs:
            return self._error(f"IExecutionContext::setInputShape: Error Code 3: name {name} is not an input")
        least, _, most = (tuple(each) for each in self._engine.get_tensor_profile_shape(name, self._profile))
        if len(shape) != len(least) or any(
            not low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        ):
            return self._error(
                "IExecutionContext::setInputShape: Error Code 3: API Usage Error (Parameter check failed: "
                f"{shape} of {name} is outside of profile {self._profile})"
            )
        self._warm = self._warm and shape == self._shape
        self._shape = shape
        return True

    def infer_shapes(self):
        return [] if self._shape else list(self._engine._inputs)

    def get_tensor_shape(self, name):
        if name in self._engine._inputs:
            return self._engine._trt.Dims(self._shape or self._engine.get_tensor_shape(name))
        sizes = tuple(self._engine.get_tensor_shape(name))
        known = self._shape and not self._engine._about["quirks"].get("data_dependent")
        return self._engine._trt.Dims((self._shape[0], *sizes[1:]) if known else sizes)

    def set_tensor_address(self, name, memory):
        if memory == 0 or memory % 256:  # NvInfer.h asks for 256-byte alignment
            return self._error(
                f"IExecutionContext::setTensorAddress: Error Code 3: address {memory:#x} of {name} is not"
                " aligned"
            )
        self._warm = self._warm and self._addresses.get(name) == memory
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        engine = self._engine
        names = engine._inputs + engine._outputs
        if not self._in_use.acquire(blocking=False):
            fault("two threads in one execution context")
            return False
        try:
            if not DRIVER.has_context():
                return self._error(
                    "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (invalid resource handle)"
                )
            if self._shape is None or set(names) - set(self._addresses):
                return self._error(
                    "IExecutionContext::enqueueV3: Error Code 3: API Usage Error (Address is not set)"
                )
            if engine._missing:
                return self._error(
                    "IExecutionContext::enqueueV3: Error Code 4: missing weights, refit the engine"
                )
            if engine._about["quirks"].get("fails"):
                return self._error(
                    "IExecutionContext::enqueueV3: Error Code 1: Cask (Cask convolution execution)"
                )
            if stream_handle == 0:
                fault("the default stream, which adds synchronization")
            captured = DRIVER.capturing(stream_handle)
            if captured and not self._warm:
                return self._error(
                    "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (operation not permitted when "
                    "stream is capturing)"
                )
            return self._launch(stream_handle, captured)
        finally:
            self._in_use.release()

    def _launch(self, stream: int, captured: bool) -> bool:
        source, target = (
            self._addresses[name] for name in (self._engine._inputs[0], self._engine._outputs[0])
        )
        shape, engine = self._shape, self._engine

        def work():
            batch = np.ctypeslib.as_array(
                (ctypes.c_float * int(np.prod(shape))).from_address(source)
            ).reshape(shape)
            logits = np.ascontiguousarray(engine._run(batch))
            ctypes.memmove(target, logits.ctypes.data, logits.nbytes)

        number = next(_NUMBERS)
        JOBS[number] = (self._life, captured, work)
        if captured:
            self._captured.append(number)
        self._warm = True
        done = DRIVER.library.cuLaunchHostFunc(stream, ctypes.cast(_run_job, ctypes.c_void_p), number) == 0
        return done or self._error(
            "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (invalid resource handle)"
        )


class EngineInspector:
    """Layers as 10.x and 11.x print them: convolutions with what they read, Q/DQ that became layers of their
    own.
    """

    def __init__(self, engine):
        self._engine = engine

    def get_engine_information(self, format):
        engine = self._engine
        if format != self._trt.LayerInformationFormat.JSON:
            raise NotImplementedError("this test double prints JSON only")
        layers = _layers(engine._model.graph)
        if engine._about["verbosity"] != "DETAILED":
            layers = [layer["Name"] for layer in layers]
        names = engine._inputs + engine._outputs
        if self._trt.__version__.startswith("10."):
            return json.dumps({"Layers": layers, "Bindings": names})
        described = [
            {
                "Name": name,
                "IOMode": engine.get_tensor_mode(name).name,
                "DataType": engine.get_tensor_dtype(name).name,
                "Dimensions": list(engine.get_tensor_shape(name)),
                "Location": "DEVICE",
                "IsShapeInferenceIO": False,
            }
            for name in names
        ]
        return json.dumps({"Layers": layers, "I/O Tensors": described})


def _layers(graph) -> list[dict]:
    producer = {output: node for node in graph.node for output in node.output}
    fused: set[str] = set()
    layers = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        readers = [producer[name] for name in node.input[:2] if name in producer]
        int8 = len(readers) == 2 and all(each.op_type == "DequantizeLinear" for each in readers)
        inside = [node.name]
        for reader in readers if int8 else []:
            inside.append(reader.name)
            maker = producer.get(reader.input[0])
            if maker is not None and maker.op_type == "QuantizeLinear" and maker.input[0] in producer:
                inside.append(maker.name)
        fused.update(inside)
        kind = "CaskConvolution" if node.op_type == "Conv" else "CaskGemm"
        layers.append(_layer(node, kind, "Int8" if int8 else "FP32", inside))
    for node in graph.node:
        if node.name not in fused:
            kind = "Reformat" if node.op_type in ("Cast", "QuantizeLinear", "DequantizeLinear") else "Kernel"
            layers.append(_layer(node, kind, "FP32", [node.name]))
    return layers


def _layer(node, kind: str, precision: str, inside: list[str]) -> dict:
    words = (
        "Thirty-two wide channel vectorized row major Int8 format"
        if precision == "Int8"
        else f"Row major linear {precision}"
    )
    tensor = {"Location": "Device", "Dimensions": [], "Format/Datatype": words}
    return {
        "Name": node.name,
        "LayerType": kind,
        "Inputs": [{"Name": node.input[0], **tensor}],
        "Outputs": [{"Name": node.output[0], **tensor}],
        "TacticName": "double",
        "Metadata": "\x1e".join(f"[ONNX Layer: {name}]" for name in inside),
    }


class Refitter:
    def __init__(self, engine, logger):
        self._engine, self._logger, self._new = engine, logger, {}

    def get_missing_weights(self):
        return sorted(self._engine._missing - set(self._new))

    def refit_cuda_engine(self):
        if self.get_missing_weights():
            log(self._logger, "ERROR", "IRefitter::refitCudaEngine: Error Code 4: missing weights")
            return False
        for initializer in self._engine._model.graph.initializer:
            if initializer.name in self._new:
                initializer.CopyFrom(self._new[initializer.name])
        self._engine._missing = set()
        return True


class OnnxParserRefitter:
    def __init__(self, refitter, logger):
        self._refitter, self._logger, self._errors = refitter, logger, []

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, index):
        return self._errors[index]

    def refit_from_file(self, model):
        try:
            weights = onnx.load(model).graph.initializer
        except Exception:  # protobuf's errors have no public base
            self._errors.append(
                self._trt.ParserError("MODEL_DESERIALIZE_FAILED", f"Failed to parse the ONNX model {model}")
            )
            return False
        for each in weights:
            if each.name in self._refitter._engine._missing:
                self._refitter._new[each.name] = each
        return True


RUNNING = {
    each.__name__: each
    for each in (
        ILogger,
        Dims,
        IHostMemory,
        Runtime,
        ICudaEngine,
        IExecutionContext,
        EngineInspector,
        Refitter,
        OnnxParserRefitter,
    )
}


def serialize(
    content: bytes, version: str = "10.3", *, profiles=(), compute_capability: str | None = None, **about
) -> bytes:
    """A plan of ONNX bytes without a builder, for tests. profiles: batch sizes (min, opt, max); about: facts
    that differ.
    """
    surface = Surface(version)
    images = onnx.load_from_string(content).graph.input[0].type.tensor_type.shape.dim[1:]
    sizes = [each.dim_value for each in images]
    facts = {
        "profiles": [[[size, *sizes] for size in profile] for profile in profiles],
        "verbosity": "DETAILED",
        "quirks": {},
        "compute_capability": compute_capability,
        "hardware_compat": "NONE",
        "version_compat": False,
        "stripped": [],
    }
    magic = MAGIC["tensorrt_rtx_bindings" if version.startswith("rtx") else "tensorrt"]
    return pack(content, {**facts, **about}, surface.full_version, magic)


if not sys.platform.startswith("linux"):
    raise ImportError("this test double needs Linux")
