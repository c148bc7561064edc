"""runtime.backends.tensorrt.cuda: one contract that both libraries pass (cuda_contract.py), and where arrays
of other libraries are.
"""

import ctypes
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cuda_contract
import doubles
import numpy as np
import pytest

from runtime.backends.tensorrt import cuda
from runtime.errors import MissingError, UsageError

CASES = [name for name in dir(cuda_contract) if name.startswith("case_")]
LIBRARIES = {"pycuda": "pycuda", "cuda-python": "cuda.bindings"}


def installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return doubles.compiled(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module", params=LIBRARIES)
def library(request):
    if not installed(LIBRARIES[request.param]):
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture(scope="module")
def on_the_double(compiled, library):
    return contract(doubles.environment(compiled), library, "double")


@pytest.fixture(scope="module")
def on_a_gpu(library):
    try:
        cuda.open_device(0, library).close()
    except MissingError as error:
        pytest.skip(str(error))
    return contract(None, library)


def contract(environment, *arguments):
    ran = subprocess.run(
        [sys.executable, cuda_contract.__file__, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=doubles.ROOT,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


@pytest.mark.parametrize("case", CASES)
def test_contract_on_the_double_of_the_driver(on_the_double, case):
    assert on_the_double[case] is None, on_the_double[case]


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_contract_on_a_gpu(on_a_gpu, case):
    said = on_a_gpu[case]
    if said and not said.startswith("Traceback"):
        pytest.skip(said)
    assert said is None, said


def opened(compiled, index=0, library=None, **settings):
    """(exit code, what `open_device` says) in a process of its own."""
    code = (
        "import os, sys\nfrom runtime.backends.tensorrt import cuda\nsys.setdlopenflags(os.RTLD_LAZY)\n"
        f"from runtime.errors import Large2SmallError\ntry: cuda.open_device({index}, {library!r}).close()\n"
        "except Large2SmallError as e: print(type(e).__name__, e)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=doubles.environment(compiled, **settings),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_no_driver(compiled, library):
    assert opened(compiled, library=library, driver=False).startswith("MissingError ")


def test_no_gpu(compiled, library):
    said = opened(compiled, library=library, LIBCUDA_DOUBLE_GPUS=0)
    assert said.startswith("MissingError ") and "nvidia-smi" in said


def test_second_of_two_gpus(compiled, library):
    assert opened(compiled, 1, library, LIBCUDA_DOUBLE_GPUS=2) == ""
    said = opened(compiled, 2, library, LIBCUDA_DOUBLE_GPUS=2)
    assert said == "UsageError cuda:2: this machine has 2 GPUs (cuda:0 to cuda:1). Give --device cuda:0"


def test_library_nobody_knows():
    with pytest.raises(UsageError, match="'cupy': expected pycuda or cuda-python"):
        cuda.open_device(0, "cupy")


def test_no_library(monkeypatch):
    monkeypatch.setattr(
        cuda,
        "LIBRARIES",
        {name: (ours, f"{theirs}.absent") for name, (ours, theirs) in cuda.LIBRARIES.items()},
    )
    with pytest.raises(
        MissingError, match=r"no CUDA library can be used here \(pycuda: .*; cuda-python: .*\[cuda-python\]"
    ):
        cuda.open_device()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n",
            "535.183.01",
        ),
        (
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build "
                " (dvs-builder)\n"
            ),
            "580.65.06",
        ),
        ("something else\n", "CUDA 13.0"),
    ],
)
def test_driver_version(monkeypatch, text, version):
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert cuda.driver_version("13.0") == version


class Shown:
    """An array that says where it is, as torch, CuPy and Numba do."""

    def __init__(self, **interface):
        self.__cuda_array_interface__ = {
            "version": 3,
            "data": (4096, False),
            "typestr": "<f4",
            "strides": None,
            **interface,
        }


def test_cuda_array_interface():
    array = Shown(shape=(2, 3), stream=77)
    found = cuda.device_array(array)
    assert found == (4096, (2, 3), np.dtype(np.float32), 77, array, None)
    assert cuda.device_array(Shown(shape=(2, 3), typestr="<f2")).dtype == np.float16
    assert cuda.device_array(Shown(shape=(2, 3), stream=None)).stream is None, "nothing to wait for"
    assert cuda.device_array(Shown(shape=(2, 3), version=2)).stream == cuda.DEFAULT_STREAM


