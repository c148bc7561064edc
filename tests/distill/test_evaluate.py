"""Accuracy: counted by hand, over all images, on the device asked for; and `distill eval`."""

import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from distill import checkpoint as checkpoints
from distill import models
from distill.__main__ import main
from distill.checkpoint import Checkpoint
from distill.data import Batch, eval_loader
from distill.evaluate import evaluate, pick_device, require_whole
from runtime.errors import DataError, MissingError, UsageError
from runtime.preprocess import Preprocess

CPU = torch.device("cpu")
NAMES = ["ant", "bee", "cat", "dog"]


class Flat(nn.Module):
    def forward(self, x):
        return x.flatten(1)


def batches(logits, labels, sizes, bad=()):
    """Batches whose images are the logits themselves."""
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        yield Batch(
            torch.tensor(logits[part], dtype=torch.float32).view(size, -1, 1, 1),
            torch.tensor(labels[part]),
            list(bad),
        )
        start += size


def test_counts_as_by_hand():
    logits = [[9.0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]]
    found = evaluate(Flat(), batches(logits, [0, 6, 2, 1], [3, 1]), CPU)  # best; best; fifth; sixth
    by_hand = -np.mean(
        [
            row[label] - math.log(sum(map(math.exp, row)))
            for row, label in zip(logits, [0, 6, 2, 1], strict=True)
        ]
    )
    assert (found.top1, found.top5, found.images, found.skipped) == (50.0, 75.0, 4, 0)
    assert found.loss == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_balanced_accuracy_is_scikit_learns():
    from sklearn.metrics import balanced_accuracy_score, recall_score

    random = np.random.default_rng(0)
    labels = random.choice([0, 1, 3], 50, p=[0.8, 0.15, 0.05]).tolist()  # class 2 has no image
    logits = random.normal(size=(50, 4)).tolist()
    found = evaluate(Flat(), batches(logits, labels, [20, 30]), CPU)
    chosen = np.argmax(logits, axis=1)
    known = [each.percent for each in found.of_classes(NAMES) if each.percent is not None]
    assert known == pytest.approx(100 * recall_score(labels, chosen, labels=[0, 1, 3], average=None))
    assert found.balanced == pytest.approx(100 * balanced_accuracy_score(labels, chosen))
    assert [each.name for each in found.of_classes(NAMES) if each.percent is None] == ["cat"]


def test_the_last_smaller_batch_weighs_by_its_images():
    found = evaluate(Flat(), batches([[1.0, 0], [1, 0], [1, 0], [0, 1]], [0, 0, 0, 0], [3, 1]), CPU)
    assert found.top1 == 75.0
    assert found.top5 == 100.0  # of two classes


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_the_batch_size_changes_nothing(images, batch):
    torch.manual_seed(0)
    model, mine = models.build("resnet20", 4, {"width": 0.25}), images(16)
    spec = Preprocess((3, 16, 16), "bilinear", 1.0)
    found = evaluate(model, eval_loader(mine, spec, batch, 0, CPU), CPU)
    with torch.inference_mode():
        logits = model.eval()(torch.from_numpy(spec.batch(list(mine.x))))
    assert found.top1 == pytest.approx(100 * (logits.argmax(1).numpy() == mine.labels).mean())
    assert found.loss == pytest.approx(-logits.log_softmax(1)[range(16), mine.labels].mean().item(), rel=1e-4)


def test_uses_the_network_in_evaluation():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.99))
    model.train()
    assert evaluate(model, batches([[1.0, 0]] * 50, [0] * 50, [50]), CPU).top1 == 100.0


def test_an_unreadable_image_is_an_error_unless_skipped_and_counted():
    def data():
        yield from batches([[1.0, 0]], [0], [1], ["x.png: broken"])

    with pytest.raises(DataError, match=r"x\.png: broken.*--skip-bad-images"):
        evaluate(Flat(), data(), CPU)
    found = evaluate(Flat(), data(), CPU, skip_bad=True)
    assert (found.images, found.skipped) == (1, 1)


