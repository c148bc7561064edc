"""The effective receptive field: counted pixel by pixel, differentiated by hand, the same for a and a
thousand times a.
"""

import numpy as np
import pytest
import torch
from torch import nn

from distill import models
from distill.data.sets import StreamSet
from distill.erf import field
from runtime.errors import DataError, GateError, UsageError
from runtime.images import ArraySet
from runtime.preprocess import Preprocess

CPU = torch.device("cpu")
SHARES = (0.1, 0.2, 0.3, 0.5, 0.9, 0.99)


def counted(amount, shares):
    """The definition word for word: try one square after the other and add up what it holds."""
    height, width = amount.shape
    sides = []
    for share in shares:
        found = None
        for i in range(1, min(height, width) // 2):
            inside = amount[height // 2 - i : height // 2 + i + 1, width // 2 - i : width // 2 + i + 1]
            if found is None and inside.sum() / amount.sum() > share:
                found = 2 * i + 1
        sides.append(found)
    return tuple(sides)


@pytest.mark.parametrize("shape", [(16, 16), (17, 17), (20, 31), (31, 20), (4, 4)])
@pytest.mark.parametrize("peak", [1e-3, 1.0, 1e3])
def test_squares_are_those_that_counting_finds(shape, peak):
    random = np.random.default_rng(0)
    y, x = np.mgrid[: shape[0], : shape[1]]
    score = peak * random.random(shape) * np.exp(-((y - shape[0] // 2) ** 2 + (x - shape[1] // 2) ** 2) / 40)
    found = field.from_score(score.astype(np.float32), thresholds=SHARES)
    assert found.scale_free.sides == counted(found.score.astype(np.float64), SHARES)
    assert found.reference.sides == counted(np.log10(found.score.astype(np.float64) + 1), SHARES)
    for each in (found.reference, found.scale_free):
        assert each.ratios == tuple(side and side**2 / (shape[0] * shape[1]) for side in each.sides)


def test_a_constant_matrix_by_hand():
    """64 x 64: the first odd side with side**2 > share * 4096 is 29 (841 > 819.2), 37, 47; 63**2 = 3969 is
    not above 4055.
    """
    found = field.from_score(np.ones((64, 64), np.float32))
    assert (
        found.reference
        == found.scale_free
        == field.Squares((29, 37, 47, None), (841 / 4096, 1369 / 4096, 2209 / 4096, None))
    )


def test_the_share_must_be_exceeded_and_the_smallest_square_is_3_by_3():
    score = np.zeros((11, 11), np.float32)
    score[5, 5] = 3
    score[0, 0] = 1
    assert field.squares(score, (0.1, 0.74, 0.75)).sides == (3, 3, None)


def test_the_scale_free_measure_is_the_same_for_any_scale_and_the_reference_is_not():
    random = np.random.default_rng(1)
    y, x = np.mgrid[:64, :64]
    score = (random.random((64, 64)) * np.exp(-np.hypot(y - 32, x - 32) / 4)).astype(np.float32)
    plain = field.from_score(score)
    for factor in (2.0**-20, 1e-6, 3.0, 1e3, 1e9):
        assert field.from_score(score * np.float32(factor)).scale_free == plain.scale_free
    assert field.from_score(1000 * score).reference.sides[0] > plain.reference.sides[0]


def test_the_reference_measure_tends_to_the_scale_free_one_for_small_scores():
    score = np.random.default_rng(2).random((40, 40))
    assert field.from_score(score * 1e-6).reference == field.from_score(score).scale_free


def test_nothing_is_reached_where_nothing_is_seen():
    found = field.from_score(np.zeros((8, 8), np.float32))
    assert found.reference == found.scale_free == field.Squares((None,) * 4, (None,) * 4)


# the score matrix


class Stack(nn.Module):
    """One convolution whose output is the last map."""

    feature_info = ({"module": "conv"},)

    def __init__(self, weight, bias=0.0):
        super().__init__()
        self.conv = nn.Conv2d(
            weight.shape[1],
            weight.shape[0],
            weight.shape[2:],
            padding=tuple(k // 2 for k in weight.shape[2:]),
        )
        with torch.no_grad():
            self.conv.weight.copy_(weight)
            self.conv.bias.fill_(bias)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


def test_the_score_of_one_convolution_is_its_kernel():
    """d map[4, 4] / d input[4 + dy, 4 + dx] is the kernel itself; what is negative counts 0; colors are
    added.
    """
    kernel = torch.tensor(
        [[[[1.0, -2, 3], [4, 5, -6], [7, 8, 9]], [[10.0, 0, 0], [0, 0, 60], [0, 0, -1]], [[0.0] * 3] * 3]]
    )
    found = field.measure(Stack(kernel, bias=100.0), [torch.zeros(2, 3, 9, 8), torch.rand(1, 3, 9, 8)], CPU)
    expected = np.zeros((9, 8))
    expected[3:6, 3:6] = [[11, 0, 3], [4, 5, 60], [7, 8, 9]]
    assert np.allclose(found.score, expected, atol=1e-5)
    assert found.score.dtype == np.float32
    assert (found.images, found.skipped) == (3, 0)


def test_a_channel_that_is_negative_at_the_center_counts_nothing():
    kernel = torch.ones(2, 3, 1, 1)
    kernel[1] *= 10
    images = torch.ones(1, 3, 6, 6)
    assert field.measure(Stack(kernel, bias=-5.0), [images], CPU).score[3, 3] == 30  # 3 - 5 < 0 < 30 - 5
    assert not field.measure(Stack(kernel, bias=-50.0), [images], CPU).score.any()


def test_the_score_is_the_mean_over_images_whatever_the_batch():
    torch.manual_seed(0)
    model = models.build("resnet20", 4, {"width": 0.25})
    images = torch.randn(5, 3, 16, 16)
    one_by_one = [field.measure(model, [image[None]], CPU).score for image in images]
    for size in (1, 2, 5):
        found = field.measure(model, images.split(size), CPU)
        assert np.allclose(found.score, np.mean(one_by_one, 0), rtol=1e-4, atol=1e-9)
        assert found.images == 5
    assert found.score.max() > 0


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    model = models.build("resnet20", 4, {"width": 0.25}).double().eval()
    image = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    gradient = field.input_gradient(model, image)

    def value(x):
        # 16 / 4 = 4, its center is 2
        return float(field.last_map(model, x)[0, :, 2, 2].relu().sum().detach())

    for place in [(0, 0, 8, 8), (0, 2, 7, 9), (0, 1, 3, 12)]:
        step = torch.zeros_like(image)
        step[place] = 1e-6
        assert float(gradient[place]) == pytest.approx(
            (value(image + step) - value(image - step)) / 2e-6, rel=1e-4, abs=1e-8
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_image_without_a_finite_gradient_is_left_out_and_counted(bad):
    class Square(Stack):
        def forward(self, x):
            return super().forward(x * x)

    images = torch.ones(3, 3, 6, 6)
    images[1, 0, 3, 3] = bad
    found = field.measure(Square(torch.ones(1, 3, 1, 1)), [images], CPU)
    assert (found.images, found.skipped) == (2, 1)
    assert found.score[3, 3] == 6  # three colors, each 2 x
    with pytest.raises(GateError, match="none of 1 images gives a finite gradient"):
        field.measure(Square(torch.ones(1, 3, 1, 1)), [images[1:2]], CPU)


def test_the_network_runs_in_eval_mode_and_comes_back_as_it_was():
    model = models.build("resnet20", 4, {"width": 0.25}).train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        first = field.measure(model, [torch.ones(2, 3, 16, 16)], CPU)
    assert model.training and model.layer2.training and not model.layer1.training
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["conv1.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.layer3._forward_hooks
    assert np.array_equal(first.score, field.measure(model.eval(), [torch.ones(2, 3, 16, 16)], CPU).score)


def test_measuring_may_be_stopped_after_a_batch():
    seen = []
    field.measure(
        Stack(torch.ones(1, 3, 1, 1)), torch.ones(5, 3, 6, 6).split(2), CPU, after_batch=seen.append
    )
    assert seen == [2, 4, 5]


# the last map


def output_of(model, name, images):
    kept = []
    hook = model.get_submodule(name).register_forward_hook(lambda module, given, output: kept.append(output))
    model(images)
    hook.remove()
    return kept[-1]


@pytest.mark.parametrize(
    ("name", "last", "arguments"),
    [
        ("resnet20", "layer3", {"width": 0.25}),
        ("resnet18", "layer4", {}),
        ("convnext_atto", "stages.3", {}),
        ("mobilenetv3_small_050", "blocks.5", {}),
        ("regnetx_002", "s4", {}),
        ("efficientnet_lite0", "blocks.6", {}),
    ],
)
def test_the_last_map_of_a_convnet_is_its_last_stage(name, last, arguments):
    torch.manual_seed(0)
    model, images = models.build(name, 4, arguments).eval(), torch.randn(2, 3, 64, 64)
    assert torch.equal(field.last_map(model, images), output_of(model, last, images))


def test_the_last_map_of_a_vit_is_its_last_tokens_without_the_class_token():
    model, images = (
        models.build("vit_tiny_patch16_224", 4, {"img_size": 64, "depth": 2}).eval(),
        torch.randn(2, 3, 64, 64),
    )
    tokens = output_of(model, "blocks.1", images)
    found = field.last_map(model, images)
    assert found.shape == (2, 192, 4, 4)
    assert torch.equal(found[1, :, 2, 3], tokens[1, 1 + 2 * 4 + 3])


def test_the_last_map_of_a_swin_is_channels_first():
    model = models.build(
        "swin_tiny_patch4_window7_224", 4, {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": 24}
    ).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(
        field.last_map(model, images), output_of(model, "layers.3", images).permute(0, 3, 1, 2)
    )


def test_a_network_without_stages_is_refused():
    with pytest.raises(UsageError, match="Sequential: names no stages"):
        field.last_map(nn.Sequential(nn.Conv2d(3, 3, 1)), torch.ones(1, 3, 4, 4))

    class Flat(Stack):
        feature_info = ({"module": "flat"},)

        def __init__(self):
            super().__init__(torch.ones(1, 3, 1, 1))
            self.flat = nn.Flatten()

        def forward(self, x):
            return self.flat(x)

    with pytest.raises(UsageError, match=r"last stage gives torch.Size\(\[1, 48\]\); expected a map"):
        field.last_map(Flat(), torch.ones(1, 3, 4, 4))


# images


def test_images_are_resized_whole_and_normalized():
    """The left half of a wide image is red: a center crop to a square would lose the outer columns, a resize
    keeps half red.
    """
    pixels = np.zeros((1, 20, 60, 3), np.uint8)
    pixels[0, :, :10] = (255, 0, 0)
    images = ArraySet("made", pixels, np.array([0]), ["a", "b"])
    own = Preprocess((3, 224, 224), "nearest", 0.5, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 0.5))
    (batch,) = field.read(images, [0], field.resized(own, 12, 12), 4)
    assert batch.shape == (1, 3, 12, 12)
    assert torch.equal(batch[0, 0, 0], torch.tensor([2.0] * 2 + [-2.0] * 10))  # (1 - 0.5) / 0.25
    assert torch.equal(batch[0, 1], torch.full((12, 12), -1.0))


def test_images_are_chosen_by_the_seed(images):
    mine = images(32)
    first = field.choose(mine, 5, 0)
    assert first == field.choose(mine, 5, 0) == sorted(set(first)) and len(first) == 5
    assert first != field.choose(mine, 5, 1)
    assert field.choose(mine, 99, 0) == list(range(32))


def test_an_unreadable_image_is_an_error_unless_skipped(broken):
    from runtime.images import FolderSet

    root, file = broken
    images = FolderSet(root / "train")
    indices = list(range(len(images)))
    spec = field.resized(Preprocess((3, 16, 16)), 16, 16)
    with pytest.raises(DataError, match=f"{file.name}.*--skip-bad-images"):
        list(field.read(images, indices, spec, 4))
    assert sum(len(batch) for batch in field.read(images, indices, spec, 4, skip_bad=True)) == len(images) - 1


def test_streamed_data_cannot_be_drawn_from(monkeypatch):
    monkeypatch.setattr(StreamSet, "__init__", lambda self: setattr(self, "name", "wds/x:y"))
    with pytest.raises(UsageError, match="wds/x:y: streamed data cannot be drawn from"):
        field.choose(StreamSet(), 5, 0)


def test_reading_draws_nothing_from_the_global_generator(images):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(field.read(images(8), [0, 1, 2], Preprocess((3, 8, 8)), 2))
    assert torch.equal(torch.rand(1), expected)


def test_plain_values_for_the_record():
    score = np.zeros((8, 8), np.float32)
    score[4, 4] = 2
    assert field.from_score(score, 5, 1).to_dict() == {
        "input_size": [8, 8],
        "images": 5,
        "skipped_images": 1,
        "thresholds": [0.2, 0.3, 0.5, 0.99],
        "largest_score": 2.0,
        "reference": {"sides": [3] * 4, "area_ratios": [9 / 64] * 4},
        "scale_free": {"sides": [3] * 4, "area_ratios": [9 / 64] * 4},
    }
