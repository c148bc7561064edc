"""Networks whose weakness is known: the figures must say it."""

import numpy as np
import pytest

import runtime
from bench.comparing.robustness import asking
from bench.comparing.robustness.figures import robustness
from bench.comparing.robustness.views import Asked, constants_for, shift_pixels, views
from runtime import ArtifactError, DataError, Preprocess
from runtime.images import ArraySet, open_images

PLAIN = Preprocess(input_size=(3, 32, 32), crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))


class OnePatch:
    """Says 1 where the first 4 x 4 pixels are bright; sees nothing else."""

    preprocess, class_names, path, gives = PLAIN, ["dark", "bright"], "one_patch.onnx", "logits"

    def logits_in_batches(self, images, size):
        seen = images[:, :, :4, :4].mean(axis=(1, 2, 3))
        return np.stack([0.5 - seen, seen - 0.5], axis=1).astype(np.float32)


def lamps(n=400):
    """Black images; those of class 1 with a white patch in the corner."""
    x, y = np.zeros((n, 32, 32, 3), np.uint8), np.arange(n) % 2
    x[y == 1, :4, :4] = 255
    x[:, 31, 31] = np.random.default_rng(0).integers(0, 200, (n, 3))  # so that no two are alike
    return ArraySet("lamps", x, y, ["dark", "bright"])


def test_a_network_that_sees_one_patch_loses_what_occlusion_takes():
    asked = Asked(parts=("occlusion", "shuffle"), constants="cifar")
    answers = asking.ask([OnePatch()], lamps(), asked).answers[0]
    found = robustness(answers, answers, asked)
    curve = found.curves["occlusion"].accuracy_percent
    # half of the images are dark and stay right; of the others a share stays that is not occluded
    expected = [100 - 50 * share for share in (0, 0.1, 0.3, 0.5, 0.7, 0.9)]
    assert curve == pytest.approx(expected, abs=6)
    assert curve == sorted(curve, reverse=True)  # a larger share takes what a smaller one took
    # the corner comes back to its own place of 4, 16 or 64 with probability 1/4, 1/16, 1/64
    expected = [100, 50 + 50 / 4, 50 + 50 / 16, 50 + 50 / 64]
    assert found.curves["shuffle"].accuracy_percent == pytest.approx(expected, abs=5)


def test_a_network_that_sees_the_mean_color_is_shaken_by_nothing_that_moves(tiny, student, photos):
    asked = Asked(parts=("shuffle", "shifts", "crops"), constants="cifar")
    with runtime.load(student) as predictor:
        answers = asking.ask([predictor], open_images(str(photos), "val"), asked).answers[0]
    found = robustness(answers, answers, asked)
    assert found.curves["shuffle"].area.percent == 100
    assert found.steady["shifts"].mean == found.steady["crops"].mean == 100
    assert not found.corruptions and found.mce is None


def test_order_and_batch_change_no_answer():
    asked = Asked(corruptions=("gaussian_noise", "elastic_transform"), severities=(5,), constants="cifar")
    images = lamps(24)
    images.x[:] = np.random.default_rng(8).integers(100, 156, images.x.shape)
    first = asking.ask([OnePatch()], images, asked, batch=24).answers[0].classes
    back = ArraySet("back", images.x[::-1].copy(), images.labels[::-1], images.class_names)
    second = asking.ask([OnePatch()], back, asked, batch=5, workers=3).answers[0].classes
    assert np.array_equal(first, second[:, ::-1])
    assert 0 < (first[1:] != first[0]).mean() < 1  # the views do change answers


def test_classes_in_another_order_are_matched_by_name(tiny, photos, tmp_path):
    there = tiny.write(tmp_path / "s.onnx", meta=tiny.metadata())
    meta = tiny.metadata(class_names=["red", "green", "blue"])
    back = tiny.write(tmp_path / "t.onnx", weights=tiny.RIGHT[::-1], meta=meta)
    asked = Asked(corruptions=("contrast",), severities=(5,), constants="cifar")
    with runtime.load(there) as one, runtime.load(back) as other:
        found = asking.ask([one, other], open_images(str(photos), "val"), asked).answers
    assert found[0].right[0].all()
    assert np.array_equal(found[0].right, found[1].right)
    assert np.array_equal(found[0].classes, found[1].classes)


def test_unreadable_images_stop_or_are_left_out(student, photos):
    (photos / "green" / "1.png").write_bytes(b"junk")
    images, asked = open_images(str(photos), "val"), Asked(parts=("shifts",), constants="cifar")
    with runtime.load(student) as predictor:
        with pytest.raises(DataError, match=r"green.1\.png"):
            asking.ask([predictor], images, asked)
        found = asking.ask([predictor], images, asked, skip_bad=True, batch=5)
    assert found.answers[0].right.shape == (2, 11) and found.answers[0].right.all()
    assert [name[-11:] for name in found.skipped] == ["green/1.png"]


def test_a_drawn_part_is_seeded_and_in_order():
    some = asking.chosen(100, 10, seed=1)
    assert len(set(some)) == 10 and list(some) == sorted(some)
    assert np.array_equal(some, asking.chosen(100, 10, seed=1))
    assert not np.array_equal(some, asking.chosen(100, 10, seed=2))
    assert len(asking.chosen(5, 10, 0)) == len(asking.chosen(5, None, 0)) == 5


def test_what_is_shown_hangs_on_the_input_size():
    assert constants_for(PLAIN) == "cifar" and constants_for(Preprocess()) == "imagenet"
    assert shift_pixels(224) == (7, 14, 28) and shift_pixels(32) == (1, 2, 4) and shift_pixels(8) == (1,)
    asked = Asked(parts=("shifts", "occlusion"))
    assert [(each.part, each.level) for each in views(asked, PLAIN)][-4:] == [
        ("occlusion", 0.9),
        ("shifts", 1),
        ("shifts", 2),
        ("shifts", 4),
    ]
    with pytest.raises(ArtifactError, match="input of 7 pixels"):
        views(asked, Preprocess(input_size=(3, 9, 7), crop_pct=1.0))
