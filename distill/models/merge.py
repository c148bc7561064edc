"""Merging a network for inference, and the proof that the merged network computes the same.

In:  a network of any family, in training form.
Out: the same function with fewer layers: parallel branches added into one kernel, batch norm folded into the
layer before it.
Elsewhere: the merge of one block (its `reparameterize`, in the file of its family), folding in an exported
graph (export.graph.from_torch).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers.norm_act import SyncBatchNormAct
from timm.models import get_notrace_functions, get_notrace_modules
from timm.utils.model import reparameterize_model
from torch import Tensor, fx, nn

from runtime.errors import GateError

from .depthwise import DepthwiseConv2d

LinearMap = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
LINEAR_MAPS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, DepthwiseConv2d, Conv2dSame)
"""Layers that compute weight * x + bias from exactly these two; a subclass (StdConv2d) may compute something
else."""
BatchNorm = nn.modules.batchnorm._BatchNorm
"""What all batch norms of torch and timm are."""
BATCH_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    BatchNormAct2d,
    SyncBatchNormAct,
)

TOLERANCE = 1e-4
"""Largest accepted difference, as a share of the standard deviation of the values compared. Other rounding
moves float32 results by 1e-6 to 8e-5 (88 networks of timm with random batch norm); a forgotten bias or a
kernel one pixel off moves those of a network in which every layer matters by 1e-2 and more (the tests of this
file)."""


def reparameterize(model: nn.Module, inplace: bool = False, fold_batch_norm: bool = True) -> nn.Module:
    """The network for inference: a copy, or `model` itself when inplace. It is in eval mode and must stay
    there.

    First every block that can merge itself does (our SLaK, RepLKNet and UniRepLKNet, and timm's RepVGG,
    MobileOne, FastViT, RepViT and others: `fuse`, `reparameterize` or `switch_to_deploy`), then, with
    fold_batch_norm, every batch norm is folded into the convolution or linear layer before it where
    `foldable` can prove the pair; the others stay, and cost time only. Names of weights stay those of the
    original. Precision is kept: merge in float32, then cast. Whoever saves or trusts the result calls
    `require_equal` first.
    """
    merged = (
        model if inplace else copy.deepcopy(model)
    ).eval()  # eval first: some families merge by their mode
    reparameterize_model(merged, inplace=True)
    if fold_batch_norm:
        for layer_name, bn_name in foldable(merged):
            layer, bn = merged.get_submodule(layer_name), merged.get_submodule(bn_name)
            assert isinstance(layer, LINEAR_MAPS) and isinstance(bn, BATCH_NORMS)
            assign(layer, *folded(layer.weight, layer.bias, bn))
            inside = dict(bn.named_children())  # timm's batch norm with an activation keeps the activation
            kept = nn.Sequential(inside["drop"], inside["act"]) if inside else nn.Identity()
            merged.set_submodule(bn_name, kept)
    return merged.eval()


def require_equal(
    model: nn.Module,
    merged: nn.Module,
    input_size: Sequence[int],
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> float:
    """The largest difference between the two networks on two images of noise, as a share of the spread of the
    values.

    input_size: (channels, height, width). Compared in eval mode: the last feature map where there is one (a
    head of zeros would hide everything before it), and the output. What float32 finds too large is measured
    again in float64. Raises GateError when the difference exceeds `tolerance`, and when there is nothing to
    compare (not finite, or constant).
    """
    images = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(seed)).to(
        next(model.parameters())
    )
    share, part = _difference(model, merged, images)
    if share > tolerance:  # a wrong merge, or rounding alone (TF32, a network that amplifies it)?
        with contextlib.suppress(
            RuntimeError
        ):  # of networks whose code insists on float32: then its result stands
            wide = copy.deepcopy(model).double(), copy.deepcopy(merged).double()
            share, part = _difference(*wide, images.double())
    if share > tolerance:
        raise GateError(
            f"merged {type(model).__name__} is not the same network: its {part} differs by {share:.2g} of its"
            f" spread, expected at most {tolerance:.2g}. Use the network unmerged"
        )
    return share


def folded(weight: Tensor, bias: Tensor | None, bn: BatchNorm) -> tuple[Tensor, Tensor]:
    """(weight (O, ...), bias (O,)) of the layer that computes bn(weight * x + bias) in eval mode,
    in float64.
    """
    assert bn.running_mean is not None and bn.running_var is not None
    scale = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight.detach().double()
    shift = -bn.running_mean.double() if bias is None else bias.detach().double() - bn.running_mean
    shift = shift * scale if bn.bias is None else shift * scale + bn.bias.detach()
    return weight.detach().double() * scale.view(-1, *[1] * (weight.dim() - 1)), shift


def assign(layer: LinearMap, weight: Tensor, bias: Tensor) -> None:
    """Give `layer` a weight and a bias in its own precision; new parameters, as its old ones may
    be shared.
    """
    old = layer.weight
    layer.weight, layer.bias = (nn.Parameter(new.to(old.dtype), old.requires_grad) for new in (weight, bias))


def foldable(model: nn.Module) -> list[tuple[str, str]]:
    """[(layer, batch norm)], dotted names: the second reads the first's output and nothing else does.

    Read from the symbolic trace of the network, never guessed from names or order. A network that cannot be
    traced (its control flow depends on the data) is searched child by child.
    """
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    skeleton = copy.deepcopy(
        model, tensors
    )  # shares every tensor; tracing may leave symbols in what a forward pass caches
    places = Counter(id(module) for _, module in skeleton.named_modules(remove_duplicate=False))
    return list(_pairs(skeleton, "", {module for module, count in places.items() if count > 1}))


def _pairs(model: nn.Module, prefix: str, shared: set[int]) -> Iterator[tuple[str, str]]:
    """`foldable` below `prefix`; shared: ids of modules with several names, which other places may
    use too.
    """
    try:
        graph = _Tracer().trace(model, _defaults(model))
    except (
        Exception
    ):  # whatever the network's code raises for a symbolic input: only its parts can be traced then
        for name, child in model.named_children():
            yield from _pairs(child, f"{prefix}{name}.", shared)
        return
    modules = dict(model.named_modules(remove_duplicate=False))
    uses = Counter(node.target for node in graph.nodes if node.op == "call_module")
    # a weight that code reads by itself is needed as it is
    read = {node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1:
            pair = (str(before.target), str(node.target))
            alone = all(
                uses[name] == 1 and name not in read and id(modules[name]) not in shared for name in pair
            )
            if alone and _can_fold(*(modules[name] for name in pair)):
                yield prefix + pair[0], prefix + pair[1]


def _can_fold(layer: nn.Module, bn: nn.Module) -> bool:
    """Whether the two are plain: known classes, fixed statistics, no hooks (pruning, feature taps, weight
    norm).

    What a trace does not show, and `require_equal` does: a linear layer's (N, L, C) normalized over L, where
    L equals C.
    """
    watched = any(m._forward_hooks or m._forward_pre_hooks for m in (layer, bn))
    return (
        isinstance(layer, LINEAR_MAPS)
        and isinstance(bn, BATCH_NORMS)
        and type(layer) in LINEAR_MAPS
        and type(bn) in BATCH_NORMS
        and not watched
        and bn.running_mean is not None
        and bn.num_features == layer.weight.shape[0]
    )


class _Tracer(fx.Tracer):
    """torch.fx with every layer as one node: torch's, timm's and the large depthwise convolution."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()), param_shapes_constant=True)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kinds = (*LINEAR_MAPS, *BATCH_NORMS, *get_notrace_modules())
        return isinstance(m, kinds) or super().is_leaf_module(m, module_qualified_name)


