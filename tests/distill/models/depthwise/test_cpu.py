"""The large depthwise convolution on a CPU against torch's own in float64, for every algorithm, shape, format
and precision.
"""

import pytest
import torch
from torch.nn import functional as F

from distill.models import depthwise
from distill.models.depthwise import DepthwiseConv2d, cpu, depthwise_conv2d

CASES = [  # channels, map, kernel
    (3, (9, 9), (13, 5)),
    (3, (9, 9), (5, 13)),
    (4, (8, 11), (9, 9)),
    (2, (7, 7), (31, 31)),
    (3, (6, 10), (51, 5)),
    (5, (1, 1), (13, 13)),
    (2, (12, 5), (1, 9)),
    (3, (16, 16), (15, 15)),
    (1, (10, 4), (11, 3)),
    (2, (2, 20), (9, 31)),
]


def reference(x, weight, bias, grad):
    """Output and the three gradients from torch's convolution in float64."""
    x, weight, bias = (t.detach().double().contiguous().requires_grad_() for t in (x, weight, bias))
    kh, kw = weight.shape[2:]
    y = F.conv2d(x, weight, bias, padding=(kh // 2, kw // 2), groups=len(weight))
    return y, *torch.autograd.grad(y, (x, weight, bias), grad.double())


def problem(channels, size, kernel, dtype=torch.float32, memory_format=torch.contiguous_format, images=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels, *size, generator=generator).to(dtype).to(memory_format=memory_format)
    weight = torch.randn(channels, 1, *kernel, generator=generator).to(dtype)
    bias = torch.randn(channels, generator=generator).to(dtype)
    grad = torch.randn(images, channels, *size, generator=generator).to(dtype)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), grad


def largest_error(found, expected):
    return ((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


@pytest.mark.parametrize("algorithm", ["auto", "conv2d", "direct", "fft"])
@pytest.mark.parametrize(("channels", "size", "kernel"), CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradients_are_those_of_torch(algorithm, channels, size, kernel, memory_format):
    x, weight, bias, grad = problem(channels, size, kernel, memory_format=memory_format)
    y = depthwise_conv2d(x, weight, bias, algorithm)
    found = y, *torch.autograd.grad(y, (x, weight, bias), grad)
    for got, expected in zip(found, reference(x, weight, bias, grad), strict=True):
        assert got.shape == expected.shape and got.dtype == torch.float32
        assert largest_error(got, expected) < 2e-6


@pytest.mark.parametrize("algorithm", ["direct", "fft"])
def test_gradients_agree_with_finite_differences(algorithm):
    x, weight, bias, _ = problem(2, (4, 5), (7, 3), torch.float64, images=2)
    assert torch.autograd.gradcheck(lambda *inputs: depthwise_conv2d(*inputs, algorithm), (x, weight, bias))


@pytest.mark.parametrize("algorithm", ["direct", "fft"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_half_precision_loses_no_more_than_its_own_rounding(algorithm, dtype, bound):
    x, weight, bias, grad = problem(3, (14, 14), (27, 5), dtype)
    y = depthwise_conv2d(x, weight, bias, algorithm)
    found = y, *torch.autograd.grad(y, (x, weight, bias), grad)
    for got, expected in zip(found, reference(x, weight, bias, grad), strict=True):
        assert got.dtype == dtype and largest_error(got, expected) < bound


def test_sums_that_float16_cannot_hold_are_made_in_float32():
    """Products that sum to 2.5 million in each of two images and cancel between them: float16 ends
    at 65,504.
    """
    x = torch.full((2, 1, 32, 32), 50.0, dtype=torch.float16)
    x[1] = -50
    weight = torch.zeros(1, 1, 9, 9, dtype=torch.float16, requires_grad=True)
    for algorithm in ("direct", "fft"):
        y = depthwise_conv2d(x, weight, None, algorithm)
        (gradient,) = torch.autograd.grad(y, weight, torch.full_like(y, 50.0))
        assert torch.isfinite(gradient).all() and gradient.abs().max() < 5


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("algorithm", ["direct", "fft"])
def test_the_output_keeps_the_memory_format(algorithm, memory_format):
    x, weight, bias, _ = problem(4, (8, 8), (9, 9), memory_format=memory_format)
    assert depthwise_conv2d(x, weight, bias, algorithm).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("algorithm", ["auto", "direct", "fft"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(0, 2, 60, 60), (2, 2, 0, 9), (2, 2, 9, 0), (2, 0, 9, 9)])
def test_nothing_gives_nothing(algorithm, memory_format, shape):
    x = torch.zeros(shape).contiguous(memory_format=memory_format).requires_grad_()
    weight, bias = (torch.ones(shape[1], *more, requires_grad=True) for more in ((1, 51, 51), ()))
    y = depthwise_conv2d(x, weight, bias, algorithm)
    gradients = torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y))
    assert y.shape == shape and [g.shape for g in gradients] == [x.shape, weight.shape, bias.shape]
    assert not any(g.any() for g in gradients)


def test_even_kernels_grow_the_map_as_in_torch():
    layer = DepthwiseConv2d(2, (8, 10))
    x = torch.randn(1, 2, 12, 12)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=(4, 5), groups=2))
    assert layer(x).shape == (1, 2, 13, 13)


def test_channels_in_parts_give_the_same(monkeypatch):
    x, weight, bias, grad = problem(7, (9, 9), (9, 9))
    parts = cpu._channel_parts
    monkeypatch.setattr(cpu, "_channel_parts", lambda x, points: parts(x, points, limit=2 * 3 * 14 * 14))
    assert [s.stop - s.start for s in cpu._channel_parts(x, (14, 14))] == [2, 2, 2, 1]
    y = depthwise_conv2d(x, weight, bias, "fft")
    found = y, *torch.autograd.grad(y, (x, weight, bias), grad)
    for got, expected in zip(found, reference(x, weight, bias, grad), strict=True):
        assert largest_error(got, expected) < 2e-6


def test_only_the_gradients_that_are_needed_are_computed(monkeypatch):
    x, weight, _, grad = problem(2, (8, 8), (9, 9))
    monkeypatch.setattr(cpu, "_grad_weight", lambda *_: pytest.fail("the kernel is frozen"))
    y = depthwise_conv2d(x, weight.detach(), None, "fft")
    assert torch.autograd.grad(y, x, grad)[0].shape == x.shape


def test_autocast_decides_the_type_as_for_torchs_convolution():
    x, weight, bias, grad = problem(2, (8, 8), (9, 9))
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv2d(x, weight, bias, "direct")
        gradients = torch.autograd.grad(y, (x, weight, bias), grad.bfloat16())
    assert y.dtype == torch.bfloat16 and [g.dtype for g in gradients] == [torch.float32] * 3


def test_the_rule_knows_which_way_is_faster():
    """The largest kernels on the largest maps by FFT, strips and small maps direct: measured on one core (see
    the benchmark).
    """
    forward, weight = cpu.FORWARD_TAPS_PER_POINT, cpu.WEIGHT_TAPS_PER_POINT
    assert cpu.prefers_fft((56, 56), (51, 51), forward) and cpu.prefers_fft((56, 56), (51, 51), weight)
    assert cpu.prefers_fft((56, 56), (31, 31), forward)
    for size, kernel in [((56, 56), (51, 5)), ((56, 56), (5, 51)), ((14, 14), (27, 27)), ((7, 7), (13, 13))]:
        inside = tuple(2 * min(k // 2, n - 1) + 1 for k, n in zip(kernel, size, strict=True))
        assert not cpu.prefers_fft(size, inside, forward) and not cpu.prefers_fft(size, inside, weight)


def test_without_onednn_fft_is_preferred(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert cpu.prefers_fft((14, 14), (13, 5), cpu.FORWARD_TAPS_PER_POINT)


def test_fft_sizes_have_small_factors_and_leave_room_for_the_lags():
    for n in range(1, 120):
        for half in (0, 2, 6, 25):
            size = rest = cpu._fft_size(n, half)
            for prime in (2, 3, 5, 7):
                while rest % prime == 0:
                    rest //= prime
            assert rest == 1 and n + half <= size <= 1.2 * (n + half) + 2


def test_forced_holds_only_inside(monkeypatch):
    seen = []
    monkeypatch.setattr(cpu, "_correlate", lambda x, w, b, algorithm: seen.append(algorithm) or x)
    layer = DepthwiseConv2d(1, 9)
    with depthwise.forced("fft"), torch.no_grad():
        layer(torch.zeros(1, 1, 8, 8))
    layer(torch.zeros(1, 1, 8, 8))
    assert seen == ["fft", "auto"]
    with pytest.raises(ValueError, match="expected one of"), depthwise.forced("winograd"):
        pass


def test_the_names_are_those_of_a_convolution_and_it_exports_as_one():
    layer = DepthwiseConv2d(3, (13, 5)).eval()
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {
        "weight": (3, 1, 13, 5),
        "bias": (3,),
    }
    program = torch.onnx.export(layer, (torch.zeros(1, 3, 8, 8),), dynamo=True, verbose=False)
    assert [node.op_type for node in program.model_proto.graph.node] == ["Conv"]


def test_fx_sees_one_call():
    graph = torch.fx.symbolic_trace(DepthwiseConv2d(3, 13)).graph
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [depthwise_conv2d]


def test_the_same_input_gives_the_same_bits():
    x, weight, bias, grad = problem(4, (20, 20), (21, 21))
    runs = [torch.autograd.grad(depthwise_conv2d(x, weight, bias), (x, weight, bias), grad) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("channels", "kernel", "images", "expected"),
    [
        (4, (31, 31), 2, [torch.float32, torch.float32]),  # never came back with AVX512-BF16
        (16, (3, 15), 1, [torch.float32, torch.float32]),
        (17, (3, 15), 1, [torch.bfloat16, torch.bfloat16]),
        (9, (3, 15), 2, [torch.float32, torch.bfloat16]),  # 18 maps for the gradient of the kernel
        (4, (13, 13), 1, [torch.bfloat16, torch.float32]),  # the output's gradient is a kernel of 40
    ],
)
def test_few_channels_in_bfloat16_are_not_given_to_what_does_not_return(
    channels, kernel, images, expected, monkeypatch
):
    types = []
    real = F.conv2d
    monkeypatch.setattr(cpu.F, "conv2d", lambda x, *a, **k: types.append(x.dtype) or real(x, *a, **k))
    x = torch.randn(images, channels, 40, 40).bfloat16()
    weight = torch.randn(channels, 1, *kernel).bfloat16().requires_grad_()
    y = depthwise_conv2d(x, weight, None, "direct")
    y.float().sum().backward()
    assert types == expected and y.dtype == weight.grad.dtype == torch.bfloat16
