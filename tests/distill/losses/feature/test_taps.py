"""Taps: the model's own logits, the right maps in one layout, nothing left behind; and which stages are
matched.
"""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from distill import losses, models
from distill.losses.base import Outputs
from distill.losses.feature.taps import Stage, Taps, choose, match, pair_lines
from runtime.errors import UsageError

TINY_SWIN = {
    "img_size": 64,
    "embed_dim": 8,
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 2, 2, 4),
    "window_size": 2,
}
TINY_DEIT = {"img_size": 64, "embed_dim": 24, "depth": 6, "num_heads": 3}
TINY_SVT = {
    "img_size": 64,
    "embed_dims": (8, 16, 16, 32),
    "num_heads": (1, 2, 2, 4),
    "depths": (1, 1, 1, 1),
    "wss": (4, 4, 4, 2),
    "sr_ratios": (8, 4, 2, 1),
}
TINY = {"depths": (1, 1, 1, 1), "kernel_sizes": (13, 11, 9, 7)}
FAMILIES = {
    "resnet": ("test_resnet", {}, ["act1", "layer1", "layer2", "layer3", "layer4"], (2, 4, 8, 16, 32)),
    "convnext": ("test_convnext", {}, [f"stages.{i}" for i in range(4)], (4, 8, 16, 32)),
    "mobilenetv3": (
        "mobilenetv3_small_050",
        {},
        ["bn1", "blocks.0", "blocks.1", "blocks.3", "blocks.5"],
        (2, 4, 8, 16, 32),
    ),
    "efficientnet": ("test_efficientnet", {}, [f"blocks.{i}" for i in range(5)], (2, 4, 8, 16, 32)),
    "swin": ("swin_tiny_patch4_window7_224", TINY_SWIN, [f"layers.{i}" for i in range(4)], (4, 8, 16, 32)),
    "vit": ("test_vit", {"img_size": 64}, [f"blocks.{i}" for i in range(6)], (16,) * 6),
    "deit": ("deit_tiny_distilled_patch16_224", TINY_DEIT, [f"blocks.{i}" for i in range(6)], (16,) * 6),
    "slak": ("slak_tiny", TINY | {"dims": (8, 8, 16, 16)}, [f"stages.{i}" for i in range(4)], (4, 8, 16, 32)),
    "replknet": (
        "replknet_31b",
        TINY | {"channels": (8, 16, 16, 24)},
        [f"stages.{i}" for i in range(4)],
        (4, 8, 16, 32),
    ),
    "unireplknet": (
        "unireplknet_a",
        {"depths": (1, 1, 2, 1), "dims": (8, 16, 16, 24)},
        [f"stages.{i}" for i in range(4)],
        (4, 8, 16, 32),
    ),
    "twins": (
        "twins_svt_small",
        TINY_SVT,
        [f"block.{i}" for i in range(4)],
        (4, 8, 16, 32),
    ),  # its modules have other names
    "resnet20": ("resnet20", {"width": 0.25}, ["layer1", "layer2", "layer3"], (1, 2, 4)),
}


def build(family, seed=0):
    torch.manual_seed(seed)
    name, settings, *_ = FAMILIES[family]
    return models.build(name, 5, settings)


def images(n=2, seed=3):
    torch.manual_seed(seed)
    return torch.randn(n, 3, 64, 64)


def tapped(model, size=64):
    taps = Taps(model, (3, size, size))
    taps.use(taps.stages)
    return taps


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_are_those_of_feature_info_with_measured_sizes(family):
    _, _, names, strides = FAMILIES[family]
    stages = Taps(build(family), (3, 64, 64)).stages
    assert [stage.name for stage in stages] == names
    assert tuple(stage.stride for stage in stages) == strides
    assert [(stage.height, stage.width) for stage in stages] == [
        (64 // stride, 64 // stride) for stride in strides
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own_and_maps_are_timms_own(family):
    model = build(family).eval()
    with torch.no_grad():
        plain = model(images())
        out = tapped(model)(images())
        assert torch.equal(out.logits, plain)
        if hasattr(model, "forward_intermediates"):
            theirs = model.forward_intermediates(images(), intermediates_only=True, output_fmt="NCHW")
        else:  # resnet20
            first = nn.Sequential(model.conv1, model.bn1, nn.ReLU(), model.layer1)(images())
            theirs = [first, model.layer2(first), model.layer3(model.layer2(first))]
    assert len(out.features) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(out.features, theirs, strict=True))


@pytest.mark.parametrize("family", ["resnet", "swin", "vit"])
def test_training_with_taps_is_training_without_to_the_bit(family):
    plain, watched = build(family).train(), build(family).train()
    out = tapped(watched)(images())
    plain(images()).square().sum().backward()
    out.logits.square().sum().backward()
    for (key, a), (_, b) in zip(plain.named_parameters(), watched.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), key
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_measuring_leaves_the_model_as_it_was(family):
    model = build(family).train()
    frozen = next(m for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm))).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    taps = tapped(model)
    assert model.training
    assert not frozen.training
    assert torch.equal(random, torch.get_rng_state())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    taps.close()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_sample_leaves_the_statistics_where_they_are():
    model = build("mobilenetv3").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sample = tapped(model).sample(images())
    assert not any(x.requires_grad for x in (sample.logits, *sample.features))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training
    assert torch.equal(sample.logits, model.eval()(images()))