def test_no_readable_image_at_all_is_an_error():
    empty = [Batch(torch.zeros(0), torch.zeros(0, dtype=torch.int64), ["a", "b"])]
    with pytest.raises(DataError, match="no readable image"):
        evaluate(Flat(), empty, CPU, skip_bad=True)


def test_progress_is_told_after_every_batch_and_may_stop_it():
    seen = []
    evaluate(Flat(), batches([[1.0, 0]] * 5, [0] * 5, [2, 2, 1]), CPU, after_batch=seen.append)
    assert seen == [2, 4, 5]

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Flat(), batches([[1.0, 0]], [0], [1]), CPU, after_batch=stop)


def test_devices_are_taken_by_name():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "cpu0", "mps"])
def test_another_word_is_not_a_device(name):
    with pytest.raises(UsageError, match="expected auto, cpu, cuda or cuda:INDEX"):
        pick_device(name)


def test_a_gpu_that_is_not_there_is_missing():
    with pytest.raises(MissingError, match=r"sees .* GPUs"):
        pick_device("cuda:99")


# the command


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    model = models.build("resnet20", 4, {"width": 0.25})
    checkpoints.save(
        Checkpoint(
            "resnet20", {"width": 0.25}, model.state_dict(), Preprocess((3, 16, 16), "bilinear", 1.0), NAMES
        ),
        tmp_path / "best.pth",
    )
    return str(tmp_path / "best.pth"), model.eval()


def top1(model, spec, x, y):
    with torch.inference_mode():
        return 100 * (model(torch.from_numpy(spec.batch(list(x)))).argmax(1).numpy() == y).mean()


def test_eval_gives_the_accuracy(file, npz, made, capsys):
    path, model = file
    data = npz(val=20)
    assert main(["eval", path, "--data", data, "--json", "--batch", "7"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    x, y = made(20, seed=1)
    assert result["top1_percent"] == pytest.approx(
        top1(model, Preprocess((3, 16, 16), "bilinear", 1.0), x, y)
    )
    assert (result["images"], result["skipped_images"], result["model"], result["data"]) == (
        20,
        0,
        "resnet20",
        data,
    )
    assert out.count("\n") == 1 and err == ""


def test_eval_names_the_worst_classes(tmp_path, made, capsys):
    """A network that always says bee: bee is right, the others are not; dog has no image."""
    model = models.build("resnet20", 4, {"width": 0.25})
    with torch.no_grad():
        model.linear.weight.zero_()
        model.linear.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))
    spec = Preprocess((3, 16, 16), "bilinear", 1.0)
    checkpoints.save(
        Checkpoint("resnet20", {"width": 0.25}, model.state_dict(), spec, NAMES), tmp_path / "b.pth"
    )
    x, _ = made(10)
    y = [1] * 7 + [0, 2, 2]
    np.savez(tmp_path / "val.npz", x=x, y=y, class_names=np.array(NAMES))
    argv = ["eval", str(tmp_path / "b.pth"), "--data", f"npz:{tmp_path}"]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["top1_percent"] == pytest.approx(70) and found["balanced_percent"] == pytest.approx(100 / 3)
    assert found["classes"][1] == {"name": "bee", "images": 7, "right": 7, "percent": 100.0}
    assert found["classes"][3]["percent"] is None
    assert main(argv) == 0
    said = (
        "balanced accuracy 33.33 % (mean of 3 classes); worst: ant 0.00 % of 1, cat 0.00 % of 2, bee 100.00"
    )
    assert said in capsys.readouterr().out


