"""What fails at an image, in this process or in one that reads for it, is one line: image, step, way out."""

import multiprocessing
import os
import signal

import pytest
import torch
from PIL import ImageOps
from torch.utils.data import get_worker_info

from distill.data import TrainLoader, eval_loader, open_data
from runtime.cli import front_door, outcome
from runtime.errors import DataError, MissingError
from runtime.images import FolderSet
from runtime.preprocess import Preprocess

pytestmark = pytest.mark.usefixtures("without_report")

CPU = torch.device("cpu")
SPEC = Preprocess((3, 16, 16), "bilinear", 1.0)
SMALL = ("--student", "resnet20", "--student-args", "width=0.25", "--img-size", "16", "--epochs", "1")
SMALL += ("--batch", "8", "--teacher", "none", "--device", "cpu", "--warmup-epochs", "0")
both = pytest.mark.parametrize("workers", [0, 2])


def refuse(*_):
    raise ValueError("a newer Pillow\nrefuses this")


@pytest.fixture
def drifted(monkeypatch):
    """An operation that the installed Pillow refuses, as 13 did with posterize."""
    monkeypatch.setattr(ImageOps, "solarize", refuse)


def one_line(text):
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and text.rstrip().endswith(lines[0])
    return lines[0]


@both
@pytest.mark.parametrize("skip", [(), ("--skip-bad-images",)])
def test_training_names_the_image_the_operation_and_the_way_out(
    tree, tmp_path, capfd, drifted, workers, skip
):
    words = ("--data", str(tree(per_class=8)), "--output", str(tmp_path / "run"), "--workers", str(workers))
    assert front_door.main(["train", *SMALL, *words, "--aa", "rand-m9-mstd0.5-n9-p1", *skip]) == 2
    said = one_line(capfd.readouterr().err)
    assert said.startswith(f"error: {tmp_path}/tree/train/")
    assert "the augmentation step Solarize(" in said and "ValueError: a newer Pillow refuses this" in said
    assert all(f"{package} " in said for package in ("torch", "torchvision", "timm", "pillow", "numpy"))
    assert "Change --aa, install other versions of these packages, or remove the image" in said
    assert multiprocessing.active_children() == []


@both
def test_what_was_trained_before_is_kept(tree, tmp_path, monkeypatch, capfd, workers):
    words = ("--data", str(tree(per_class=16)), "--output", str(tmp_path / "run"), "--workers", str(workers))
    train = ["train", *SMALL, "--epochs", "2", *words]
    broken = sorted((tmp_path / "tree" / "train").rglob("*.png"))[-1]
    read = FolderSet.image

    def image(self, index):
        if self.files[index] == broken:
            raise RuntimeError("a bug in a reader")
        return read(self, index)

    with monkeypatch.context() as patched:
        patched.setattr(FolderSet, "image", image)
        assert front_door.main(train) == 2
    said = one_line(capfd.readouterr().err)
    assert f"{broken}: reading or preprocessing failed (RuntimeError: a bug in a reader; " in said
    assert multiprocessing.active_children() == []
    assert front_door.main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert multiprocessing.active_children() == []


@both
def test_evaluation_names_the_image(tree, tmp_path, monkeypatch, capfd, workers):
    data = str(tree(per_class=8))
    assert front_door.main(["train", *SMALL, "--data", data, "--output", str(tmp_path / "run")]) == 0
    capfd.readouterr()
    monkeypatch.setattr(Preprocess, "normalize", refuse)
    words = ("--data", data, "--workers", str(workers), "--device", "cpu", "--skip-bad-images")
    assert front_door.main(["eval", str(tmp_path / "run" / "best.pth"), *words]) == 2
    said = one_line(capfd.readouterr().err)
    assert said.startswith(
        f"error: {data}/val/ant/0.png: reading or preprocessing failed (ValueError: a newer"
    )
    assert multiprocessing.active_children() == []


