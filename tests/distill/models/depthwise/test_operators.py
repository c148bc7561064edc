"""The operators as citizens of torch, on a CPU, where torch's own convolution is behind them; the kernels
themselves: interpreted.py.
"""

import contextlib
import copy
import gc
import importlib.util
import re
import warnings
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from distill.models import depthwise, slak
from distill.models.depthwise import DepthwiseConv2d, depthwise_conv2d_pair, forms, launch, operators
from distill.models.merge import reparameterize

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: CUDA would have cuDNN alone"
)


def leaves(pair, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sizes = [(2, 2, 6, 7), (2, 1, 5, 3), (2, 1, 3, 5), (2,)]
    x, a, b, bias = (torch.randn(size, generator=generator, dtype=dtype).requires_grad_() for size in sizes)
    return x, a, b if pair else None, bias


@pytest.mark.parametrize("pair", [False, True], ids=["one", "two"])
def test_torch_is_content_with_the_operators(pair):
    x, a, b, bias = leaves(pair)
    last = x.detach().contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(operators.convolution, (x, a, b, bias, False))
    torch.library.opcheck(operators.convolution, (last, a, b, None, True))
    torch.library.opcheck(operators.input_gradient, (last, a, b))
    torch.library.opcheck(operators.weight_gradient, (x, last, a))


def test_torch_is_content_with_the_operators_of_branches():
    x, a, b, _ = leaves(True)
    last = x.detach().contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(operators.branches, (x, a, b))
    torch.library.opcheck(operators.branches_input_gradient, (last, x, a, b))


def test_gradients_of_branches_agree_with_finite_differences():
    x, a, b, _ = leaves(True, torch.float64)
    assert torch.autograd.gradcheck(operators.branches, (x, a, b))
    assert torch.autograd.gradgradcheck(operators.branches, (x, a, b))
    grad, other_grad, _, _ = (each.detach() for each in operators.branches(x, a, b) * 2)
    (found,) = torch.autograd.grad(operators.branches(x, a, b), x, (grad, other_grad))
    tall = torch.autograd.grad(F.conv2d(x, a, padding=(2, 1), groups=2), x, grad)[0]
    wide = torch.autograd.grad(F.conv2d(x, b, padding=(1, 2), groups=2), x, other_grad)[0]
    assert torch.allclose(found, tall + wide)


@pytest.mark.parametrize("pair", [False, True], ids=["one", "two"])
def test_gradients_of_both_orders_agree_with_finite_differences(pair):
    x, a, b, bias = leaves(pair, torch.float64)
    inputs = [t for t in (x, a, b, bias) if t is not None]

    def call(*given):
        second = given[2] if pair else None
        return operators.convolution(given[0], given[1], second, given[-1], False)

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_the_operators_are_the_convolution():
    x, a, b, bias = leaves(True, torch.float64)
    y = operators.convolution(x, a, b, bias, False)
    expected = F.conv2d(x, a, bias, padding=(2, 1), groups=2) + F.conv2d(x, b, padding=(1, 2), groups=2)
    assert torch.allclose(y, expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_only_the_gradients_that_are_needed_are_computed(frozen, monkeypatch):
    x, a, _, bias = leaves(False)
    if frozen:
        a.requires_grad_(False), bias.requires_grad_(False)
    else:
        x.requires_grad_(False)
    refuse = "weight_gradient" if frozen else "input_gradient"
    monkeypatch.setattr(operators, refuse, lambda *_: pytest.fail("nobody asked for this gradient"))
    operators.convolution(x, a, None, bias, False).sum().backward()
    assert (x.grad is None) == (not frozen) and (a.grad is None) == frozen


class Block(torch.nn.Module):
    """Two strips in one operator, and a square kernel."""

    def __init__(self):
        super().__init__()
        self.tall, self.wide = DepthwiseConv2d(4, (9, 3)), DepthwiseConv2d(4, (3, 9), bias=False)
        self.square = DepthwiseConv2d(4, 9, algorithm="toeplitz")

    def forward(self, x):
        y = depthwise_conv2d_pair(x, self.tall.weight, self.wide.weight, self.tall.bias, "toeplitz")
        return F.gelu(self.square(y))


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
def test_a_compiled_block_is_one_graph_and_computes_the_same(autocast):
    torch.manual_seed(0)
    block, x = Block(), torch.randn(2, 4, 10, 12, requires_grad=True)
    found = {}
    for name, call in (("eager", block), ("aot", torch.compile(block, backend="aot_eager", fullgraph=True))):
        block.zero_grad(set_to_none=True)
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = call(x)
        y.float().square().sum().backward()
        found[name] = [y, x.grad, *(p.grad for p in block.parameters())]
    assert found["eager"][0].dtype == (torch.bfloat16 if autocast else torch.float32)
    for one, other in zip(*found.values(), strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-2 if autocast else 1e-5)


def test_two_strips_are_one_call_of_the_operator_when_compiled():
    calls = []

    def seen(graph, inputs):
        calls.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch.compile(Block(), backend=seen, fullgraph=True)(torch.randn(1, 4, 10, 12))
    assert sum("depthwise_conv2d" in name for name in calls) == 2


def test_trained_in_parallel_it_has_the_same_gradients(tmp_path):
    block, x = Block(), torch.randn(2, 4, 10, 12)
    expected = torch.autograd.grad(block(x).square().sum(), list(block.parameters()))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(block)
        with parallel.no_sync():
            parallel(x).square().sum().backward()
        parallel.zero_grad()
        parallel(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for parameter, other in zip(block.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, other, atol=1e-5)


def test_inference_mode_and_checkpointing_give_the_same():
    block, x = Block(), torch.randn(2, 4, 10, 12, requires_grad=True)
    y = block(x)
    (expected,) = torch.autograd.grad(y.sum(), x)
    with torch.inference_mode():
        assert torch.equal(block(x), y)
    (found,) = torch.autograd.grad(checkpoint(block, x, use_reentrant=False).sum(), x)
    assert torch.equal(found, expected)


def test_other_shapes_and_types_are_refused_as_torch_refuses_them():
    layer = DepthwiseConv2d(4, 9, algorithm="toeplitz")
    for x in (torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16)):
        with pytest.raises(RuntimeError) as ours:
            layer(x)
        with pytest.raises(RuntimeError) as theirs:
            F.conv2d(x, layer.weight, layer.bias, padding=4, groups=4)
        assert str(ours.value) == str(theirs.value)
    assert layer(torch.zeros(4, 8, 8)).shape == (4, 8, 8)  # one image without a batch


def test_an_exported_program_and_an_onnx_graph_hold_plain_convolutions(monkeypatch):
    """Also where the rule says otherwise: exporting comes before it."""
    monkeypatch.setattr(depthwise.rule, "choose", lambda _: depthwise.Choice("toeplitz"))
    layer, x = DepthwiseConv2d(3, (13, 5)).eval(), torch.zeros(1, 3, 8, 8)
    targets = {str(node.target) for node in torch.export.export(layer, (x,)).graph.nodes}
    assert "aten.conv2d.default" in targets and not any("large2small" in each for each in targets)
    program = torch.onnx.export(layer, (x,), dynamo=True, verbose=False)
    assert [node.op_type for node in program.model_proto.graph.node] == ["Conv"]


def merged_strips():
    torch.manual_seed(0)
    block = slak.DecomposedKernel(4, 9, 3)
    return reparameterize(torch.nn.Sequential(block))[0].requires_grad_(False)


def test_merged_strips_are_computed_in_one_pass(monkeypatch):
    block, x = merged_strips(), torch.randn(2, 4, 10, 10)
    expected = block(x)
    calls = []
    convolution = operators.convolution
    monkeypatch.setattr(operators, "convolution", lambda *a: calls.append(a) or convolution(*a))
    with depthwise.forced("toeplitz"):
        assert torch.allclose(block(x), expected, atol=1e-6) and len(calls) == 1
        assert calls[0][3] is block.LoRA1.conv.bias
        handle = block.LoRA1.conv.register_forward_hook(lambda *_: None)
        assert torch.allclose(block(x), expected, atol=1e-6) and len(calls) == 3  # both layers are seen
        handle.remove()
    assert torch.fx.symbolic_trace(block) is not None and len(calls) == 3


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_strips_that_are_trained_are_computed_in_one_pass(monkeypatch, training):
    """Also backward: one gradient of x for both, instead of two and their sum."""
    torch.manual_seed(0)
    block, x = slak.DecomposedKernel(4, 9, 3).train(training), torch.randn(2, 4, 10, 10, requires_grad=True)
    leaves = [x, *block.parameters()]
    expected = block(x)
    gradients = torch.autograd.grad(expected.square().sum(), leaves)
    calls = []
    for name in ("branches", "branches_input_gradient", "convolution", "input_gradient"):
        real = getattr(operators, name)
        monkeypatch.setattr(operators, name, lambda *a, n=name, f=real: calls.append(n) or f(*a))
    with depthwise.forced("toeplitz"):
        y = block(x)
        found = torch.autograd.grad(y.square().sum(), leaves)
    assert sorted(calls) == ["branches", "branches_input_gradient", "convolution", "input_gradient"]
    for one, other in zip((y, *found), (expected, *gradients), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_bare_strips_beside_a_small_kernel_are_computed_in_one_pass(monkeypatch):
    torch.manual_seed(0)
    block, x = slak.DecomposedKernel(4, 9, 3, bn=False), torch.randn(2, 4, 10, 10)
    expected = block(x)
    calls = []
    convolution = operators.convolution
    monkeypatch.setattr(operators, "convolution", lambda *a: calls.append(a) or convolution(*a))
    with depthwise.forced("toeplitz"):
        assert torch.allclose(block(x), expected, atol=1e-6)
    assert len(calls) == 2  # the strips, and the small one


# on CUDA, with tensors that have no values: which operator gets what


@pytest.fixture
def fake_cuda(monkeypatch):
    """fake_cuda(capability) -> within it, tensors on "cuda" have shapes and no values, and torch says that
    the GPU is of this capability.
    """

    @contextlib.contextmanager
    def entered(capability=(9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(launch, "_available", {})
        monkeypatch.setattr(launch, "_why_triton_fails", lambda: None)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        with FakeTensorMode(), torch.device("cuda"):
            yield

    return entered


class Seen(TorchDispatchMode):
    """Names of the operators that are called, and the memory format of the first tensor of each."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "conv" in str(function):
            last = args[0].is_contiguous(memory_format=torch.channels_last)
            self.calls.append((str(function).split(".")[1], "last" if last else "plain", *args[-1:]))
        return function(*args, **(kwargs or {}))


@needs_triton
@pytest.mark.parametrize(
    ("capability", "kernel", "side", "dtype", "frozen", "expected"),
    [
        ((9, 0), (51, 5), 56, torch.bfloat16, False, ("depthwise_conv2d", "plain", False)),
        ((8, 0), (27, 27), 14, torch.bfloat16, True, ("depthwise_conv2d", "plain", True)),
        ((9, 0), (7, 7), 56, torch.bfloat16, True, ("convolution", "last", 4)),
        ((7, 5), (51, 5), 56, torch.float16, False, ("convolution", "plain", 4)),
        ((9, 0), (51, 5), 56, torch.float64, False, ("convolution", "plain", 4)),
    ],
)
@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last], ids=["plain", "last"])
def test_on_cuda_the_rule_is_followed_and_the_format_is_kept(
    fake_cuda, capability, kernel, side, dtype, frozen, expected, given
):
    with fake_cuda(capability):
        layer = DepthwiseConv2d(4, kernel).requires_grad_(not frozen)
        for name, value in list(layer.named_parameters()):
            setattr(layer, name, torch.nn.Parameter(value.to(dtype), requires_grad=not frozen))
        x = torch.empty(2, 4, side, side, dtype=dtype).to(memory_format=given)
        with Seen() as seen:
            y = layer(x)
    assert seen.calls == [expected]
    assert y.shape == x.shape and y.dtype == dtype and y.is_contiguous(memory_format=given)


@needs_triton
def test_where_torch_is_to_be_deterministic_it_does_not_use_cublas(fake_cuda):
    torch.use_deterministic_algorithms(True)
    try:
        with fake_cuda(), Seen() as seen:
            weight = torch.nn.Parameter(torch.empty(4, 1, 27, 27, dtype=torch.bfloat16), requires_grad=False)
            depthwise.depthwise_conv2d(torch.empty(2, 4, 14, 14, dtype=torch.bfloat16), weight)
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen.calls == [("depthwise_conv2d", "plain", False)]


@needs_triton
def test_where_triton_does_not_work_cudnn_is_used_and_the_reason_is_said(fake_cuda, monkeypatch):
    with fake_cuda(), Seen() as seen:
        monkeypatch.setattr(launch, "_why_triton_fails", lambda: "RuntimeError: Failed to find C compiler")
        layer, x = DepthwiseConv2d(4, (51, 5)), torch.empty(2, 4, 56, 56)
        with pytest.warns(UserWarning, match="computed by cuDNN, which is slower.*Failed to find C compiler"):
            layer(x)
        with warnings.catch_warnings():  # once is enough
            warnings.simplefilter("error")
            layer(x)
    assert [call[0] for call in seen.calls] == ["convolution"] * 2


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton works where there is a GPU")
def test_what_triton_says_without_a_gpu_is_one_line():
    assert re.fullmatch(r"RuntimeError: .*drivers.*", launch._why_triton_fails())


def test_kernels_run_on_the_device_of_the_maps(fake_cuda):
    with fake_cuda():
        assert launch._device_of(torch.empty(1, device="cuda:1")).idx == 1
    with launch._device_of(torch.empty(1)) as entered:
        assert entered is None


@needs_triton
def test_a_merged_block_on_cuda_is_one_operator(fake_cuda):
    with fake_cuda():
        block = slak.Block(slak.DecomposedKernel(8, 51, 5, deploy=True), 8).eval().requires_grad_(False)
        with Seen() as seen:
            block(torch.empty(2, 8, 56, 56).to(memory_format=torch.channels_last))
    assert [call[0] for call in seen.calls] == ["depthwise_conv2d"]


@needs_triton
def test_compiled_on_cuda_it_is_one_graph(fake_cuda):
    graphs = []
    with fake_cuda():
        layer, x = DepthwiseConv2d(4, (51, 5)), torch.empty(2, 4, 56, 56)
        torch.compile(layer, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)(x)
    calls = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert [name for name in calls if "conv" in name] == ["large2small.depthwise_conv2d.default"]


# the cache of forms, whose keys a CPU can check too


def kept(weight):
    return forms.kept(weight, "test", lambda: weight.detach().sum(0))


def test_a_form_is_made_once_and_goes_with_its_module():
    layer = DepthwiseConv2d(2, 9).requires_grad_(False)
    before = len(forms._kept)
    form = weakref.ref(kept(layer.weight))
    assert kept(layer.weight) is form() and len(forms._kept) == before + 1
    del layer
    gc.collect()
    assert form() is None and len(forms._kept) == before


def loaded(weight):
    layer = torch.nn.Linear(3, 2, bias=False)
    layer.weight = weight
    layer.load_state_dict({"weight": torch.full((2, 3), 2.0)})


def averaged(weight):
    torch._foreach_lerp_([weight.detach()], [torch.full((2, 3), 3.0)], 0.5)


def trained_a_step(weight):
    weight.requires_grad_()
    assert kept(weight) is None  # forward
    weight.grad = -torch.ones(2, 3)
    torch.optim.SGD([weight], lr=1.0, fused=True).step()
    weight.requires_grad_(False)


def multiplied_in_inference_mode(weight):
    with torch.inference_mode():
        weight.mul_(2)


def replaced_twice(weight):
    """The second time by a tensor that may come to the place where the first one was."""
    weight.data = torch.zeros(2, 3)
    weight.data = torch.full((2, 3), 2.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.mul_(2),
        lambda weight: weight.copy_(torch.full((2, 3), 2.0)),
        lambda weight: setattr(weight, "data", torch.full((2, 3), 2.0)),
        loaded,
        averaged,
        trained_a_step,
        multiplied_in_inference_mode,
        replaced_twice,
    ],
    ids=lambda change: change.__name__,
)
def test_a_changed_weight_has_a_new_form(change):
    weight = torch.nn.Parameter(torch.ones(2, 3), requires_grad=False)
    assert kept(weight).tolist() == [2, 2, 2]
    with torch.no_grad():
        change(weight)
    assert kept(weight).tolist() == [4, 4, 4] and len(forms._kept[weight]) == 1


def test_an_averaged_network_computes_with_its_present_weights():
    """As timm averages weights, and frozen."""
    from timm.utils import ModelEmaV3

    layer = DepthwiseConv2d(2, 9)
    average = ModelEmaV3(layer, decay=0.5)
    average.requires_grad_(False)
    first = kept(average.module.weight)
    with torch.no_grad():
        layer.weight.add_(1)
    average.update(layer)
    assert torch.allclose(kept(average.module.weight), first + 0.5 * len(layer.weight))


def test_trained_weights_and_passing_tensors_have_no_form():
    assert kept(torch.nn.Parameter(torch.ones(2, 3))) is None
    assert kept(torch.ones(2, 3)) is None


class OnCuda(torch.nn.Parameter):
    """A weight that says that it is on CUDA."""

    is_cuda = True


def test_a_recorded_graph_reads_forms_only_where_it_holds_them(monkeypatch):
    """Its replays would read a form that is old, or freed."""
    weight = OnCuda(torch.ones(2, 3), requires_grad=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    form = kept(weight)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert kept(weight) is None
    with forms.held() as held:
        assert kept(weight) is form
        assert forms.kept(weight, "new", lambda: pytest.fail("made in the memory of a graph")) is None
    assert held == [form] and kept(weight) is None


def test_a_copied_module_and_its_weights_on_disk_are_without_forms(tmp_path):
    layer = DepthwiseConv2d(2, 9).requires_grad_(False)
    kept(layer.weight)
    assert copy.deepcopy(layer).weight not in forms._kept
    torch.save(layer.state_dict(), tmp_path / "weights.pth")
    assert set(torch.load(tmp_path / "weights.pth")) == {"weight", "bias"}


def test_so_many_forms_are_kept_and_no_more():
    weight = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    for kind in range(10):
        forms.kept(weight, kind, lambda: torch.ones(1))
    assert [key[3] for key in forms._kept[weight]] == [6, 7, 8, 9]


def test_a_cpu_has_no_kernels_without_the_interpreter():
    assert not launch.interprets() and not launch.runs(torch.zeros(1, 1, 9, 9))


def test_two_kernels_of_one_direction_are_refused():
    tall = torch.zeros(1, 1, 9, 3)
    with pytest.raises(ValueError, match="a tall and a wide one"):
        launch.convolve(torch.zeros(1, 1, 9, 9), tall, tall, None, torch.zeros(1, 1, 9, 9))