def _defaults(model: nn.Module) -> dict[str, Any]:
    """Optional arguments of forward at their defaults; traced symbolically, `mask is not None`
    would be true.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _difference(model: nn.Module, merged: nn.Module, images: Tensor) -> tuple[float, str]:
    """(largest |difference| / standard deviation, name of the part where it is). Raises GateError where that
    has no meaning.
    """
    wanted = _outputs(model, images)
    try:
        found = _outputs(merged, images)
    except Exception as error:  # whatever code raises that relied on what merging took away
        raise GateError(
            f"merged {type(model).__name__} does not run ({' '.join(str(error).split())[:200]}). "
            "Use the network unmerged"
        ) from error
    shares = []
    for part, a in wanted.items():
        b = found.get(part)
        if b is None or a.shape != b.shape:
            raise GateError(
                f"merged {type(model).__name__}: its {part} is {None if b is None else tuple(b.shape)}, "
                f"expected {tuple(a.shape)}. Use the network unmerged"
            )
        if not (a.isfinite().all() and b.isfinite().all()):
            raise GateError(
                f"merged {type(model).__name__}: {part} is not finite on an image of noise, before or after"
                " merging, so that equality cannot be shown. Check the weights"
            )
        difference, spread = (a - b).abs().max().item(), a.std(correction=0).item()
        if difference or spread:
            shares.append((difference / spread if spread else math.inf, part))
    if not shares:
        raise GateError(
            f"merged {type(model).__name__}: everything it computes from an image of noise is constant, so"
            " that equality cannot be shown. Check the weights"
        )
    return max(shares)


@torch.no_grad()
def _outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """{name: tensor}: the last feature map where the network can give one, and its output or outputs, in
    float64 on the CPU.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        features = getattr(model, "forward_features", None)
        found: dict[str, Any] = {"feature map": features(images)} if features else {}
        found["output"] = model(images)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {
        name: tensor.double().cpu() for part, value in found.items() for name, tensor in _tensors(part, value)
    }


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested lists, tuples and dicts, with a name."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (list, tuple, dict)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(f"{name} {key}", item)
