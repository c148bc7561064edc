"""Top-1, top-5, loss and agreement, on models whose logits are worked out by hand."""

import json
import math

import numpy as np
import pytest

import runtime
from bench import __main__ as cli
from bench import accuracy
from runtime import ArtifactError, DataError
from runtime.images import ArraySet, open_images

WRONG_RED = [[0, 0, 1], [0, 1, 0], [0, 1, 0]]
"""Red images get logits 0, 0, 0: a tie, which the lowest class (blue) wins."""


def evaluate(path, images, **changes):
    with runtime.load(path) as predictor:
        return accuracy.evaluate(predictor, images, **changes)


def test_all_right_is_100_percent_and_the_loss_is_the_formula(student, photos):
    result = evaluate(student, open_images(str(photos), "val"))
    # brightness b of the label's class, 0 for the others: loss = log(e^b + 2) - b
    levels = np.array([255, 229, 204, 178]) / 255  # 255 * (1, 0.9, 0.8, 0.7), rounded down
    by_hand = sum(math.log(math.exp(b) + 2) - b for b in levels) / 4
    assert (result.top1, result.top5, result.n) == (100.0, 100.0, 12)
    assert result.loss == pytest.approx(by_hand, abs=1e-6)
    assert result.logits.shape == (12, 3)


def test_a_tie_goes_to_the_lower_class(tiny, photos, tmp_path):
    path = tiny.write(tmp_path / "w.onnx", WRONG_RED, tiny.metadata())
    images = open_images(str(photos), "val")
    result = evaluate(path, images)
    assert result.top1 == pytest.approx(100 * 8 / 12)
    with runtime.load(path) as predictor:  # the same answer as the application gets
        assert predictor.classify(images.image(11))[0][0].label == "blue"


def test_ranks_and_top5_by_hand():
    logits = np.array([[9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4], [1, 1, 1, 1, 1, 1]], np.float32)
    assert accuracy.ranks(logits, np.array([4, 5, 2])).tolist() == [
        4,
        5,
        2,
    ]  # places 4 and 2 count for top-5, 5 does not


def test_top1_and_top5_of_a_set_by_hand(tiny, tmp_path):
    names = list("abcdefg")
    path = tiny.write(
        tmp_path / "m.onnx", np.zeros((7, 3)), tiny.metadata(class_names=names), bias=[7, 6, 5, 4, 3, 2, 1]
    )
    images = ArraySet(
        "arrays", np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 4, 5, 6]), names
    )  # places 1, 5, 6, 7
    result = evaluate(path, images)
    assert (result.top1, result.top5) == (25.0, 50.0)


def test_cross_entropy_by_hand():
    logits = np.array([[0, math.log(3)], [1000, 0]], np.float32)
    expected = (math.log(4 / 3) + 1000) / 2  # and no overflow at 1000
    assert accuracy.cross_entropy(logits, np.array([1, 1])) == pytest.approx(expected)


@pytest.mark.parametrize("batch", [1, 5, 12, 64])
def test_the_batch_size_changes_nothing(student, photos, batch):
    images = open_images(str(photos), "val")
    np.testing.assert_array_equal(
        evaluate(student, images, batch=batch).logits, evaluate(student, images, batch=12).logits
    )


def test_a_fixed_batch_is_filled_up_and_the_filling_is_not_counted(tiny, student, photos, tmp_path):
    images = open_images(str(photos), "val")
    fixed = evaluate(tiny.write(tmp_path / "five.onnx", meta=tiny.metadata(), batch=5), images, batch=64)
    assert fixed.n == 12
    np.testing.assert_array_equal(fixed.logits, evaluate(student, images).logits)


def test_a_limit_is_spread_over_the_classes(student, photos):
    result = evaluate(student, open_images(str(photos), "val"), limit=3)
    assert result.labels.tolist() == [0, 1, 2]
    assert accuracy.spread(10, 4).tolist() == [0, 2, 5, 7]
    assert len(accuracy.spread(3, 10)) == 3