def test_closing_takes_the_hooks_off():
    model = build("resnet")
    with Taps(model, (3, 64, 64)) as taps:
        taps.use(taps.stages[:2])
        assert sum(len(module._forward_hooks) for module in model.modules()) == 2
        taps.use(taps.stages[-1:])
        assert sum(len(module._forward_hooks) for module in model.modules()) == 1
    assert not any(module._forward_hooks for module in model.modules())
    assert taps(images()).features == ()


def test_stages_come_in_the_order_asked_for_and_twice_where_asked():
    taps = Taps(build("resnet"), (3, 64, 64))
    a, b = taps.stages[1:3]
    taps.use([b, a, b])
    assert [x.shape[1] for x in taps(images()).features] == [b.channels, a.channels, b.channels]


def test_nothing_is_kept_after_a_step():
    model = build("resnet")
    taps = tapped(model)
    out = taps(images())
    kept = [weakref.ref(x) for x in (out.logits, *out.features)]
    del out
    gc.collect()
    assert all(ref() is None for ref in kept)
    model(images())  # not through the taps
    assert taps._caught is None


def test_a_copy_of_the_model_is_not_tapped():
    model = build("resnet")
    taps = tapped(model)
    duplicate = copy.deepcopy(model)  # as an EMA makes it
    assert list(duplicate.state_dict()) == list(build("resnet").state_dict())
    duplicate(images())
    assert taps._caught is None


@pytest.mark.parametrize("family", ["convnext", "vit"])
def test_gradient_checkpointing_keeps_the_gradients_of_the_maps(family):
    grads = []
    for checkpointed in (False, True):
        model = build(family).train()
        model.set_grad_checkpointing(checkpointed)
        out = tapped(model)(images())
        sum(x.square().mean() for x in out.features).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 10
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_a_map_that_cannot_pass_a_gradient_is_refused():
    model = build("resnet").train()
    model.conv1.requires_grad_(False)
    model.bn1.requires_grad_(False)
    taps = tapped(model)
    with pytest.raises(UsageError, match="stage act1 gives a map without gradient"):
        taps(images())
    taps.use(taps.stages[1:])
    assert taps(images()).features[0].requires_grad
    with torch.no_grad():
        assert len(tapped(model)(images()).features) == 5


class InPlace(nn.Module):
    """A network whose second layer writes into the first one's output."""

    def __init__(self):
        super().__init__()
        self.feature_info = [
            {"num_chs": 4, "reduction": 1, "module": "a"},
            {"num_chs": 4, "reduction": 1, "module": "b"},
        ]
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 1), nn.Hardtanh(inplace=True), nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.b(self.a(x)).mean((2, 3)))


def test_a_map_that_the_network_overwrites_is_copied_in_time():
    model = InPlace()
    taps = tapped(model)
    assert [stage.overwritten for stage in taps.stages] == [True, False]
    x = 10 * images()
    first, second = taps(x).features
    assert torch.equal(first, model.a(x))
    assert torch.equal(second, model.a(x).clamp(-1, 1))
    with torch.inference_mode():
        assert torch.equal(taps(x).features[0], first)


def test_a_compiled_model_gives_the_same_in_one_graph():
    model = build("resnet20").eval()
    with torch.no_grad():
        expected = tapped(model, 32)(images())
    again = build("resnet20").eval()
    taps = Taps(again, (3, 32, 32), torch.compile(again, backend="aot_eager", fullgraph=True))
    taps.use(taps.stages)
    for _ in range(2):
        out = taps(images())
        assert torch.allclose(out.logits, expected.logits, atol=1e-5)
        assert len(out.features) == 3
        assert all(
            torch.allclose(a, b, atol=1e-5) for a, b in zip(out.features, expected.features, strict=True)
        )
        assert all(x.requires_grad for x in out.features)


def test_autocast_reaches_the_maps():
    taps = tapped(build("convnext").eval())
    with torch.autocast("cpu", torch.bfloat16):
        out = taps(images())
    assert out.logits.dtype == torch.bfloat16
    assert [x.shape for x in out.features] == [(2, s.channels, s.height, s.width) for s in taps.stages]


def test_tokens_of_images_of_another_size_are_refused():
    model = models.build("test_vit", 5, {"img_size": 64, "dynamic_img_size": True})
    with pytest.raises(UsageError, match="36 tokens where 4 x 4"):
        tapped(model)(torch.randn(2, 3, 96, 96))


