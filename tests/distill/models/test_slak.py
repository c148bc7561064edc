"""SLaK: sizes of the original, strips by hand, exact merging into two strips, students with 7 x 7 kernels."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from distill import models
from distill.models.merge import reparameterize, require_equal
from distill.models.slak import Block, DecomposedKernel
from runtime.errors import UsageError

PARAMETERS = {
    "slak_tiny": 50_703_838,
    "slak_small": 91_131_820,
    "slak_base": 157_950_792,
    "slak_tiny_k7": 28_595_752,
    "slak_small_k7": 50_237_224,
}
"""Of the original classes with 1000 classes."""
MINI = {
    "depths": (1, 1, 1, 1),
    "dims": (4, 6, 8, 12),
    "width_factor": 1.3,
    "kernel_sizes": (13, 11, 9, 3),
    "small_kernel": 5,
}


def mini(**more):
    return models.build("slak_tiny", 5, MINI | more)


def by_hand(branch, x):
    """Convolution, then batch norm with the stored statistics where there is one."""
    y = F.conv2d(
        x, branch.conv.weight, padding=[k // 2 for k in branch.conv.weight.shape[2:]], groups=x.shape[1]
    )
    if not hasattr(branch, "bn"):
        return y
    return F.batch_norm(y, branch.bn.running_mean, branch.bn.running_var, branch.bn.weight, branch.bn.bias)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_number_of_parameters_is_that_of_the_original(name):
    with torch.device("meta"):
        assert sum(p.numel() for p in timm.create_model(name).parameters()) == PARAMETERS[name]


def test_widths_are_rounded_down():
    shapes = {key: tuple(p.shape) for key, p in mini().named_parameters() if key.endswith("gamma")}
    assert list(shapes.values()) == [(5,), (7,), (10,), (15,)]  # 5.2, 7.8, 10.4, 15.6


def test_the_small_kernel_is_there_where_it_is_smaller():
    def parts(**more):
        return [
            sorted(
                {
                    key.split(".")[4]
                    for key in mini(**more).state_dict()
                    if key.startswith(f"stages.{i}.0.large_kernel.")
                }
            )
            for i in range(4)
        ]

    assert parts() == 3 * [["LoRA1", "LoRA2", "small_conv"]] + [["LoRA1", "LoRA2"]]
    assert parts(decomposed=False) == 3 * [["lkb_origin", "small_conv"]] + [["lkb_origin"]]
    assert (
        parts(decomposed=False, small_kernel=0)
        == parts(decomposed=False, small_kernel=100)
        == 4 * [["lkb_origin"]]
    )
    assert parts(deploy=True) == 4 * [["LoRA1", "LoRA2"]] and parts(deploy=True, decomposed=False) == 4 * [
        ["lkb_reparam"]
    ]


@pytest.mark.parametrize("size", [(20, 17), (3, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("bn", [True, False])
@pytest.mark.parametrize(("kernel", "small"), [(13, 5), (7, 1), (5, 5), (3, 5)])
def test_three_kernels_are_added_and_merge_into_two_strips(kernel, small, bn, size, stirred, noise, share):
    layer, x = stirred(DecomposedKernel(3, kernel, small, bn)).double(), noise(2, 3, *size).double()
    with torch.no_grad():
        expected = by_hand(layer.LoRA1, x) + by_hand(layer.LoRA2, x)
        if small < kernel:
            expected += by_hand(layer.small_conv, x)
        assert share(layer(x), expected) < 1e-12
        for _ in range(2):  # merging again changes nothing
            layer.reparameterize()
            assert share(layer(x), expected) < 1e-12
    assert {key: tuple(p.shape) for key, p in layer.named_parameters()} == {
        "LoRA1.conv.weight": (3, 1, kernel, small),
        "LoRA1.conv.bias": (3,),
        "LoRA2.conv.weight": (3, 1, small, kernel),
    }
    assert not list(layer.buffers()) and all(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize(
    "form",
    [{}, {"decomposed": False}, {"bn": False}, {"kernel_sizes": 7, "small_kernel": 0, "decomposed": False}],
    ids=str,
)
def test_the_merged_network_is_the_deploy_form_and_computes_the_same(form, stirred, noise, share):
    network, x = stirred(mini(**form)), noise(2, 3, 64, 96)
    merged, deployed = reparameterize(network), mini(deploy=True, **form).eval()
    assert list(merged.state_dict()) == list(deployed.state_dict())
    deployed.load_state_dict(merged.state_dict())
    with torch.no_grad():
        assert share(merged(x), network(x)) < 2e-6
        assert torch.equal(deployed(x), merged(x))
    require_equal(network, merged, (3, 64, 64))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in merged.modules())


def test_merging_keeps_a_frozen_half_precision_network_so(stirred):
    layer = stirred(DecomposedKernel(3, 7, 3)).to(torch.bfloat16).requires_grad_(False)
    layer.reparameterize()
    assert {(p.dtype, p.requires_grad) for p in layer.parameters()} == {(torch.bfloat16, False)}


@pytest.mark.parametrize("layer_scale", [0.0, 1e-6])
def test_the_block_by_hand(layer_scale, stirred, noise, share):
    block = stirred(Block(DecomposedKernel(4, 7, 3), 4, layer_scale_init_value=layer_scale)).double()
    x = noise(2, 4, 5, 6).double()
    with torch.no_grad():
        y = block.large_kernel(x)
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
        y = y * block.norm.weight.view(-1, 1, 1) + block.norm.bias.view(-1, 1, 1)
        y = torch.einsum("oc,nchw->nohw", block.pwconv1.weight, y) + block.pwconv1.bias.view(-1, 1, 1)
        y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
        y = torch.einsum("oc,nchw->nohw", block.pwconv2.weight, y) + block.pwconv2.bias.view(-1, 1, 1)
        if layer_scale:
            y = y * block.gamma.view(-1, 1, 1)
        assert share(block(x), x + y) < 1e-12
    assert (block.gamma is None) == (not layer_scale)


def test_drop_path_acts_in_training_only(stirred, noise):
    block, x = stirred(Block(DecomposedKernel(4, 7, 3), 4, drop_path=0.4)), noise(64, 4, 5, 5)
    with torch.no_grad():
        assert not any(torch.equal(a, b) for a, b in zip(block(x), x, strict=True))
        block.train()
        torch.manual_seed(0)
        assert 10 < sum(torch.equal(a, b) for a, b in zip(block(x), x, strict=True)) < 42  # of 64 images
    rates = [
        getattr(m.drop_path, "drop_prob", 0.0)
        for m in mini(drop_path_rate=0.3).modules()
        if isinstance(m, Block)
    ]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_weights_start_as_the_authors_draw_them():
    torch.manual_seed(0)
    network = models.build("slak_tiny", 10, {"dims": (16, 16, 24, 32), "kernel_sizes": (13, 13, 13, 13)})
    network.reset_classifier(300)
    state = network.state_dict()
    drawn = torch.cat([t.flatten() for t in state.values() if t.dim() > 1])
    assert drawn.std().item() == pytest.approx(0.02, rel=0.02) and drawn.mean().abs() < 2e-4
    assert network.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert all(not t.any() for key, t in state.items() if key.endswith(("bias", "running_mean")))
    assert all((t == 1e-6).all() for key, t in state.items() if key.endswith("gamma"))


@pytest.mark.parametrize("small", [0, 100])
def test_strips_need_an_odd_width(small):
    with pytest.raises(
        UsageError, match=f"small_kernel {small}: decomposed kernels are strips of this width"
    ):
        mini(small_kernel=small)


def test_preprocessing_is_that_of_the_authors_evaluation():
    spec = models.preprocess_of("slak_small_k7")
    assert (spec.input_size, spec.crop_pct, spec.crop_mode, spec.interpolation) == (
        (3, 224, 224),
        0.875,
        "center",
        "bicubic",
    )
    assert spec.mean == (0.485, 0.456, 0.406) and models.size_argument("slak_tiny", 160) == {}


def test_a_file_with_older_names_loads_as_pretrained_and_fits_other_classes_and_colors(tmp_path, stirred):
    weights = stirred(timm.create_model("slak_tiny", **MINI)).state_dict()
    torch.save(
        {"model": {key.replace("LoRA", "Decom"): value for key, value in weights.items()}},
        tmp_path / "published.pth",
    )
    overlay = {"file": str(tmp_path / "published.pth")}
    whole = timm.create_model("slak_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **MINI)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in whole.state_dict().items())
    other = timm.create_model(
        "slak_tiny", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, in_chans=1, **MINI
    )
    assert torch.equal(other.norm.weight, weights["norm.weight"]) and other.head.out_features == 3
    assert torch.allclose(
        other.downsample_layers[0][0].weight, weights["downsample_layers.0.0.weight"].sum(1, keepdim=True)
    )