@both
def test_memory_that_runs_out_is_not_a_damaged_image(images, recipe, monkeypatch, workers):
    mine = images(16)

    def image(index):
        raise MemoryError

    monkeypatch.setattr(mine, "image", image)
    with pytest.raises(MissingError, match=r"made:0\[\d+\]: memory ran out .* Give fewer --workers"):
        list(TrainLoader(mine, recipe(workers=workers, skip_bad_images=True), SPEC, CPU).epoch(0))


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGSEGV])
def test_a_reading_process_that_is_ended_is_one_line(tree, tmp_path, monkeypatch, capfd, kill):
    read = FolderSet.image

    def image(self, index):
        if get_worker_info() is not None and index == 3:
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # pytest's own handler would print
            os.kill(os.getpid(), kill)
        return read(self, index)

    monkeypatch.setattr(FolderSet, "image", image)
    words = ("--data", str(tree(per_class=8)), "--output", str(tmp_path / "run"), "--workers", "2")
    assert front_door.main(["train", *SMALL, *words]) == 3
    said = one_line(capfd.readouterr().err)
    assert said.startswith("error: a process that reads images has ended (")
    assert "Give fewer --workers (0: images are read without such processes)" in said


TORCH_SAYS = {
    "worker (pid 7) is killed by signal: Killed. ": "(Killed), mostly because memory ran out",
    "worker (pid 7) is killed by signal: Segmentation fault. ": "(Segmentation fault), mostly at a damaged",
    "worker (pid(s) 7, 8) exited unexpectedly": "(it exited), mostly because memory ran out",
    "worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of"
    " shared memory. Please try to raise your shared memory limit.": "Give --workers 0, or more of it",
}
"""What follows "DataLoader" in torch's texts, and a part of ours."""


@pytest.mark.parametrize("said", TORCH_SAYS)
def test_each_end_of_a_process_has_its_way_out(said, capsys):
    def command():
        raise RuntimeError(f"DataLoader {said}")

    assert outcome.run(command) == 3
    assert TORCH_SAYS[said] in one_line(capsys.readouterr().err)


def test_another_runtime_error_stays_a_bug_of_ours(capsys):
    def command():
        raise RuntimeError("shapes do not match in a DataLoader")

    assert outcome.run(command) == 70


# streams


@pytest.fixture
def stream(tmp_path, made):
    """wds/made:FOLDER with one shard of 16 images; and the shard."""
    pytest.importorskip("webdataset")
    import io
    import json
    import tarfile

    from PIL import Image

    x, y = made(16)
    shard = tmp_path / "train-0.tar"
    with tarfile.open(shard, "w") as archive:
        for i in range(16):
            buffer = io.BytesIO()
            Image.fromarray(x[i]).save(buffer, "PNG")
            for name, content in ((f"{i:05d}.png", buffer.getvalue()), (f"{i:05d}.cls", str(y[i]).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    split = {"name": "train", "filenames": [shard.name], "shard_lengths": [16], "num_samples": 16}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    return f"wds/made:{tmp_path}", shard


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_names_the_image_and_the_operation(stream, recipe, drifted, workers):
    settings = {"aa": "rand-m9-n9-p1", "num_classes": 4, "workers": workers}
    with pytest.raises(DataError, match=r"image \d+ of the stream: .* Solarize\(.*Change --aa") as caught:
        list(TrainLoader(open_data(stream[0], "train", 4), recipe(**settings), SPEC, CPU).epoch(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_breaks_off_is_named(stream, recipe, monkeypatch, workers):
    images = open_data(stream[0], "train", 4)
    whole = images.stream

    def breaking(*words):
        class Set:
            def set_epoch(self, epoch):
                inner.set_epoch(epoch)

            def __iter__(self):
                for number, item in enumerate(inner):
                    if number == 5:
                        raise RuntimeError("the disk\nis gone")
                    yield item

        inner = whole(*words)
        return Set()

    monkeypatch.setattr(images, "stream", breaking)
    with pytest.raises(DataError) as caught:
        list(TrainLoader(images, recipe(num_classes=4, workers=workers), SPEC, CPU).epoch(0))
    assert "wds/made" in str(caught.value) and "behind image 4 (RuntimeError: the disk is gone)" in str(
        caught.value
    )


def test_reading_a_stream_here_draws_nothing_from_the_training_s_generators(stream, recipe):
    images = open_data(stream[0], "train", 4)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for _ in TrainLoader(images, recipe(num_classes=4, aa="rand-m9"), SPEC, CPU).epoch(0):
        assert torch.equal(torch.get_rng_state(), before)  # between two batches, too


def test_an_evaluation_can_be_repeated_behind_an_error(images, monkeypatch):
    mine = images(8)
    loader = eval_loader(mine, SPEC, 4, 0, CPU)
    with monkeypatch.context() as patched:
        patched.setattr(Preprocess, "normalize", refuse)
        with pytest.raises(DataError, match=r"made:0\[0\]"):
            list(loader)
    assert sum(len(batch.labels) for batch in loader) == 8
