"""The Triton kernels on the CPU, by Triton's interpreter. Run by test_kernels.py, in a process whose
environment says TRITON_INTERPRET=1 before Triton is imported.

Expected values are torch's own convolution in float64, of the values as they are rounded to the type under
test.
"""

import math
import random

import pytest
import torch
from torch.nn import functional as F

from distill.models.depthwise import DepthwiseConv2d, depthwise_conv2d, forms, launch, operators
from distill.models.depthwise.tiles import Side, long_side, row_side

CASES = 210
EPSILON = {torch.bfloat16: 2**-7, torch.float16: 2**-11, torch.float32: 2**-24}
"""Half a step of each type, relative; of bfloat16 a whole one, as Triton's interpreter cuts and does
not round."""
LAYOUTS = ("contiguous", "channels_last", "strided")


@pytest.fixture(autouse=True, scope="session")
def interpreting():
    assert launch.interprets() and launch.is_available("cpu")
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter runs one program after another: no reason to divide a sum into many."""
    monkeypatch.setattr(launch, "PROGRAMS", 1)


def laid_out(x, layout):
    """The same values in another memory format."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":  # every second column of a wider map, after one that does not count
        wide = torch.full((*x.shape[:3], 2 * x.shape[3] + 1), float("nan"), dtype=x.dtype)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    return x.contiguous()


def odd(random_, least, most):
    return random_.randrange(least, most + 1, 2)


