"""The Triton kernels without a GPU: what they compute, by Triton's interpreter, and that they compile for
GPUs that are not here.

Triton reads TRITON_INTERPRET when it is imported, so interpreted.py runs in a process of its own.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill.models.depthwise import launch

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: it comes with torch on Linux, and not on Windows and Macs",
)


try:
    from distill.models.depthwise import kernels
except ImportError:
    kernels = None  # the tests are skipped then


def run(*words, **environment):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )


def interpreted(*words):
    done = run(
        "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", HERE / "interpreted.py", *words,
        TRITON_INTERPRET="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return int(re.search(r"(\d+) passed", done.stdout)[1])


QUICK = "nothing_ or two_kernels_reaches or two_branches or in_parts or frozen_weights_give or bias_"


@pytest.mark.slow
def test_the_kernels_compute_the_convolution_and_its_gradients():
    assert interpreted("-k", f"not ({QUICK})") > 270


def test_some_cases_of_the_same():
    assert interpreted("-k", QUICK) > 20


SHARED = {86: 99 << 10, 90: 227 << 10}
"""Shared memory that a program may have at most, bytes, by compute capability (CUDA's programming guide)."""


def launches(dtype):
    """Every kernel of a forward and backward pass as SLaK-T's first stage launches them: frozen, trained, its
    gradients, and the fused pair.
    """
    from compiled_kernels import Recorder

    calls = []
    x = torch.zeros(2, 3, 56, 56, dtype=dtype)
    tall, wide = (torch.nn.Parameter(torch.zeros(3, 1, *k, dtype=dtype)) for k in ((51, 5), (5, 51)))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("one", "two", "weight_sums"):
            patch.setattr(kernels, name, Recorder(getattr(kernels, name), calls))
        launch.branches(x, tall, wide, (torch.empty_like(x), torch.empty_like(x)))
        launch.branches_input_gradient(x, x, tall, wide, torch.empty_like(x))
        for weights in ((tall, None), (wide, None), (tall, wide)):
            launch.convolve(x, *weights, None, torch.empty_like(x), flip=True)
            launch.weight_gradient(x, x, weights[0].shape[2:])
            for weight in weights:
                if weight is not None:
                    weight.requires_grad_(False)
            launch.convolve(x, *weights, torch.zeros(3), torch.empty_like(x))
    return calls


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "capability"), [(torch.bfloat16, 90), (torch.float32, 86)], ids=str)
def test_every_kernel_compiles_and_fits(dtype, capability):
    from compiled_kernels import build

    for call in launches(dtype):
        made = build(call, capability, EMULATE=False, PRECISION="tf32")
        assert made.metadata.shared <= SHARED[capability]
        tensor_cores = "wgmma.mma_async" if capability == 90 else "mma.sync"
        assert tensor_cores in made.asm["ptx"] and len(made.asm["cubin"]) > 1000


@pytest.mark.slow
def test_it_compiles_for_sizes_and_strides_that_triton_treats_apart():
    """Arguments that are 1 become constants; those beyond 32 bits another type."""
    from compiled_kernels import Recorder, build

    calls = []
    one = torch.zeros(1, 1, 1, 1, dtype=torch.float16)
    far = torch.empty(2**31 + 64, dtype=torch.float16).as_strided((1, 1, 2, 6), (0, 0, 2**31, 1))
    tall, wide = torch.zeros(1, 1, 9, 3), torch.zeros(1, 1, 3, 9)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("one", "two", "weight_sums"):
            patch.setattr(kernels, name, Recorder(getattr(kernels, name), calls))
        for x in (one, far):
            y = torch.zeros(x.shape, dtype=x.dtype)
            launch.convolve(x, tall, None, None, y)
            launch.convolve(x, tall, wide, None, y, flip=True)
            launch.weight_gradient(x, y, (3, 9))
    assert [call[2]["FAR"] for call in calls] == [False] * 3 + [True] * 3
    assert all(build(call, 90, EMULATE=False).asm["cubin"] for call in calls)


@pytest.mark.slow
def test_what_is_contiguous_is_loaded_and_stored_as_vectors():
    """A row of 56 bfloat16 is 7 times 16 bytes, which the compiler knows from the units of the strides."""
    from compiled_kernels import build

    call = next(call for call in launches(torch.bfloat16) if call[2].get("FORM") and call[2]["A_ROW"] == 8)
    code = build(call, 90, EMULATE=False).asm["ptx"]
    assert re.search(r"cp\.async\.cg\.shared\.global .*, 0x10", code) and "st.global.v4.b32" in code