@pytest.mark.parametrize(
    ("strides", "fine"), [((12, 4), True), ((4, 8), False), ((16, 4), False), ((8, 4), False)]
)
def test_strides_of_cuda_array_interface(strides, fine):
    array = Shown(shape=(2, 3), strides=strides)
    if fine:
        assert cuda.device_array(array).shape == (2, 3)
        return
    with pytest.raises(UsageError, match="not contiguous"):
        cuda.device_array(array)


def test_stride_of_a_side_of_one_says_nothing():
    assert cuda.device_array(Shown(shape=(1, 3), strides=(4000, 4))).shape == (1, 3)


class Capsule:
    """numpy's own DLPack capsule of an array, said to be on another kind of device."""

    def __init__(self, array, kind=2):
        self.array, self.kind, self.asked = array, kind, []

    def __dlpack_device__(self):
        return (self.kind, 0)

    def __dlpack__(self, *, stream=None):
        self.asked.append(stream)
        return self.array.__dlpack__()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int64, np.uint8])
def test_dlpack(dtype):
    array = np.arange(24).astype(dtype).reshape(2, 3, 4)
    shown = Capsule(array)
    found = cuda.device_array(shown)
    assert (found.address, found.shape, found.dtype) == (array.ctypes.data, (2, 3, 4), np.dtype(dtype))
    assert shown.asked == [found.stream] == [cuda.DEFAULT_STREAM] and found.gpu == 0


class Both(Capsule):
    """Like torch: the interface in version 2, which has no stream, and DLPack, which can be asked to order
    streams.
    """

    def __init__(self, array, **interface):
        super().__init__(array)
        self.__cuda_array_interface__ = {
            "version": 2,
            "data": (4096, False),
            "typestr": "<f4",
            "shape": (1,),
            **interface,
        }


def test_dlpack_is_asked_where_the_interface_names_no_stream():
    array = np.zeros((2, 3), np.float32)
    assert cuda.device_array(Both(array)).address == array.ctypes.data
    assert cuda.device_array(Both(array, stream=7))[:4] == (4096, (1,), np.dtype(np.float32), 7)


@pytest.mark.parametrize("name", ["__cuda_array_interface__", "__dlpack__"])
def test_array_that_is_not_given_away(name):
    def refuse(self, **_):
        raise RuntimeError("requires grad;\nuse detach()")

    kind = type(
        "Tensor",
        (),
        {name: property(refuse) if "cuda" in name else refuse, "__dlpack_device__": lambda self: (2, 0)},
    )
    with pytest.raises(
        UsageError, match=r"a Tensor on the GPU cannot be read: requires grad; use detach\(\)"
    ):
        cuda.device_array(kind())


def test_dlpack_begins_where_the_array_does():
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    part = whole[1:3]
    found = cuda.device_array(Capsule(part))
    assert found.address == whole.ctypes.data + 24 and found.shape == (2, 6)
    values = np.ctypeslib.as_array(ctypes.cast(found.address, ctypes.POINTER(ctypes.c_float)), (2, 6))
    np.testing.assert_array_equal(values, part)


def test_dlpack_keeps_the_memory_and_lets_it_go():
    array = np.zeros((2, 3), np.float32)
    before = sys.getrefcount(array)
    found = cuda.device_array(Capsule(array))
    assert sys.getrefcount(array) > before
    del found
    assert sys.getrefcount(array) == before


@pytest.mark.parametrize("view", [lambda a: a[:, ::2], lambda a: a.T, lambda a: a[:, :2]])
def test_dlpack_not_contiguous(view):
    with pytest.raises(UsageError, match="not contiguous"):
        cuda.device_array(Capsule(view(np.zeros((3, 4), np.float32))))


def test_dlpack_elsewhere_or_of_another_kind():
    with pytest.raises(UsageError, match="a Capsule is on a device of DLPack type 1, not on a CUDA GPU"):
        cuda.device_array(Capsule(np.zeros(3, np.float32), kind=1))
    with pytest.raises(UsageError, match="DLPack type code 5"):
        cuda.device_array(Capsule(np.zeros(3, np.complex64)))
    assert cuda.device_array(Capsule(np.zeros(3, np.float32), kind=13)).shape == (3,)  # managed memory


def test_neither_kind_of_array():
    with pytest.raises(UsageError, match="a list is neither a numpy array nor an array on a GPU"):
        cuda.device_array([1, 2])
