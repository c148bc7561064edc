"""UniRepLKNet: published keys and sizes, dilated branches against their impulse response, exact merging,
timm's habits.
"""

import json
from itertools import product

import outside
import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn import functional as F

from distill import models
from distill.models.unireplknet import DILATED, Block, DilatedReparamBlock, GlobalResponseNorm, SqueezeExcite
from runtime.errors import UsageError

PARAMETERS = {
    "a": 4_649_060,
    "f": 6_489_328,
    "p": 11_080_520,
    "n": 18_818_880,
    "t": 31_693_420,
    "s": 56_456_704,
    "b": 99_089_416,
    "l": 220_076_056,
    "xl": 388_690_984,
}  # of the original classes with 1000 classes
DEPLOYED = {"a": 4_437_300, "t": 31_037_980, "s": 55_645_984}
MINI = {"depths": (1, 1, 2, 1), "dims": (8, 8, 12, 16), "kernel_sizes": (3, 7, (13, 3), 9)}


def mini(**more):
    return models.build("unireplknet_a", 5, MINI | more)


def equal(a, b, tolerance=1e-11):
    return ((a - b).abs().max() / b.abs().max()).item() < tolerance


@pytest.mark.parametrize("size", PARAMETERS)
def test_the_number_of_parameters_is_that_of_the_original(size, monkeypatch):
    monkeypatch.setattr(
        torch.Tensor, "clamp_", lambda tensor, *_, **__: tensor
    )  # slow on the meta device, to no effect
    with torch.device("meta"):
        network = timm.create_model(f"unireplknet_{size}")
        assert sum(p.numel() for p in network.parameters()) == PARAMETERS[size]
        if size in DEPLOYED:
            deployed = timm.create_model(f"unireplknet_{size}", deploy=True)
            assert sum(p.numel() for p in deployed.parameters()) == DEPLOYED[size]


@pytest.mark.parametrize("form", ["train", "merged", "deploy"])
def test_the_smallest_has_the_keys_of_the_original_in_order(form):
    name = "unireplknet_a.json" if form == "train" else f"unireplknet_a_{form}.json"
    file = outside.needed("golden", "state_dicts", name)
    network = timm.create_model("unireplknet_a", deploy=form == "deploy")
    if form == "merged":
        for block in network.modules():
            if isinstance(block, Block):
                block.reparameterize()
    found = [
        [key, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for key, tensor in network.state_dict().items()
    ]
    assert found == json.loads(file.read_text())["keys"]


@pytest.mark.parametrize("kernel_size", DILATED)
def test_a_merged_kernel_is_the_impulse_response_of_all_branches(kernel_size, stirred):
    """A linear map of shifts is known from what it makes of one lit pixel and of a black image."""
    block = stirred(DilatedReparamBlock(3, kernel_size)).double()
    half, dark = (
        kernel_size // 2,
        torch.zeros(1, 3, 2 * kernel_size + 1, 2 * kernel_size + 1, dtype=torch.float64),
    )
    lit = dark.clone()
    lit[:, :, kernel_size, kernel_size] = 1
    with torch.no_grad():
        bias = block(dark)
        response = (block(lit) - bias)[0]
    block.reparameterize()
    window = slice(kernel_size - half, kernel_size + half + 1)
    assert equal(block.lk_origin.weight[:, 0].flip(1, 2), response[:, window, window])
    assert torch.count_nonzero(response) == torch.count_nonzero(
        response[:, window, window]
    )  # nothing reaches further
    assert equal(block.lk_origin.bias, bias[0, :, 0, 0]) and bias.std((2, 3)).max() < 1e-12
    assert [name for name, _ in block.named_parameters()] == ["lk_origin.weight", "lk_origin.bias"]


@pytest.mark.parametrize(("kernel_size", "layer_scale"), product((3, 5, 7, 13), (0.0, 1e-6)))
def test_a_merged_block_computes_the_same(kernel_size, layer_scale, stirred, noise):
    block = stirred(Block(8, kernel_size, layer_scale_init_value=layer_scale)).double()
    x = noise(2, 8, 9, 7).double()
    with torch.no_grad():
        before = block(x) - x  # without the shortcut, which would hide a wrong branch
        block.reparameterize()
        after = block(x) - x
    assert equal(after, before)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in block.modules())


def test_merging_again_changes_nothing_and_the_deploy_form_takes_the_merged_weights(stirred, noise):
    network, x = stirred(mini()), noise(2, 3, 64, 64)
    with torch.no_grad():
        before = network(x)
        for _ in range(2):
            for block in network.modules():
                if isinstance(block, Block):
                    block.reparameterize()
        deployed = mini(deploy=True).eval()
        assert list(deployed.state_dict()) == list(network.state_dict())
        deployed.load_state_dict(network.state_dict())
        assert torch.equal(deployed(x), network(x)) and equal(network(x), before, 1e-5)