def test_maps_of_convolutions_may_change_size():
    assert tapped(build("resnet"))(torch.randn(2, 3, 96, 96)).features[-1].shape[2:] == (3, 3)


class Windows(nn.Module):
    """A network that keeps its tokens by window, not by row; timm's method knows how to put them back."""

    def __init__(self):
        super().__init__()
        self.feature_info = [{"num_chs": 3, "reduction": 2, "module": "mix"}]
        self.mix, self.fc = nn.Identity(), nn.Linear(3, 5)

    def forward_intermediates(self, x, intermediates_only=False):
        x = nn.functional.avg_pool2d(x, 2)
        return [x] if intermediates_only else (x, [x])

    def forward_head(self, x):
        return self.fc(x.mean((2, 3)))

    def forward(self, x):
        return self.fc(self.mix(nn.functional.avg_pool2d(x, 2).flatten(2).mT.flip(1)).mean(1))


def test_tokens_in_another_order_are_put_back_by_timm():
    model = Windows()
    taps = tapped(model, 8)
    x = torch.randn(2, 3, 8, 8)
    out = taps.sample(x)  # without gradient: nothing is learned before the map
    assert torch.equal(out.features[0], nn.functional.avg_pool2d(x, 2))
    assert torch.allclose(out.logits, model(x))


def test_maps_that_only_timm_can_give_need_the_plain_network():
    model = build("twins")
    assert [stage.layout for stage in Taps(model, (3, 64, 64)).stages] == ["timm"] * 4
    with pytest.raises(UsageError, match="cannot be compiled"):
        Taps(model, (3, 64, 64), torch.compile(model, backend="eager"))


def test_timms_maps_are_not_taken_where_they_lead_to_other_logits():
    model = Windows()
    model.forward_head = lambda x: model.fc(x.amax((2, 3)))
    with pytest.raises(UsageError, match="no last stage"):
        Taps(model, (3, 8, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "feature_info", None), "InPlace has no last stage"),
        (
            lambda m: setattr(m, "feature_info", [{"num_chs": 3, "reduction": 2, "module": "gone"}]),
            "InPlace has no last stage",
        ),
        (
            lambda m: m.feature_info.append({"num_chs": 9, "reduction": 2, "module": "b"}),
            "InPlace has no last stage",
        ),
        (lambda m: setattr(m, "forward", lambda x: (x, x)), "more than logits"),
    ],
)
def test_networks_that_cannot_be_tapped_say_so(change, message):
    model = InPlace()
    change(model)
    with pytest.raises(UsageError, match=message):
        Taps(model, (3, 8, 8))


# matching


def row(*strides, image=224, names="s"):
    return [
        Stage(i, f"{names}{i}", 8, image // stride, image // stride, stride, image)
        for i, stride in enumerate(strides)
    ]


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([4, 8, 16, 32], [4, 8, 16, 32], {0: 0, 1: 1, 2: 2, 3: 3}),
        ([2, 4, 8, 16, 32], [4, 8, 16, 32], {1: 0, 2: 1, 3: 2, 4: 3}),  # the stem has no partner of its own
        ([4, 8, 16, 32], [2, 4, 8, 16, 32], {0: 1, 1: 2, 2: 3, 3: 4}),
        ([4, 8, 16, 32], [16] * 12, {2: 8, 3: 11}),  # ViT: blocks 2, 5, 8, 11 are looked at
        ([8, 16, 32], [14] * 24, {1: 17, 2: 23}),
        ([16] * 12, [4, 8, 16, 32], {8: 2, 11: 3}),
        ([16] * 12, [16] * 24, {2: 5, 5: 11, 8: 17, 11: 23}),
        ([16] * 12, [32] * 12, {2: 2, 5: 5, 8: 8, 11: 11}),
        (
            [1, 2, 4],
            [4, 8, 16, 32],
            {1: 0, 2: 3},
        ),  # one image: stride 2 is nearest to 4; the deepest go together
        ([4, 8, 16, 32], [1, 2, 4], {0: 1, 3: 2}),
        ([1, 2, 4], [16] * 12, {1: 8, 2: 11}),
        ([8, 32], [4, 16, 32], {0: 1, 1: 2}),  # 8 lies between 4 and 16: the deeper
        ([4, 16, 32], [8, 32], {1: 0, 2: 1}),
        ([4, 8, 16], [4, 8, 16, 32], {0: 0, 1: 1, 2: 3}),
        ([4, 8, 16, 32], [32], {3: 0}),
        ([32], [4, 8, 16, 32], {0: 3}),
    ],
)
def test_stages_are_matched_by_stride(student, teacher, expected):
    pairs = match(row(*student), row(*teacher))
    assert {s.index: t.index for s, t in pairs} == expected
    assert [s.index for s, _ in pairs] == sorted(expected)


