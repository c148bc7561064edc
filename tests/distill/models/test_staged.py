"""timm's interface, for every family that takes it from StagedNet."""

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch.nn import functional as F

from distill import models
from distill.losses.feature.taps import Taps
from distill.models.staged import drop_path_rates, per_stage
from runtime.errors import UsageError

SLAK = {
    "depths": (1, 1, 2, 1),
    "dims": (4, 6, 8, 12),
    "width_factor": 1.0,
    "kernel_sizes": (9, 7, 7, 5),
    "small_kernel": 3,
}
REPLKNET = {
    "depths": (1, 1, 2, 1),
    "channels": (4, 6, 8, 12),
    "kernel_sizes": (9, 7, 7, 5),
    "small_kernel": 3,
}
MINIS = {"slak_tiny": SLAK, "replknet_31b": REPLKNET}
each = pytest.mark.parametrize("name", MINIS)


def mini(name, classes=5, **more):
    return models.build(name, classes, MINIS[name] | more)


@each
def test_features_only_gives_the_maps_of_all_stages(name, stirred, noise):
    network = stirred(mini(name))
    features = timm.create_model(name, features_only=True, **MINIS[name]).eval()
    assert features.feature_info.reduction() == [4, 8, 16, 32] and features.feature_info.channels() == [
        4,
        6,
        8,
        12,
    ]
    missing = {key for key in network.state_dict() if not key.startswith(("norm.", "head."))}
    assert {key.removeprefix("model.") for key in features.state_dict()} == missing
    features.model.load_state_dict(network.state_dict(), strict=False)
    x = noise(2, 3, 64, 96)
    with torch.no_grad():
        maps = features(x)
        assert [tuple(m.shape) for m in maps] == [(2, 4, 16, 24), (2, 6, 8, 12), (2, 8, 4, 6), (2, 12, 2, 3)]
        caught = []
        hooks = [
            network.get_submodule(info["module"]).register_forward_hook(lambda _, __, y: caught.append(y))
            for info in network.feature_info
        ]
        last = network.forward_features(x)
        assert all(torch.equal(a, b) for a, b in zip(caught, maps, strict=True))
        [hook.remove() for hook in hooks]
        final, some = network.forward_intermediates(x, indices=[1, -1])
        assert torch.equal(final, last) and torch.equal(some[0], maps[1]) and torch.equal(some[1], maps[3])
        assert torch.equal(network.forward_intermediates(x, indices=2, intermediates_only=True)[0], maps[2])
        assert torch.equal(network.forward_intermediates(x, indices=[0], stop_early=True)[0], maps[0])
        normed = network.forward_intermediates(x, norm=True, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(normed[:3], maps[:3], strict=True))
        assert torch.equal(normed[3], last)
        assert torch.equal(last, network.norm(maps[3]) if network.norm_first else maps[3])


@each
def test_a_part_of_the_maps_needs_a_part_of_the_network(name, noise):
    features = timm.create_model(name, features_only=True, out_indices=(0, 1), **MINIS[name]).eval()
    assert len(features.model.stages) == 2 and features.feature_info.channels() == [4, 6]
    assert features.model.num_features == features.model.head_hidden_size == 6
    assert [m.shape[-1] for m in features(noise(1, 3, 32, 32))] == [8, 4]
    later = {f"{part}.{i}." for part in ("stages", "downsample_layers") for i in (2, 3)} | {
        "transitions.1.",
        "norm.",
        "head.",
    }
    assert not [key for key in features.state_dict() if key.removeprefix("model.").startswith(tuple(later))]


@each
def test_the_classifier_can_be_replaced_and_removed(name, stirred, noise):
    network, x = stirred(mini(name)), noise(2, 3, 32, 64)
    with torch.no_grad():
        last = network.forward_features(x)
        pooled = (
            last.mean((2, 3))
            if network.norm_first
            else F.layer_norm(last.mean((2, 3)), (12,), network.norm.weight, network.norm.bias, 1e-6)
        )
        assert torch.allclose(network.forward_head(last, pre_logits=True), pooled, atol=1e-6)
        assert torch.allclose(network(x), F.linear(pooled, network.head.weight, network.head.bias), atol=1e-5)
        network.reset_classifier(3)
        assert network.get_classifier().out_features == 3 == network.num_classes and network(x).shape == (
            2,
            3,
        )
        network.reset_classifier(0)
        assert torch.allclose(network(x), pooled, atol=1e-6)
        network.reset_classifier(0, "")
        assert torch.equal(network(x), last)
        network.reset_classifier(2, "max")
        assert network(x).shape == (2, 2)
        if network.norm_first:
            assert torch.equal(network.forward_head(last, pre_logits=True), last.flatten(2).max(2).values)
    assert network.double().reset_classifier(4) is None and network.head.weight.dtype == torch.float64


@each
def test_dropout_is_before_the_classifier_and_in_training_only(name, stirred, noise):
    network, x = stirred(mini(name, drop_rate=0.5)), noise(4, 3, 32, 32)
    last = network.forward_features(x)
    assert torch.equal(network.forward_head(last, True), network.forward_head(last, True))
    network.train()
    assert 8 < (network.forward_head(last, pre_logits=True) == 0).sum() < 40  # of 48