def test_global_response_norm_worked_out_by_hand():
    norm = GlobalResponseNorm(2)
    with torch.no_grad():
        norm.gamma.copy_(torch.tensor([1.0, 10.0]).view(1, 1, 1, 2))
        norm.beta.copy_(torch.tensor([0.5, 0.0]).view(1, 1, 1, 2))
    x = torch.tensor([[3.0, 1.0], [4.0, 0.0]]).view(
        1, 1, 2, 2
    )  # one row of two pixels; norms 5 and 1, their mean 3
    by_hand = [3 * (1 + 5 / 3) + 0.5, 1 * (1 + 10 / 3), 4 * (1 + 5 / 3) + 0.5, 0.0]
    assert norm(x)[0, 0].flatten().tolist() == pytest.approx(by_hand, rel=1e-5)


def test_a_black_map_has_finite_gradients():
    x = torch.zeros(1, 2, 2, 4, requires_grad=True)
    GlobalResponseNorm(4)(x).sum().backward()
    assert x.grad.isfinite().all()


def test_gates_depend_on_the_mean_of_the_map():
    gates = SqueezeExcite(4)
    with torch.no_grad():
        for p in gates.parameters():
            p.fill_(0.5)
    x = torch.stack([torch.full((2, 2), float(c)) for c in range(4)])[None]  # means 0 1 2 3
    inner = (0 + 1 + 2 + 3) * 0.5 + 0.5
    gate = torch.sigmoid(torch.tensor(inner * 0.5 + 0.5)).item()
    assert gates(x)[0, :, 1, 1].tolist() == pytest.approx([0.0, gate, 2 * gate, 3 * gate])


def test_weights_start_as_the_authors_draw_them():
    torch.manual_seed(0)
    state = models.build("unireplknet_a", 10).state_dict()
    drawn = [t for k, t in state.items() if t.dim() > 1 and not k.endswith(("gamma", "beta"))]
    everything = torch.cat([t.flatten() for t in drawn])
    assert everything.std().item() == pytest.approx(0.02, rel=0.01) and everything.mean().abs() < 1e-4
    assert all(t.std().item() == pytest.approx(0.02, rel=0.5) for t in drawn)
    assert all(
        not t.any() for k, t in state.items() if k.endswith(("bias", "act.1.gamma", "beta", "running_mean"))
    )
    assert {t.unique().item() for k, t in state.items() if k.endswith(".gamma") and t.dim() == 1} == {
        torch.tensor(1e-6).item()
    }
    assert all(
        (t == 1).all()
        for k, t in state.items()
        if k.endswith("running_var") or (t.dim() == 1 and k.endswith("weight"))
    )


def test_drop_path_grows_with_depth_and_acts_in_training_only(stirred, noise):
    network = stirred(mini(drop_path_rate=0.4))
    rates = [getattr(m.drop_path, "drop_prob", 0.0) for m in network.modules() if isinstance(m, Block)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    block, x = network.stages[3][0], noise(64, 16, 3, 3)
    with torch.no_grad():
        assert torch.equal(block(x), block(x)) and not any(
            torch.equal(a, b) for a, b in zip(block(x), x, strict=True)
        )
        block.train()
        torch.manual_seed(0)
        dropped = [torch.equal(a, b) for a, b in zip(block(x), x, strict=True)]
    assert 10 < sum(dropped) < 42  # 64 images at 0.4


def test_features_only_gives_the_maps_of_all_stages(stirred, noise):
    network = stirred(mini())
    features = timm.create_model("unireplknet_a", features_only=True, **MINI).eval()
    assert features.feature_info.reduction() == [4, 8, 16, 32] and features.feature_info.channels() == [
        8,
        8,
        12,
        16,
    ]
    missing = set(network.state_dict()) - {key.removeprefix("model.") for key in features.state_dict()}
    assert missing == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    features.model.load_state_dict(network.state_dict(), strict=False)
    x = noise(2, 3, 64, 96)
    with torch.no_grad():
        maps = features(x)
        assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 24), (2, 8, 8, 12), (2, 12, 4, 6), (2, 16, 2, 3)]
        assert torch.equal(maps[3], network.forward_features(x))
        last, some = network.forward_intermediates(x, indices=[1, -1])
        assert torch.equal(some[0], maps[1]) and torch.equal(some[1], maps[3]) and torch.equal(last, maps[3])
        assert torch.equal(network.forward_intermediates(x, indices=2, intermediates_only=True)[0], maps[2])
        assert torch.equal(network.forward_intermediates(x, indices=[0], stop_early=True)[0], maps[0])
        assert torch.equal(network.forward_intermediates(x, indices=[0])[0], maps[3])


def test_a_part_of_the_maps_needs_a_part_of_the_network(noise):
    features = timm.create_model("unireplknet_a", features_only=True, out_indices=(0, 1), **MINI).eval()
    assert len(features.model.stages) == len(
        features.model.downsample_layers
    ) == 2 and features.feature_info.channels() == [8, 8]
    assert [m.shape[-1] for m in features(noise(1, 3, 32, 32))] == [8, 4]