def test_eval_takes_the_split_and_the_size_asked_for(file, npz, made, capsys):
    path, model = file
    assert main(["eval", path, "--data", npz(), "--split", "train", "--img-size", "24", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    x, y = made(32)
    assert result["images"] == 32
    assert result["top1_percent"] == pytest.approx(
        top1(model, Preprocess((3, 24, 24), "bilinear", 1.0), x, y)
    )


def test_eval_says_what_was_converted_and_that_names_are_unknown(tmp_path, npz, capsys):
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in models.build("resnet20", 4).state_dict().items()}},
        tmp_path / "f.th",
    )
    assert main(["eval", str(tmp_path / "f.th"), "--model", "resnet20", "--data", npz()]) == 0
    out = capsys.readouterr().out
    assert "prefix 'module.' removed" in out
    assert "carries no class names" in out
    assert "(n=16 val images of npz:" in out


def test_eval_goes_back_to_the_data_of_the_training(npz, tmp_path, capsys):
    assert (
        main(
            [
                "train",
                "--data",
                npz(),
                "--student",
                "resnet20",
                "--student-args",
                "width=0.25",
                "--img-size",
                "16",
                "--batch",
                "8",
                "--epochs",
                "1",
                "--teacher",
                "none",
                "--json",
                "--output",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    trained = json.loads(capsys.readouterr().out)["best"]
    assert main(["eval", str(tmp_path / "run" / "best.pth"), "--json"]) == 0
    said = capsys.readouterr()
    assert re.search(r"^validation data from the checkpoint: npz:/.+$", said.err, re.MULTILINE)
    result = json.loads(said.out)
    assert (result["top1_percent"], result["images"]) == (trained["top1_percent"], 16)
    assert result["loss_nats"] == pytest.approx(trained["loss_nats"], rel=1e-5)


def test_the_published_resnet20_has_its_published_accuracy(shared, tmp_path, capsys):
    """91.60 % of the whole 8,000; of the first 2,000, here for time, 1,829, counted with the network written
    out by hand.
    """
    from PIL import Image

    sheet = np.asarray(Image.open(shared / "data" / "cifar10" / "test.webp").convert("RGB"))[:640]
    labels = np.load(shared / "data" / "cifar10" / "labels.npz")
    x = sheet.reshape(20, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
    np.savez(
        tmp_path / "test.npz",
        x=x,
        y=labels["y_test"][:2000],
        class_names=[str(name) for name in labels["class_names"]],
    )
    assert (
        main(
            [
                "eval",
                str(shared / "data" / "weights" / "resnet20-12fca82f.th"),
                "--model",
                "resnet20",
                "--data",
                f"npz:{tmp_path}",
                "--json",
            ]
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], round(result["top1_percent"] * 20)) == (2000, 1829)


def test_eval_of_nan_is_null_and_fails(file, npz, tmp_path, capsys):
    found, data = checkpoints.load(file[0]), npz()
    next(iter(found.state_dict.values())).fill_(float("nan"))
    checkpoints.save(found, tmp_path / "nan.pth")
    assert main(["eval", str(tmp_path / "nan.pth"), "--data", data, "--json"]) == 1
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=pytest.fail)["loss_nats"] is None
    assert main(["eval", str(tmp_path / "nan.pth"), "--data", data]) == 1
    said = capsys.readouterr()
    assert f"its weight {next(iter(found.state_dict))} holds NaN or inf" in said.out
    assert "its logits hold NaN or inf" in said.err


def test_a_batch_that_could_not_be_filled_ends_a_training():
    """What stands in for an unreadable image is another one; where none is left the batch is short."""
    bad = ["a.png: cut", "b.png: cut"]
    short = Batch(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), bad)
    with pytest.raises(DataError, match=r"^2 images in a row cannot be read \(last: b\.png: cut\)"):
        require_whole(short, 4, skip_bad=True)
    with pytest.raises(DataError, match=r"^a\.png: cut\. Remove or replace it, or add --skip-bad-images"):
        require_whole(short, 3, skip_bad=False)
    require_whole(short, 3, skip_bad=True)