@each
def test_checkpointing_keeps_less_and_gives_the_same_gradients_and_maps(name, stirred, noise):
    def step(checkpointing):
        network = stirred(mini(name)).train()
        network.set_grad_checkpointing(checkpointing)
        kept = []
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t),
            Taps(network, (3, 32, 32)) as taps,
        ):
            taps.use(taps.stages)
            out = taps(noise(2, 3, 32, 32))
            (out.logits.square().sum() + sum(f.square().sum() for f in out.features)).backward()
        return {key: p.grad for key, p in network.named_parameters()}, sum(kept)

    plain, much = step(False)
    again, little = step(True)
    assert little < 0.6 * much
    assert all(
        torch.allclose(again[key], plain[key], rtol=1e-4, atol=1e-5 * plain[key].abs().max()) for key in plain
    )
    assert all(grad.any() for grad in plain.values())


@each
def test_groups_of_parameters_follow_the_depth(name):
    network = mini(name)
    groups = group_parameters(network, network.group_matcher())
    order = {key: number for number, names in groups.items() for key in names}
    assert len(order) == len(list(network.parameters()))
    infix = "blocks." if name == "replknet_31b" else ""
    firsts = [
        next(order[key] for key in order if key.startswith(f"stages.{i}.{infix}{j}."))
        for i, j in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))
    ]
    assert (
        firsts == sorted(set(firsts))
        and firsts[0] > 0
        and order["head.weight"] > order["norm.weight"] >= firsts[-1]
    )
    stem, between = (
        ("stem.3.conv.weight", "transitions.1.0.conv.weight")
        if infix
        else ("downsample_layers.0.0.weight", "downsample_layers.2.1.weight")
    )
    assert order[stem] == 0
    assert firsts[1] < order[between] <= firsts[2]
    assert len(group_parameters(network, network.group_matcher(coarse=True))) < len(groups)
    assert len({g["lr_scale"] for g in param_groups_layer_decay(network, layer_decay=0.5)}) == len(groups)


@each
@pytest.mark.parametrize(("stride", "side"), [(1, 4), (2, 2), (4, 1)])
def test_small_images_take_a_smaller_stem(name, stride, side, noise):
    stem = {"replknet_31b": "stem_stride", "slak_tiny": "patch_size"}[name]
    network = mini(name, in_chans=1, **{stem: stride}).eval()
    assert network.forward_features(noise(1, 1, 32, 32)).shape == (1, 12, side, side)
    assert network.feature_info[-1]["reduction"] == 32 // side


@each
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kernel_sizes": (9, 7, 5)}, "expected one entry per stage"),
        ({"depths": ()}, "expected one entry per stage"),
        ({"kernel_sizes": (9, 8, 7, 5)}, r"kernel sizes \[8\]: expected odd numbers"),
        ({"small_kernel": 4}, r"kernel sizes \[4\]: expected odd numbers"),
        ({"global_pool": "mean"}, "global_pool 'mean': expected one of 'avg'"),
        ({"global_pool": ""}, "Give num_classes=0 with it"),
    ],
)
def test_sizes_that_do_not_fit_together_are_one_line(name, arguments, said):
    with pytest.raises(UsageError, match=said) as caught:
        mini(name, **arguments)
    assert "\n" not in str(caught.value)


@each
def test_another_layout_of_maps_is_refused(name, noise):
    with pytest.raises(UsageError, match="gives NCHW"):
        mini(name).forward_intermediates(noise(1, 3, 32, 32), output_fmt="NHWC")


def test_rates_of_drop_path_grow_over_all_blocks():
    assert drop_path_rates(0.4, (1, 1, 2, 1)) == [
        [0.0],
        [pytest.approx(0.1)],
        [pytest.approx(0.2), pytest.approx(0.3)],
        [pytest.approx(0.4)],
    ]


def test_one_kernel_size_is_for_all_stages_and_an_unused_small_one_may_be_even():
    assert per_stage(7, (1, 1), (4, 8), 100) == [7, 7]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form", "kernels"),
    [
        ("slak_tiny", {"dims": (4, 6)}, 4),
        ("slak_tiny", {"dims": (4, 6), "decomposed": False}, 2),
        ("replknet_31b", {"channels": (4, 6)}, 2),
    ],
    ids=["strips", "square", "RepLKNet"],
)
def test_exported_as_plain_convolutions_with_the_same_logits(name, form, kernels, stirred, noise):
    for needed in ("onnx", "onnxscript", "onnxslim"):
        pytest.importorskip(needed)
    ort = pytest.importorskip("onnxruntime")
    from export.graph.from_torch import merge, to_onnx

    network, x = stirred(mini(name, depths=(1, 1), kernel_sizes=(9, 7), **form)), noise(3, 3, 32, 32)
    graph = to_onnx(merge(network), (3, 32, 32))
    assert sum(node.op_type == "Conv" and "large_kernel" in node.name for node in graph.graph.node) == kernels
    logits = ort.InferenceSession(graph.SerializeToString()).run(None, {"images": x.numpy()})[0]
    with torch.no_grad():
        expected = network(x)
    assert (torch.from_numpy(logits) - expected).abs().max() <= 1e-4 * expected.abs().max()