def test_the_classifier_can_be_replaced_and_removed(stirred, noise):
    network, x = stirred(mini()), noise(2, 3, 32, 32)
    with torch.no_grad():
        pooled = F.layer_norm(
            network.forward_features(x).mean((2, 3)), (16,), network.norm.weight, network.norm.bias, 1e-6
        )
        assert torch.allclose(
            network.forward_head(network.forward_features(x), pre_logits=True), pooled, atol=1e-6
        )
        assert torch.allclose(network(x), F.linear(pooled, network.head.weight, network.head.bias), atol=1e-5)
        network.reset_classifier(3)
        assert network.get_classifier().out_features == 3 == network.num_classes and network(x).shape == (
            2,
            3,
        )
        network.reset_classifier(0)
        assert network(x).shape == (2, network.num_features) == (2, 16)
        network.reset_classifier(0, "")
        assert torch.equal(network(x), network.forward_features(x))


def test_checkpointing_keeps_less_and_gives_the_same_gradients(stirred, noise):
    def step(checkpointing):
        network = stirred(mini()).train()
        network.set_grad_checkpointing(checkpointing)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            network(noise(2, 3, 32, 32)).square().sum().backward()
        return {name: p.grad for name, p in network.named_parameters()}, sum(kept)

    plain, much = step(False)
    again, little = step(True)
    assert little < 0.5 * much
    assert all(
        torch.allclose(again[name], plain[name], rtol=1e-4, atol=1e-5 * plain[name].abs().max())
        for name in plain
    )


def test_every_parameter_gets_a_gradient(stirred, noise):
    network = stirred(mini()).train()
    network(noise(2, 3, 32, 32)).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_groups_of_parameters_follow_the_depth():
    network = mini()
    groups = group_parameters(network, network.group_matcher())
    order = {name: number for number, names in groups.items() for name in names}
    assert order["downsample_layers.0.3.weight"] == 0
    depth = [order[f"stages.{i}.{j}.pwconv1.1.weight"] for i, j in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))]
    assert depth == sorted(set(depth)) and depth[0] > 0
    assert order["head.weight"] > order["norm.weight"] == depth[-1]
    assert order["downsample_layers.2.0.weight"] == order["stages.2.0.dwconv.lk_origin.weight"]
    assert len(order) == len(list(network.parameters()))
    coarse = group_parameters(network, network.group_matcher(coarse=True))
    assert len(coarse) < len(groups)
    assert len({g["lr_scale"] for g in param_groups_layer_decay(network, layer_decay=0.5)}) == len(groups)


@pytest.mark.parametrize(("stem_stride", "side"), [(1, 4), (2, 2), (4, 1)])
def test_small_images_take_a_smaller_stem(stem_stride, side, noise):
    network = mini(stem_stride=stem_stride, in_chans=1).eval()
    assert network.forward_features(noise(1, 1, 32, 32)).shape == (1, 16, side, side)
    assert network.feature_info[-1]["reduction"] == 32 // side


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kernel_sizes": (3, 8, 13, 13)}, "kernel size 8 has no dilated branches"),
        ({"kernel_sizes": (3, 13, 13)}, "one entry per stage"),
        ({"kernel_sizes": (3, 13, (13, 3, 3), 13)}, "stage 2 has 2 blocks"),
        ({"dims": (6, 8, 12, 16)}, "not divisible by 4"),
        ({"stem_stride": 8}, "stem_stride 8"),
    ],
)
def test_sizes_that_do_not_fit_together_are_one_line(arguments, said):
    with pytest.raises(UsageError, match=said) as caught:
        mini(**arguments)
    assert "\n" not in str(caught.value)


def test_preprocessing_is_that_of_the_authors_evaluation():
    small, large = models.preprocess_of("unireplknet_t"), models.preprocess_of("unireplknet_xl")
    assert (small.input_size, small.crop_pct, small.crop_mode, small.interpolation) == (
        (3, 224, 224),
        0.875,
        "center",
        "bicubic",
    )
    assert (large.input_size, large.crop_pct, large.crop_mode) == ((3, 384, 384), 1.0, "squash")


@pytest.mark.parametrize("wrapped", [False, True])
def test_published_weights_are_fetched_unwrapped_and_fitted_to_other_classes_and_colors(
    monkeypatch, stirred, wrapped
):
    weights = stirred(timm.create_model("unireplknet_a", **MINI)).state_dict()

    def fetch(repository, file, **_):
        assert (repository, file) == ("DingXiaoH/UniRepLKNet", "unireplknet_a_in1k_224_acc77.03.pth")
        return {"model": dict(weights)} if wrapped else dict(weights)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fetch)
    whole = timm.create_model("unireplknet_a", pretrained=True, **MINI)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in whole.state_dict().items())
    other = timm.create_model("unireplknet_a", pretrained=True, num_classes=3, in_chans=1, **MINI)
    assert torch.equal(other.norm.weight, weights["norm.weight"]) and other.head.out_features == 3
    assert torch.allclose(
        other.downsample_layers[0][0].weight, weights["downsample_layers.0.0.weight"].sum(1, keepdim=True)
    )