def test_an_unreadable_image_stops_and_is_named(student, photos):
    (photos / "green" / "1.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"green.1\.png"):
        evaluate(student, open_images(str(photos), "val"))


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_skipped_images_are_counted_and_labels_stay_with_their_images(student, photos, batch):
    for name in ("blue/0.png", "green/1.png"):
        (photos / name).write_bytes(b"junk")
    result = evaluate(student, open_images(str(photos), "val"), skip_bad=True, batch=batch)
    assert (result.n, result.top1, len(result.skipped)) == (10, 100.0, 2)
    assert [name[-11:] for name in result.skipped] == ["/blue/0.png", "green/1.png"]
    assert result.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 4


def test_nothing_readable_is_an_error_even_when_skipping(student, photos):
    for path in photos.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no image of 'blue' \(4\), .*can be read"):
        evaluate(student, open_images(str(photos), "val"), skip_bad=True)


def test_classes_in_another_order_are_matched_by_name(tiny, photos, tmp_path):
    """The same network with its classes the other way around, weights and names: the same result."""
    there = tiny.write(tmp_path / "s.onnx", meta=tiny.metadata())
    meta = tiny.metadata(class_names=["red", "green", "blue"])
    back = tiny.write(tmp_path / "t.onnx", weights=tiny.RIGHT[::-1], meta=meta)
    images = open_images(str(photos), "val")
    result, other = evaluate(there, images), evaluate(back, images)
    assert other.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4  # files in the order of blue, green, red
    assert np.array_equal(result.logits, other.logits) and other.top1 == 100
    assert [each.name for each in other.classes] == ["blue", "green", "red"]
    found = accuracy.compare(other, result)
    assert (found.agreement_percent, found.max_abs_logit_difference) == (100, 0)


def test_another_number_of_classes_is_refused_when_names_are_unknown(tiny, photos, tmp_path):
    path = tiny.write(tmp_path / "s.onnx", np.zeros((4, 3)), tiny.metadata(class_names=None))
    with (
        pytest.warns(UserWarning, match="class_names"),
        pytest.raises(ArtifactError, match="4 scores per image"),
    ):
        evaluate(path, open_images(str(photos), "val"))


def test_nan_is_an_error_and_not_a_right_answer(tiny, photos, tmp_path):
    path = tiny.write(tmp_path / "s.onnx", bias=[0, math.nan, 0], meta=tiny.metadata())
    with pytest.raises(ArtifactError, match=r"blue.0\.png are not finite"):
        evaluate(path, open_images(str(photos), "val"))


def test_without_preprocessing_accuracy_is_refused(tiny, photos, tmp_path, capsys):
    argv = ["accuracy", "--engine", str(tiny.write(tmp_path / "f.onnx")), "--data", str(photos)]
    assert cli.main(argv) == 4
    assert "how images are preprocessed" in capsys.readouterr().err


def test_progress_counts_every_image_once(student, photos):
    done = []
    evaluate(student, open_images(str(photos), "val"), batch=5, progress=done.append)
    assert done == [5, 10, 12]


def test_the_reference_gives_agreement_and_the_largest_difference(tiny, student, photos, tmp_path, capsys):
    reference = tiny.write(tmp_path / "ref.onnx", WRONG_RED, tiny.metadata(role="teacher"))
    argv = [
        "accuracy",
        "--engine",
        str(student),
        "--reference",
        str(reference),
        "--data",
        str(photos),
        "--json",
    ]
    assert cli.main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agreement_percent"] == pytest.approx(100 * 8 / 12)  # all but the four red ones
    assert found["reference_top1_percent"] == pytest.approx(100 * 8 / 12)
    assert found["top1_difference_points"] == pytest.approx(100 * 4 / 12)
    assert (found["only_this_right"], found["only_reference_right"]) == (4, 0)
    assert 0 < found["difference_low_points"] < 100 / 3 < found["difference_high_points"]
    assert (found["agreement_low_percent"], found["agreement_high_percent"]) == pytest.approx(
        (39.06, 86.19), abs=0.005
    )
    assert (found["top1_low_percent"], found["top1_high_percent"]) == pytest.approx((75.75, 100), abs=0.005)
    assert found["max_abs_logit_difference"] == pytest.approx(1.0)  # pure green, or pure red: 1 against 0
    assert found["reference"]["role"] == "teacher"


def test_without_a_reference_its_values_are_null(student, photos, capsys):
    assert cli.main(["accuracy", "--engine", str(student), "--data", str(photos), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["top1_percent"], found["n"], found["skipped"]) == (100.0, 12, 0)
    assert found["reference"] is found["agreement_percent"] is found["max_abs_logit_difference"] is None


def test_each_class_and_their_mean(tiny, photos, tmp_path, capsys):
    """Red is taken for blue; 4, 4 and 1 images: top-1 is 8 of 9, the mean over the classes 2 of 3."""
    for number in range(1, 4):
        (photos / "red" / f"{number}.png").unlink()
    path = tiny.write(tmp_path / "w.onnx", WRONG_RED, tiny.metadata())
    argv = ["accuracy", "--engine", str(path), "--data", str(photos)]
    assert cli.main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["top1_percent"] == pytest.approx(100 * 8 / 9)
    assert found["balanced_percent"] == pytest.approx(100 * 2 / 3)
    assert found["classes"][2] == {"name": "red", "images": 1, "right": 0, "percent": 0.0}
    assert cli.main(argv) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "66.67" in said and "worst: red 0.00 % of 1, blue 100.00 % of 4" in said
    assert cli.main([*argv, "--csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "name,images,right,percent",
        "blue,4,4,100.0",
        "green,4,4,100.0",
        "red,1,0,0.0",
    ]
    assert cli.main([*argv, "--csv", "--json"]) == 2


def test_a_class_without_images_is_left_out_of_the_mean(student):
    x = np.zeros((2, 8, 8, 3), np.uint8)
    x[0, ..., 2] = x[1, ..., 0] = 255
    images = ArraySet("arrays", x, np.array([0, 2]), ["blue", "green", "red"])
    result = evaluate(student, images)
    assert result.balanced == 100.0 and [each.percent for each in result.classes] == [100.0, None, 100.0]


def test_the_command_skips_only_when_asked(student, photos, capsys):
    (photos / "red" / "3.png").write_bytes(b"junk")
    argv = ["accuracy", "--engine", str(student), "--data", str(photos)]
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "3.png" in err
    assert cli.main([*argv, "--skip-bad-images"]) == 0
    assert "1 unreadable images left out" in " ".join(
        capsys.readouterr().out.split()
    )  # the line may be wrapped


def test_the_data_may_be_arrays(student):
    x = np.zeros((2, 8, 8, 3), np.uint8)
    x[0, ..., 2] = x[1, ..., 0] = 255
    images = ArraySet("arrays", x, np.array([0, 2]), ["blue", "green", "red"])
    assert evaluate(student, images).top1 == 100.0


def test_results_of_different_images_are_not_compared(student, photos):
    images = open_images(str(photos), "val")
    with pytest.raises(ValueError, match="different images"):
        accuracy.compare(evaluate(student, images), evaluate(student, images, limit=3))


def test_a_class_of_a_list_that_only_the_training_split_has_need_not_be_known(tiny, student, photos):
    for name in ("red", "green", "blue", "aardvark"):
        (photos / "more" / name).mkdir(parents=True)
        source = photos / ("red" if name == "aardvark" else name)
        (photos / "more" / name / "0.png").write_bytes(next(source.glob("*.png")).read_bytes())
    rows = [f"more/{name}/0.png,{name},val" for name in ("red", "green", "blue")]
    train = [f"{photos}/{name}/0.png,{name},train" for name in ("red", "green", "blue")]
    for name in ("red", "green", "blue"):
        (photos / name / "0.png").write_bytes((photos / "more" / name / "0.png").read_bytes())
    listed = photos / "all.csv"
    listed.write_text("\n".join(["path,label,split", *rows, *train, "more/aardvark/0.png,aardvark,train"]))
    result = evaluate(student, open_images(str(listed), "val"))
    assert (result.top1, result.n) == (100.0, 3)
    with pytest.raises(DataError, match=r"has images of aardvark, a class that .* does not know"):
        evaluate(student, open_images(str(listed), "train"), split="train")