def drawn(number):
    """Size, kernel, channels, images, type and format of a case; sizes and kernels of every magnitude."""
    random_ = random.Random(number)
    top = random_.choice([3, 6, 9, 15, 15, 20, 33, 70])
    size = random_.randint(1, top), random_.randint(1, top)
    most = {True: 61, False: 31}[top < 33 or number % 4 == 0]
    kernels = {
        "square": lambda: (odd(random_, 3, most // 3),) * 2,
        "tall": lambda: (odd(random_, 9, most), odd(random_, 1, 7)),
        "wide": lambda: (odd(random_, 1, 7), odd(random_, 9, most)),
        "any": lambda: (odd(random_, 3, 9), odd(random_, 3, most)),
    }
    kernel = kernels[random_.choice(sorted(kernels))]()
    dtype = random_.choice(sorted(EPSILON, key=str))
    channels, images = (1, 1) if top == 70 else (random_.randint(1, 2), random_.randint(1, 3))
    return size, kernel, channels, images, dtype, random_.choice(LAYOUTS)


def reference(x, weights, bias, grad):
    """[output, gradients of x, of every weight and of the bias], in float64."""
    leaves = [t.detach().double().contiguous().requires_grad_() for t in (x, *weights, bias)]
    x, *weights, bias = leaves
    y = sum(
        F.conv2d(x, w, padding=(w.shape[2] // 2, w.shape[3] // 2), groups=len(w)) for w in weights
    ) + bias.view(-1, 1, 1)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.double())]


def magnitudes(x, weights, bias, grad):
    """The same sums of absolute values: what rounding errors are relative to."""
    return reference(x.abs(), [w.abs() for w in weights], bias.abs(), grad.abs())


def problem(number):
    size, kernel, channels, images, dtype, layout = drawn(number)
    generator = torch.Generator().manual_seed(number)

    def noise(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    x, grad = (laid_out(noise(images, channels, *size), layout) for _ in range(2))
    return x, noise(channels, 1, *kernel), noise(channels), grad


def require_close(found, expected, scale, dtype):
    """Within the rounding of the result to its type, and of float32 sums."""
    bound = EPSILON[dtype] * expected.abs() + 2**-19 * scale + 1e-30
    if dtype == torch.float16:
        bound += 2**-25  # half a step of its smallest numbers
    assert found.dtype == dtype
    assert ((found.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("number", range(CASES))
def test_values_and_all_gradients_are_those_of_float64(number):
    x, weight, bias, grad = problem(number)
    leaves = [x.detach().requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    y = operators.convolution(leaves[0], leaves[1], None, leaves[2], False)
    found = [y.detach(), *torch.autograd.grad(y, leaves, grad)]
    plain = weight.detach()
    expected = reference(x, [plain], bias, grad)
    for one, other, scale in zip(found, expected, magnitudes(x, [plain], bias, grad), strict=True):
        require_close(one, other, scale, x.dtype)


def test_the_cases_are_what_they_are_meant_to_be():
    cases = [drawn(number) for number in range(CASES)]
    sides = [side for case in cases for side in case[0]]
    kernels = [side for case in cases for side in case[1]]
    assert min(sides) == 1 and max(sides) >= 65 and min(kernels) == 1 and max(kernels) == 61
    assert {(case[4], case[5]) for case in cases} == {(d, f) for d in EPSILON for f in LAYOUTS}
    assert sum(k > s for case in cases for k, s in zip(case[1], case[0], strict=True)) > CASES / 4
    assert sum(case[0][0] != case[0][1] for case in cases) > CASES / 2


@pytest.mark.parametrize("number", range(24))
def test_frozen_weights_give_the_same_from_the_cached_form(number):
    x, weight, bias, _ = problem(1000 + number)
    frozen = torch.nn.Parameter(weight, requires_grad=False)
    expected = operators.convolution(x, weight, None, bias, False)
    assert torch.equal(operators.convolution(x, frozen, None, bias, False), expected)
    assert [key[3][0] for key in forms._kept[frozen]] == ["banded"]
    form = next(iter(forms._kept[frozen].values()))[0]
    assert torch.equal(operators.convolution(x, frozen, None, bias, False), expected)
    assert next(iter(forms._kept[frozen].values()))[0] is form


def test_a_compiled_frozen_layer_uses_its_cached_form():
    layer = DepthwiseConv2d(1, (9, 3), algorithm="toeplitz").requires_grad_(False)
    x = torch.randn(1, 1, 6, 5)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(call(x), layer(x))
    assert len(forms._kept[layer.weight]) == 1


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
PAIRS = [  # size, tall, wide, layout, type
    ((9, 14), (13, 5), (5, 13), "contiguous", BF16),
    ((9, 14), (13, 5), (5, 13), "contiguous", FP16),
    ((9, 14), (13, 5), (5, 13), "contiguous", FP32),
    ((17, 33), (51, 3), (3, 51), "channels_last", BF16),
    ((70, 5), (61, 1), (3, 9), "contiguous", FP32),
    ((5, 66), (5, 3), (1, 41), "contiguous", FP16),
    ((7, 7), (13, 5), (5, 13), "strided", BF16),
    ((2, 3), (9, 1), (5, 7), "contiguous", FP32),
    ((1, 1), (3, 1), (1, 3), "channels_last", FP16),
]


@pytest.mark.parametrize(("size", "tall", "wide", "layout", "dtype"), PAIRS)
@pytest.mark.parametrize("is_frozen", [False, True], ids=["trained", "frozen"])
def test_two_kernels_in_one_pass_are_their_sum(size, tall, wide, layout, dtype, is_frozen):
    generator = torch.Generator().manual_seed(0)
    x, grad = (laid_out(torch.randn(2, 2, *size, generator=generator).to(dtype), layout) for _ in range(2))
    weights = [torch.randn(2, 1, *k, generator=generator).to(dtype) for k in (tall, wide)]
    bias = torch.randn(2, generator=generator).to(dtype)
    expected, scale = (f(x, weights, bias, grad) for f in (reference, magnitudes))
    a, b = (torch.nn.Parameter(w, requires_grad=not is_frozen) for w in weights)
    x.requires_grad_()
    one, other = (b, a) if is_frozen else (a, b)  # in either order
    y = operators.convolution(x, one, other, bias, False)
    require_close(y.detach(), expected[0], scale[0], dtype)
    leaves = [x] if is_frozen else [x, a, b]
    for index, found in enumerate(torch.autograd.grad(y, leaves, grad), 1):
        require_close(found, expected[index], scale[index], dtype)


@pytest.mark.parametrize(("size", "tall", "wide", "layout", "dtype"), PAIRS)
def test_two_kernels_apart_are_each_of_them_and_their_gradients_one(size, tall, wide, layout, dtype):
    generator = torch.Generator().manual_seed(0)
    x, *grads = (laid_out(torch.randn(2, 2, *size, generator=generator).to(dtype), layout) for _ in range(3))
    weights = [torch.randn(2, 1, *k, generator=generator).to(dtype).requires_grad_() for k in (wide, tall)]
    x.requires_grad_()
    ys = operators.branches(x, *weights)
    found = torch.autograd.grad(ys, [x, *weights], grads)
    plain, none = [w.detach() for w in weights], torch.zeros(2)
    expected, scale = (
        [f(x, [w], none, g) for w, g in zip(plain, grads, strict=True)] for f in (reference, magnitudes)
    )
    for index in range(2):
        require_close(ys[index].detach(), expected[index][0], scale[index][0], dtype)
        require_close(found[1 + index], expected[index][2], scale[index][2], dtype)
    require_close(found[0], expected[0][1] + expected[1][1], scale[0][1] + scale[1][1], dtype)


@pytest.mark.parametrize("size", [(14, 14), (2, 6), (7, 7)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_one_matrix_for_the_whole_map_gives_the_same(size, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, *size, generator=generator).to(dtype)
    weight, bias = torch.randn(2, 1, 27, 13, generator=generator).to(dtype), torch.randn(2).to(dtype)
    expected, scale = (f(x, [weight], torch.zeros(2), x)[0] for f in (reference, magnitudes))
    found = operators.convolution(x, torch.nn.Parameter(weight, requires_grad=False), None, None, True)
    require_close(found, expected, scale, dtype)
    shifted = operators.convolution(x, weight, None, bias, True)
    assert torch.equal(shifted, found + bias.view(-1, 1, 1))


def test_nothing_outside_of_the_map_counts():
    """A map amid NaN, and a kernel that reaches far out: zeros outside, exactly."""
    wide = torch.full((2, 3, 40, 40), float("nan"))
    x = wide[:, 1:2, 15:24, 15:26]
    x.copy_(torch.randn(x.shape))
    y = operators.convolution(x, torch.ones(1, 1, 61, 61), None, None, False)
    assert torch.allclose(y, x.sum((2, 3), keepdim=True).expand_as(y), atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kernel", [(3, 9), (9, 3), (5, 5)])
@pytest.mark.parametrize("flip", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("is_frozen", [False, True], ids=["trained", "frozen"])
def test_what_is_not_finite_reaches_its_window_and_no_further(value, kernel, flip, is_frozen):
    x = torch.randn(2, 2, 12, 20, generator=torch.Generator().manual_seed(0))
    x[0, 1, 5, 7] = value
    weight = torch.randn(2, 1, *kernel, generator=torch.Generator().manual_seed(1))
    weight[:, :, 1, 1] = 0  # zero times infinity within the window is NaN
    weight = torch.nn.Parameter(weight, requires_grad=not is_frozen)
    found = (
        operators.input_gradient(x, weight, None)
        if flip
        else operators.convolution(x, weight, None, None, False)
    )
    turned = weight.flip(2, 3) if flip else weight
    expected = F.conv2d(x, turned, padding=(kernel[0] // 2, kernel[1] // 2), groups=2)
    assert torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.isinf(), expected.isinf())
    finite = expected.isfinite()
    assert finite.sum() == expected.numel() - kernel[0] * kernel[1]
    assert torch.allclose(found[finite], expected[finite], atol=1e-5)
    assert torch.equal(found[expected.isinf()], expected[expected.isinf()])


def test_what_is_not_finite_in_two_kernels_reaches_both_windows():
    x = torch.randn(1, 1, 20, 20)
    x[0, 0, 10, 10] = math.inf
    tall, wide = torch.rand(1, 1, 9, 3) + 0.1, torch.rand(1, 1, 3, 9) + 0.1
    y = operators.convolution(x, tall, wide, None, False)
    expected = sum(F.conv2d(x, w, padding=(w.shape[2] // 2, w.shape[3] // 2)) for w in (tall, wide))
    assert torch.equal(y.isfinite(), expected.isfinite()) and not y.isnan().any()
    assert (~y.isfinite()).sum() == 27 + 27 - 9
    assert torch.allclose(y[y.isfinite()], expected[y.isfinite()], atol=1e-5)


def test_what_is_not_finite_in_one_of_two_branches_does_not_reach_the_other():
    x = torch.randn(1, 1, 20, 20)
    x[0, 0, 10, 10] = math.inf
    tall, wide = torch.rand(1, 1, 9, 3) + 0.1, torch.rand(1, 1, 3, 9) + 0.1
    for y, w in zip(operators.branches(x, tall, wide), (tall, wide), strict=True):
        expected = F.conv2d(x, w, padding=(w.shape[2] // 2, w.shape[3] // 2))
        assert torch.equal(y.isfinite(), expected.isfinite()) and (~y.isfinite()).sum() == 27
        assert torch.allclose(y[y.isfinite()], expected[y.isfinite()], atol=1e-5)


def test_what_is_not_finite_in_the_output_gradient_reaches_what_it_is_multiplied_with():
    x, grad = torch.randn(1, 1, 6, 8), torch.zeros(1, 1, 6, 8)
    grad[0, 0, 0, 0] = math.inf  # in a corner: taps before it look at padding only, and have no gradient
    x[0, 0, 0, 0], x[0, 0, 1, 1] = 2.0, -3.0
    found = operators.weight_gradient(x, grad, torch.zeros(1, 1, 3, 5))[0, 0]
    assert (found[0] == 0).all() and (found[:, :2] == 0).all()
    assert found[1, 2] == math.inf and found[2, 3] == -math.inf


@pytest.mark.parametrize("shape", [(0, 2, 9, 9), (2, 2, 0, 9), (2, 0, 9, 9)])
def test_nothing_gives_nothing(shape):
    x, weight = torch.zeros(shape, requires_grad=True), torch.zeros(shape[1], 1, 9, 3, requires_grad=True)
    y = operators.convolution(x, weight, None, None, False)
    gradients = torch.autograd.grad(y, (x, weight), torch.zeros_like(y))
    assert y.shape == shape and [g.shape for g in gradients] == [x.shape, weight.shape]
    assert not gradients[1].any()


def test_maps_that_are_more_than_two_to_the_31_values_apart():
    """Two images of one storage of 2**31 values and more, of which little is touched."""
    small = torch.randn(2, 1, 5, 6).half()
    try:
        far = torch.empty(2**31 + 64, dtype=torch.float16)
    except RuntimeError as error:
        pytest.skip(f"no address space for it: {error}")
    x = far.as_strided((2, 1, 5, 6), (2**31, 1, 6, 1))
    x.copy_(small)
    weight, grad = torch.randn(1, 1, 3, 9).half(), torch.randn(2, 1, 5, 6).half()
    y = launch.convolve(x, weight, None, None, torch.empty_like(small))
    assert torch.equal(y, launch.convolve(small, weight, None, None, torch.empty_like(small)))
    gradient = launch.weight_gradient(x, grad, (3, 9))
    assert torch.equal(gradient, launch.weight_gradient(small, grad, (3, 9)))


def test_rows_that_are_more_than_two_to_the_31_values_apart():
    small = torch.randn(1, 1, 2, 6).half()
    try:
        far = torch.empty(2**31 + 64, dtype=torch.float16)
    except RuntimeError as error:
        pytest.skip(f"no address space for it: {error}")
    x = far.as_strided((1, 1, 2, 6), (0, 0, 2**31, 1))
    x.copy_(small)
    for kernel in ((3, 9), (9, 3)):
        weight = torch.randn(1, 1, *kernel).half()
        y = launch.convolve(x, weight, None, None, torch.empty_like(small))
        assert torch.equal(y, launch.convolve(small, weight, None, None, torch.empty_like(small)))
        gradient = launch.weight_gradient(x, small, kernel)
        assert torch.equal(gradient, launch.weight_gradient(small, small, kernel))


def test_many_images_are_summed_in_parts_and_the_same_every_time(monkeypatch):
    monkeypatch.setattr(launch, "PROGRAMS", 9)
    x, grad = torch.randn(2, 70, 1, 6, 7)
    found = [launch.weight_gradient(x, grad, (3, 9)) for _ in range(2)]
    assert torch.equal(*found)
    leaf = torch.zeros(1, 1, 3, 9, dtype=torch.float64, requires_grad=True)
    F.conv2d(x.double(), leaf, padding=(1, 4)).backward(grad.double())
    assert torch.allclose(found[0].double(), leaf.grad, atol=1e-4)


def test_a_weight_in_float32_works_with_narrower_maps_and_has_a_gradient_in_float32():
    x, rounded = torch.randn(2, 2, 9, 9).bfloat16(), torch.randn(2, 1, 9, 3).bfloat16()
    weight = rounded.float().requires_grad_()
    y = operators.convolution(x, weight, None, None, False)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, operators.convolution(x, rounded, None, None, False))
    (gradient,) = torch.autograd.grad(y, weight, torch.ones_like(y))
    leaf = weight.detach().double().requires_grad_()
    F.conv2d(x.double(), leaf, padding=(4, 1), groups=2).sum().backward()
    assert gradient.dtype == torch.float32 and torch.allclose(gradient.double(), leaf.grad, atol=1e-4)


@pytest.mark.parametrize("bias", [torch.arange(6.0)[::2], torch.tensor([5.0]).expand(3)])
def test_a_bias_between_other_values_is_read_with_its_stride(bias):
    x, tall, wide = torch.zeros(1, 3, 4, 5), torch.ones(3, 1, 9, 3), torch.ones(3, 1, 3, 9)
    expected = torch.tensor(bias.tolist()).view(3, 1, 1).expand(1, 3, 4, 5)
    for other in (None, wide):
        assert torch.equal(operators.convolution(x, tall, other, bias, False), expected)


def test_autocast_computes_in_its_type_and_keeps_gradients_in_float32():
    x, weight, bias = torch.randn(2, 2, 9, 9), torch.randn(2, 1, 9, 3), torch.randn(2)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv2d(*leaves, "toeplitz")
    assert y.dtype == torch.bfloat16
    assert [g.dtype for g in torch.autograd.grad(y.float().sum(), leaves)] == [torch.float32] * 3


def test_torch_is_content_with_the_operators():
    """With the kernels behind them; test_operators.py asks more, with torch's convolution behind them."""
    x, a, b = (torch.randn(1, 1, *size, requires_grad=True) for size in ((4, 5), (5, 3), (3, 5)))
    torch.library.opcheck(operators.convolution, (x, a, b, torch.randn(1), False))


def test_blocks_of_a_side_cover_it_and_reach_what_the_kernel_does():
    for size in (1, 2, 7, 16, 17, 56, 64, 65, 70, 96, 100, 199):
        for kernel in (1, 5, 9, 33, 51, 61):
            side, place = long_side(size, kernel), torch.arange(size)
            assert side.blocks * side.block >= size > (side.blocks - 1) * side.block
            assert side.block in (16, 32, 64)
            sees = (place[:, None] - place).abs() <= kernel // 2
            blocks = place // side.block
            assert (blocks[:, None] - blocks).abs()[sees].max() <= side.reach(kernel) < side.blocks
        rows = row_side(size)
        assert rows.blocks * rows.block >= size and rows.block <= 64


def test_a_form_is_the_matrix_of_the_convolution():
    kernel, side = torch.randn(3, 5, 9), Side(40, 16)
    form = forms.banded(kernel, side, torch.float32)
    assert form.shape == (3, 5, 3, 16, 16)
    for tap in range(5):
        line = torch.zeros(1, 3, 1, 40)
        for i in range(40):
            line.zero_()[..., i] = 1
            expected = F.conv2d(line, kernel[:, tap, None, None], padding=(0, 4), groups=3)[0, :, 0]
            for block in range(3):  # of outputs
                behind = i // 16 - block
                columns = slice(block * 16, min(block * 16 + 16, 40))
                found = form[:, tap, behind + 1, i % 16] if abs(behind) <= 1 else torch.zeros(3, 16)
                assert torch.equal(found[:, : columns.stop - columns.start], expected[:, columns])