def test_strides_are_shares_of_the_image_where_the_inputs_differ():
    # maps of 32, 16 and 8 positions per side for the student, of 56, 28, 14 and 7 for the teacher
    pairs = match(row(1, 2, 4, image=32), row(4, 8, 16, 32, image=224))
    assert {s.index: t.index for s, t in pairs} == {0: 1, 1: 2, 2: 3}


def test_the_last_stages_alone():
    pairs = match(row(4, 8, 16), row(8, 16, 32), "last")
    assert [(s.stride, t.stride) for s, t in pairs] == [(16, 32)]


@pytest.mark.parametrize("text", ["2:1,0:3", " 0 : 3 , 2 : 1 ", "s2:t1,s0:t3"])
def test_pairs_by_hand_are_numbers_or_module_names(text):
    pairs = match(row(4, 8, 16), row(4, 8, 16, 32, names="t"), text)
    assert [(s.index, t.index) for s, t in pairs] == [(0, 3), (2, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first", "expected last, all, or pairs"),
        ("1:", "expected last, all, or pairs"),
        ("1:1,", "expected last, all, or pairs"),
        ("7:1", r"student has no stage '7'. Its stages: 0 s0 8x56x56 \(stride 4\), 1 s1"),
        ("1:t9", "teacher has no stage 't9'"),
        ("1:1,1:1", "named twice"),
    ],
)
def test_pairs_that_are_not_there_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        match(row(4, 8), row(4, 8), text)


def test_a_pair_is_described_in_one_line():
    student = Stage(2, "layer2", 128, 28, 28, 8, 224)
    teacher = Stage(1, "stages.1", 249, 28, 28, 8, 224)
    assert pair_lines([(student, teacher)]) == [
        "stage 2: student layer2 128x28x28 (stride 8) learns from teacher stages.1 249x28x28 (stride 8)"
    ]


# families together

PAIRS = [
    ("resnet", "swin"),
    ("resnet", "vit"),
    ("mobilenetv3", "convnext"),
    ("convnext", "deit"),
    ("resnet20", "convnext"),
    ("vit", "swin"),
    ("resnet", "slak"),
]


@pytest.mark.parametrize("name", losses.FEATURE)
@pytest.mark.parametrize(("student", "teacher"), PAIRS, ids=["<-".join(pair) for pair in PAIRS])
def test_every_loss_trains_every_student_from_every_teacher(student, teacher, name):
    ours, theirs = build(student).train(), build(teacher, seed=1).eval().requires_grad_(False)
    ours_tapped, theirs_tapped = Taps(ours, (3, 64, 64)), Taps(theirs, (3, 64, 64))
    pairs = match(ours_tapped.stages, theirs_tapped.stages)
    ours_tapped.use(s for s, _ in pairs)
    theirs_tapped.use(t for _, t in pairs)
    x = images(4)
    with torch.inference_mode():
        seen = theirs_tapped(x)
    wanted = Outputs(
        seen.logits.clone(), tuple(f.clone() for f in seen.features)
    )  # as distill.teacher hands them on
    loss = losses.create(name)
    loss.prepare(ours_tapped.sample(x), wanted, theirs)
    optimizer = torch.optim.SGD([*ours.parameters(), *loss.parameters()], lr=1e-3)
    weights = [p.detach().clone() for p in theirs.parameters()]
    target = torch.tensor([0, 1, 2, 3])
    for _ in range(2):
        optimizer.zero_grad()
        value = loss(ours_tapped(x), wanted, target)
        value.backward()
        optimizer.step()
    assert torch.isfinite(value)
    assert all(
        torch.isfinite(p.grad).all() for p in [*ours.parameters(), *loss.parameters()] if p.grad is not None
    )
    assert next(ours.parameters()).grad.abs().max() > 0  # down to the first layer
    assert all(
        p.grad is None and torch.equal(p, w) for p, w in zip(theirs.parameters(), weights, strict=True)
    )


def test_stages_of_the_student_alone():
    five = [Stage(i, f"s{i}", 8, 64 // s, 64 // s, s, 64) for i, s in enumerate((2, 4, 8, 16, 32))]
    blocks = [Stage(i, f"blocks.{i}", 8, 4, 4, 16, 64) for i in range(12)]
    assert choose(five) == five[1:]  # not the stem
    assert choose(five[2:]) == five[2:]
    assert choose(five, "last") == [five[4]]
    assert choose(five, "3, 1:7,s3") == [
        five[1],
        five[3],
    ]  # by number or module, a teacher's stage beside it or not
    assert [stage.index for stage in choose(blocks)] == [2, 5, 8, 11]
    with pytest.raises(UsageError, match="the student has no stage '5'"):
        choose(five, "5")
