"""The kernels on a real GPU: that compiled code computes what the interpreter does. Skipped without one."""

import pytest
import torch
from torch.nn import functional as F

from distill.models.depthwise import DepthwiseConv2d, depthwise_conv2d, depthwise_conv2d_pair, launch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and launch.is_available("cuda", 0)),
        reason="no CUDA GPU of compute capability 8.0 with Triton here",
    ),
]
CASES = [  # map, kernel: those of SLaK-T, RepLKNet-31B and UniRepLKNet-T, and odd ones
    ((56, 56), (51, 5)),
    ((56, 56), (5, 51)),
    ((28, 28), (49, 5)),
    ((14, 14), (47, 5)),
    ((7, 7), (13, 5)),
    ((56, 56), (31, 31)),
    ((14, 14), (27, 27)),
    ((70, 9), (61, 3)),
    ((1, 130), (9, 11)),
]
BOUNDS = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 1e-5}


def on_gpu(*shape, dtype=torch.float32):
    return torch.randn(*shape, device="cuda", dtype=dtype)


@pytest.fixture(autouse=True)
def exactly(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")


@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize(("size", "kernel"), CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_values_and_gradients_are_those_of_float64(size, kernel, dtype, memory_format, frozen):
    x = on_gpu(3, 5, *size, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    weight = torch.nn.Parameter(on_gpu(5, 1, *kernel, dtype=dtype) / 8, requires_grad=not frozen)
    bias, grad = on_gpu(5, dtype=dtype), on_gpu(3, 5, *size, dtype=dtype)
    leaves = [x] if frozen else [x, weight]
    y = depthwise_conv2d(x, weight, bias)
    found = y, *torch.autograd.grad(y, leaves, grad)
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    z = F.conv2d(*wide, bias.double(), padding=(kernel[0] // 2, kernel[1] // 2), groups=5)
    expected = z, *torch.autograd.grad(z, wide[: len(leaves)], grad.double())
    assert y.is_contiguous(memory_format=memory_format)
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() <= BOUNDS[dtype] * other.norm()


def strips():
    tall, wide = (torch.nn.Parameter(on_gpu(4, 1, *k) / 8) for k in ((51, 5), (5, 51)))
    return tall, wide, on_gpu(4)


def test_two_strips_are_their_sum_and_the_same_every_time():
    tall, wide, bias = strips()
    x = on_gpu(3, 4, 56, 56)
    y = depthwise_conv2d_pair(x, tall, wide, bias)
    expected = F.conv2d(x.double(), tall.double(), bias.double(), padding=(25, 2), groups=4)
    expected += F.conv2d(x.double(), wide.double(), padding=(2, 25), groups=4)
    assert (y.double() - expected).norm() <= 1e-5 * expected.norm()
    runs = [
        torch.autograd.grad(depthwise_conv2d_pair(x, tall, wide, bias).square().sum(), (tall, wide))
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_compiled_and_recorded_as_a_cuda_graph_it_computes_the_same():
    layer = DepthwiseConv2d(4, (51, 5)).cuda().requires_grad_(False)
    x = on_gpu(3, 4, 56, 56)
    expected = layer(x)
    assert torch.equal(torch.compile(layer, fullgraph=True)(x), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    y.fill_(float("nan"))
    graph.replay()
    assert torch.equal(y, expected)


def test_what_is_not_finite_reaches_its_window_and_no_further():
    x, weight = on_gpu(1, 1, 56, 56), torch.ones(1, 1, 9, 5, device="cuda")
    x[0, 0, 20, 20] = float("inf")
    y = depthwise_conv2d(x, weight)
    assert (~y.isfinite()).sum() == 45 and (y[0, 0, 16:25, 18:23] == float("inf")).all()
