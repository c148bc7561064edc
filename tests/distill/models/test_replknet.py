"""RepLKNet: sizes of the original, the two branches by hand, exact merging, preprocessing."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from distill import models
from distill.models.merge import reparameterize, require_equal
from distill.models.replknet import ConvFFN, LargeKernel, RepLKBlock, add_at_center
from runtime.errors import UsageError

PARAMETERS = {
    "31b": (79_864_168, 79_527_272),
    "31l": (172_671_016, 172_165_672),
    "xl": (335_435_752, 335_399_656),
}
"""Of the original classes with 1000 classes: in training and merged."""
MINI = {"depths": (1, 1, 1, 1), "channels": (4, 6, 8, 12), "kernel_sizes": (13, 11, 9, 7), "small_kernel": 5}


def mini(**more):
    return models.build("replknet_31b", 5, MINI | more)


def by_hand(branch, x):
    """Convolution, then batch norm with the stored statistics."""
    conv, bn = branch.conv, branch.bn
    y = F.conv2d(x, conv.weight, padding=[k // 2 for k in conv.weight.shape[2:]], groups=x.shape[1])
    return F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias)


@pytest.mark.parametrize("size", PARAMETERS)
def test_the_number_of_parameters_is_that_of_the_original(size):
    with torch.device("meta"):
        for deploy, expected in zip((False, True), PARAMETERS[size], strict=True):
            network = timm.create_model(f"replknet_{size}", deploy=deploy)
            assert sum(p.numel() for p in network.parameters()) == expected


def test_small_numbers_added_at_the_center():
    kernel = torch.zeros(1, 1, 5, 3)
    add_at_center(kernel, torch.tensor([[[[1.0], [2.0], [3.0]]]]))
    assert kernel[0, 0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 2, 0], [0, 3, 0], [0, 0, 0]]


@pytest.mark.parametrize("size", [(20, 17), (3, 2), (1, 1)], ids=str)
@pytest.mark.parametrize(("kernel", "small"), [(13, 5), (13, 0), (5, 5), (3, 1)])
def test_the_kernels_are_added_and_merge_into_one(kernel, small, size, stirred, noise, share):
    layer, x = stirred(LargeKernel(3, kernel, small)).double(), noise(2, 3, *size).double()
    with torch.no_grad():
        expected = by_hand(layer.lkb_origin, x) + (by_hand(layer.small_conv, x) if small else 0)
        assert share(layer(x), expected) < 1e-12
        for _ in range(2):  # merging again changes nothing
            layer.reparameterize()
            assert share(layer(x), expected) < 1e-12
    assert {key: tuple(p.shape) for key, p in layer.named_parameters()} == {
        "lkb_reparam.weight": (3, 1, kernel, kernel),
        "lkb_reparam.bias": (3,),
    }
    assert not list(layer.buffers()) and layer.lkb_reparam.padding == (kernel // 2, kernel // 2)
    assert layer.lkb_reparam.weight.requires_grad


def test_without_batch_norm_the_bare_kernels_are_added(stirred, noise, share):
    layer, x = stirred(LargeKernel(3, 9, 3, bn=False)), noise(2, 3, 8, 8)
    with torch.no_grad():
        expected = sum(
            F.conv2d(x, branch.conv.weight, padding=k // 2, groups=3)
            for branch, k in ((layer.lkb_origin, 9), (layer.small_conv, 3))
        )
        assert share(layer(x), expected) < 1e-6
        layer.reparameterize()
        assert share(layer(x), expected) < 1e-6
    assert not layer.lkb_reparam.bias.any()


def test_a_small_kernel_larger_than_the_large_one_is_refused():
    with pytest.raises(UsageError, match="small_kernel 9 is larger than the kernel of 7"):
        LargeKernel(4, 7, 9)
    with pytest.raises(UsageError, match="expected 7 at most"):
        mini(small_kernel=9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_merged_network_is_the_deploy_form_and_computes_the_same(dtype, stirred, noise, share):
    network, x = stirred(mini()).to(dtype), noise(2, 3, 64, 96).to(dtype)
    merged, deployed = reparameterize(network, fold_batch_norm=False), mini(deploy=True).to(dtype).eval()
    assert list(merged.state_dict()) == list(deployed.state_dict())
    deployed.load_state_dict(merged.state_dict())
    with torch.no_grad():
        assert share(merged(x), network(x)) < (2e-6 if dtype == torch.float32 else 1e-13)
        assert torch.equal(deployed(x), merged(x))
    folded = reparameterize(network)
    assert require_equal(network, folded, (3, 64, 64)) < 1e-5
    # the norms that come before a convolution cannot be folded backwards
    assert {
        name.rpartition(".")[2] for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)
    } == {"prelkb_bn", "preffn_bn", "norm"}


def test_the_blocks_by_hand(stirred, noise, share):
    """ReLU after the first 1 x 1 and after the large kernel, none at the end; GELU between the FFN's;
    shortcuts around.
    """
    x = noise(2, 4, 6, 6).double()

    def norm(bn, y):
        return F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    def point(pair, y):
        return norm(pair.bn, torch.einsum("oi,nihw->nohw", pair.conv.weight[:, :, 0, 0], y))

    block = stirred(RepLKBlock(4, 6, 7, 3, 0.0, False)).double()
    ffn = stirred(ConvFFN(4, 9, 0.0), seed=1).double()
    with torch.no_grad():
        inner = point(block.pw1, norm(block.prelkb_bn, x)).clamp_min(0)
        inner = (
            by_hand(block.large_kernel.lkb_origin, inner) + by_hand(block.large_kernel.small_conv, inner)
        ).clamp_min(0)
        assert share(block(x), x + point(block.pw2, inner)) < 1e-12
        inner = point(ffn.pw1, norm(ffn.preffn_bn, x))
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        assert share(ffn(x), x + point(ffn.pw2, inner)) < 1e-12


def test_both_blocks_of_a_pair_have_the_rate_of_the_pair():
    network = mini(drop_path_rate=0.3)
    rates = [
        getattr(m.drop_path, "drop_prob", 0.0)
        for m in network.modules()
        if isinstance(m, (RepLKBlock, ConvFFN))
    ]
    assert rates == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


def test_widths_follow_the_ratios():
    shapes = {key: tuple(p.shape) for key, p in mini(dw_ratio=1.5, ffn_ratio=2).named_parameters()}
    assert shapes["stages.1.blocks.0.large_kernel.lkb_origin.conv.weight"] == (9, 1, 11, 11)
    assert shapes["stages.1.blocks.1.pw1.conv.weight"] == (12, 6, 1, 1)


def test_preprocessing_is_that_of_the_authors_evaluation():
    plain, large, xl = (
        models.preprocess_of(n) for n in ("replknet_31b", "replknet_31b.in1k_384", "replknet_xl")
    )
    assert (plain.input_size, plain.crop_pct, plain.crop_mode, plain.interpolation) == (
        (3, 224, 224),
        0.875,
        "center",
        "bicubic",
    )
    assert (large.input_size, large.crop_pct, large.crop_mode) == ((3, 384, 384), 1.0, "squash")
    assert (xl.input_size, xl.crop_pct, xl.mean, xl.std) == (
        (3, 320, 320),
        0.875,
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
    )
    assert models.preprocess_of("replknet_31l").input_size == (3, 384, 384)
    assert models.size_argument("replknet_31b", 160) == {}
