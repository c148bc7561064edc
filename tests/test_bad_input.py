"""Bad input ends with one clear line and the right exit code, never with a traceback."""

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import TINY

from distill import checkpoint as checkpoints
from distill import models
from distill.__main__ import main
from distill.checkpoint import Checkpoint
from runtime import files
from runtime.preprocess import Preprocess

pytestmark = pytest.mark.usefixtures("without_report")

STUDENT = ["--student", "resnet20", *TINY]
PROGRESS = (
    *("plain: ", "student: ", "control: ", "teacher: "),
    *("data     ", "student  ", "teacher  ", "run      ", "         ", "warning: "),
    *("training data from the file given: ", "validation data from the "),
)


class Place:
    """Files, good and bad, in one folder; every method makes one and gives its path."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def images(self, name="images", classes=("ant", "bee"), each=6, splits=("train", "val")):
        """An image folder."""
        dice = np.random.default_rng(0)
        for split in splits:
            for label in classes:
                place = self.root / name / split / label
                place.mkdir(parents=True)
                for number in range(each):
                    Image.fromarray(dice.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(
                        place / f"{number}.png"
                    )
        return self.root / name

    def broken(self, split="train"):
        """An image folder with one file that is cut."""
        root = self.images()
        file = root / split / "bee" / "3.png"
        file.write_bytes(file.read_bytes()[:50])
        return root

    def empty(self):
        (self.root / "empty" / "train").mkdir(parents=True)
        return self.root / "empty"

    def checkpoint(self, name="best.pth", classes=("ant", "bee"), model="resnet20"):
        """A checkpoint with fresh weights."""
        arguments = {"width": 0.25}
        weights = models.build(model, len(classes), arguments).state_dict()
        checkpoints.save(
            Checkpoint(model, arguments, weights, Preprocess((3, 16, 16), "bilinear", 1.0), list(classes)),
            self.root / name,
        )
        return self.root / name

    def truncated(self):
        file = self.checkpoint("truncated.pth")
        file.write_bytes(file.read_bytes()[:-5000])
        return file

    def mislabeled(self):
        """A checkpoint that says resnet32 and holds the weights of resnet20."""
        found = checkpoints.load(self.checkpoint("mislabeled.pth"))
        found.model = "resnet32"
        checkpoints.save(found, self.root / "mislabeled.pth")
        return self.root / "mislabeled.pth"

    def foreign(self, classes=2):
        torch.save(models.build("resnet20", classes).state_dict(), self.root / "foreign.pth")
        return self.root / "foreign.pth"

    def evil(self, legacy=False):
        class Evil:
            def __reduce__(inner):
                return os.system, (f"touch {self.root / 'proof'}",)

        torch.save({"state_dict": Evil()}, self.root / "evil.pth", _use_new_zipfile_serialization=not legacy)
        return self.root / "evil.pth"

    def text(self, content="some text\n", name="text.txt"):
        (self.root / name).write_text(content)
        return self.root / name

    def run(self, name="run"):
        """A finished run."""
        assert (
            main(
                [
                    "train",
                    "--data",
                    str(self.images("run's images")),
                    *STUDENT,
                    "--teacher",
                    "none",
                    "--lr",
                    "0.01",
                    "--output",
                    str(self.root / name),
                ]
            )
            == 0
        )
        return self.root / name


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def fails(capsys, argv, code, *words):
    """The command ends with `code`, one line that starts with "error: " and holds `words`, and nothing else
    but progress.
    """
    capsys.readouterr()
    assert main([str(word) for word in argv]) == code
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert sum(line.startswith("error: ") for line in lines) == 1, err
    assert lines[-1].startswith("error: ")
    assert all(line.startswith(PROGRESS) for line in lines[:-1]), err
    assert "Traceback" not in err and "internal error" not in err
    for word in words:
        assert str(word) in lines[-1]


def train(data, *flags, teacher=("--teacher", "none"), output="run"):
    return lambda place: [
        "train",
        "--data",
        data(place),
        *STUDENT,
        *[f(place) if callable(f) else f for f in (*teacher, *flags)],
        "--output",
        place.root / output,
    ]


def evaluate(checkpoint, data, *flags):
    return lambda place: ["eval", checkpoint(place), "--data", data(place), *flags]


def teacher(make):
    return ("--teacher-ckpt", make)


CASES = {
    # data
    "no data": (lambda p: ["train", *STUDENT, "--teacher", "none"], 2, ["no data given", "--data DIR"]),
    "missing folder": (
        train(lambda p: p.root / "nothing"),
        2,
        ["nothing: no such folder", "one sub-folder per class"],
    ),
    "a control without a teacher": (
        train(Place.images, "--control"),
        2,
        ["--control", "Give --teacher-ckpt"],
    ),
    "a file for a folder": (train(Place.text), 2, ["text.txt: not a folder"]),
    "empty folder": (train(Place.empty), 2, ["no images found", "CLASS/image.jpg"]),
    "one class": (train(lambda p: p.images(classes=("ant",))), 2, ["one class ('ant')", "at least two"]),
    "no validation images": (
        train(lambda p: p.images() / "train"),
        2,
        ["no validation images", "--val-data"],
    ),
    "missing npz": (train(lambda p: f"npz:{p.root / 'x.npz'}"), 2, ["x.npz: no such file"]),
    "an npz that is none": (
        train(lambda p: f"npz:{p.text()}", "--val-data", Place.images),
        2,
        ["text.txt", "not an npz file"],
    ),
    "missing tar": (train(lambda p: p.root / "x.tar"), 2, ["x.tar"]),
    "a tar that is none": (
        train(lambda p: p.text(name="x.tar"), "--val-data", Place.images),
        2,
        ["x.tar: timm cannot open it"],
    ),
    "unknown torchvision set": (
        train(lambda p: f"torch/cifar11:{p.root}"),
        2,
        ["torch/cifar11", "timm cannot open it"],
    ),
    "unreadable image": (
        train(Place.broken),
        2,
        ["train/bee/3.png: not a readable image", "--skip-bad-images"],
    ),
    "unreadable validation image": (
        train(lambda p: p.broken("val")),
        2,
        ["val/bee/3.png: not a readable image", "--skip-bad-images"],
    ),
    "classes differ between the splits": (
        train(Place.images, "--val-data", lambda p: p.images("other", ("ant", "bug"))),
        4,
        ["classes differ", "bee", "bug"],
    ),
    "batch larger than the data": (
        train(Place.images, "--batch", "64"),
        2,
        ["12 training images", "smaller --batch"],
    ),
    "streamed data without classes": (train(lambda p: f"wds/x:{p.root}"), 2, ["--num-classes"]),
    # flags and recipes
    "unknown flag": (
        train(Place.images, "--weight-dacay", "1"),
        2,
        ["unknown flag --weight-dacay; did you mean --weight-decay?"],
    ),
    "unknown recipe": (
        train(Place.images, "--recipe", "papper"),
        2,
        ["no recipe 'papper'; did you mean paper?"],
    ),
    "unknown recipe key": (
        train(Place.images, "--recipe", lambda p: p.text("epoch: 3", "r.yaml")),
        2,
        ["r.yaml: unknown key 'epoch'; did you mean epochs?"],
    ),
    "a recipe that is not YAML": (
        train(Place.images, "--recipe", lambda p: p.text("a: [", "r.yaml")),
        2,
        ["r.yaml", "not YAML"],
    ),
    "a binary recipe": (train(Place.images, "--recipe", lambda p: p.checkpoint("r.yaml")), 2, ["r.yaml"]),
    "recipe value of the wrong type": (
        train(Place.images, "--recipe", lambda p: p.text("epochs: many", "r.yaml")),
        2,
        ["'many'"],
    ),
    "recipe value out of range": (
        train(Place.images, "--recipe", lambda p: p.text("lr: 0", "r.yaml")),
        2,
        ["lr 0.0", "above 0"],
    ),
    "unknown student": (
        train(Place.images, "--student", "resnt20"),
        2,
        ["no architecture called 'resnt20'", "did you mean"],
    ),
    "unknown student argument": (
        train(Place.images, "--student-args", "wdth=2"),
        2,
        ["resnet20 cannot be built", "wdth"],
    ),
    "student argument without a value": (
        train(Place.images, "--student-args", "width"),
        2,
        ["'width': expected KEY=VALUE"],
    ),
    "unknown teacher": (
        train(Place.images, teacher=("--teacher", "resnt20")),
        2,
        ["no architecture called 'resnt20'"],
    ),
    "teacher without weights": (
        train(Place.images, teacher=("--teacher", "resnet20")),
        3,
        ["resnet20", "file"],
    ),
    "unknown loss": (train(Place.images, "--kd-loss", "kll"), 2, ["kll"]),
    "unknown optimizer": (train(Place.images, "--opt", "adamww"), 2, ["optimizer 'adamww'"]),
    "unknown schedule": (train(Place.images, "--sched", "cosin"), 2, ["schedule 'cosin'"]),
    "unknown augmentation": (train(Place.images, "--aa", "rnd-m9"), 2, ["aa", "rnd-m9"]),
    "unknown device": (train(Place.images, "--device", "gpu"), 2, ["device 'gpu'", "cuda:INDEX"]),
    "lr 0": (train(Place.images, "--lr", "0"), 2, ["lr 0", "above 0"]),
    "a word for a number": (train(Place.images, "--epochs", "ten"), 2, ["ten"]),
    "epochs 0": (train(Place.images, "--epochs", "0"), 2, ["epochs 0: expected 1 or more"]),
    "an odd batch with mixup": (train(Place.images, "--batch", "3", "--mixup", "0.5"), 2, ["even number"]),
    "a loss that explodes": (
        train(Place.images, "--opt", "sgd", "--lr", "1e30", "--warmup-epochs", "0"),
        1,
        ["loss is nan at step 2", "--lr"],
    ),
    # output
    "output is a file": (
        lambda p: ["train", "--data", p.images(), *STUDENT, "--teacher", "none", "--output", p.text()],
        2,
        ["text.txt: is a file"],
    ),
    "output below a file": (
        lambda p: [
            "train",
            "--data",
            p.images(),
            *STUDENT,
            "--teacher",
            "none",
            "--output",
            p.text() / "run",
        ],
        2,
        ["text.txt/run", "cannot be written"],
    ),
    "output is there": (
        lambda p: ["train", "--data", p.images(), *STUDENT, "--teacher", "none", "--output", p.run()],
        2,
        ["holds a run already", "--overwrite"],
    ),
    # teacher
    "missing teacher": (
        train(Place.images, teacher=teacher(lambda p: p.root / "t.pth")),
        2,
        ["t.pth: no such checkpoint"],
    ),
    "truncated teacher": (
        train(Place.images, teacher=teacher(Place.truncated)),
        4,
        ["truncated.pth: truncated or not a checkpoint"],
    ),
    "teacher of other classes": (
        train(
            Place.images,
            "--teacher-fit",
            "none",
            teacher=teacher(lambda p: p.checkpoint(classes=("ant", "bug"))),
        ),
        4,
        ["classes differ", "bug"],
    ),
    "teacher of another class order": (
        train(
            Place.images,
            "--teacher-fit",
            "none",
            teacher=teacher(lambda p: p.checkpoint(classes=("bee", "ant"))),
        ),
        4,
        ["class order differs"],
    ),
    "teacher of more classes": (
        train(
            Place.images,
            "--teacher-fit",
            "none",
            teacher=teacher(lambda p: p.checkpoint(classes=("ant", "bee", "cat"))),
        ),
        4,
        ["class"],
    ),
    "foreign teacher of more classes": (
        train(
            Place.images,
            "--teacher",
            "resnet20",
            "--teacher-fit",
            "none",
            teacher=teacher(lambda p: p.foreign(7)),
        ),
        4,
        ["classifier linear: 7 classes", "--teacher-fit head"],
    ),
    "foreign teacher without a name": (
        train(Place.images, teacher=teacher(Place.foreign)),
        2,
        ["--teacher NAME"],
    ),
    "teacher of another architecture": (
        train(Place.images, teacher=("--teacher", "resnet32", *teacher(Place.checkpoint))),
        4,
        ["holds resnet20, not resnet32"],
    ),
    "teacher with code": (
        train(Place.images, teacher=teacher(Place.evil)),
        4,
        ["pickled code, which is never run"],
    ),
    "teacher none with a file": (
        train(Place.images, teacher=("--teacher", "none", *teacher(Place.checkpoint))),
        2,
        ["--teacher-ckpt is given"],
    ),
    "missing start weights": (
        train(Place.images, "--student-ckpt", lambda p: p.root / "s.pth"),
        2,
        ["s.pth: no such checkpoint"],
    ),
    # resume
    "resume of nothing": (
        lambda p: ["train", "--resume", p.root / "nothing"],
        2,
        ["nothing: is not a run that can be resumed", "--output"],
    ),
    "resume with another lr": (
        lambda p: ["train", "--resume", p.run(), "--lr", "0.02"],
        2,
        ["--lr is 0.02, the run to resume has 0.01"],
    ),
    "resume of a damaged run": (
        lambda p: ["train", "--resume", damaged(p.run() / "last.pth").parent],
        4,
        ["last.pth: truncated or not a checkpoint"],
    ),
    "resume of a run with code": (
        lambda p: ["train", "--resume", p.evil().replace(p.run() / "last.pth").parent],
        4,
        ["last.pth: contains pickled code"],
    ),
    # eval
    "eval of nothing": (evaluate(lambda p: p.root / "x.pth", Place.images), 2, ["x.pth: no such checkpoint"]),
    "eval of a folder": (evaluate(lambda p: p.root, Place.images), 2, ["is a folder without a best.pth"]),
    "eval without data": (lambda p: ["eval", p.checkpoint()], 2, ["no data given"]),
    "eval on a missing folder": (
        evaluate(Place.checkpoint, lambda p: p.root / "nothing"),
        2,
        ["nothing: no such folder"],
    ),
    "eval on other classes": (
        evaluate(Place.checkpoint, lambda p: p.images(classes=("ant", "bug"))),
        4,
        ["classes differ", "bee", "bug"],
    ),
    "eval on more classes": (
        evaluate(Place.checkpoint, lambda p: p.images(classes=("ant", "bee", "cat"))),
        2,
        ["has images of cat", "does not know"],
    ),
    "eval on fewer classes": (
        evaluate(lambda p: p.checkpoint(classes=("ant", "bee", "cat")), Place.images),
        2,
        ["val has no image of cat (2 of 3 classes)"],
    ),
    "eval of a truncated file": (
        evaluate(Place.truncated, Place.images),
        4,
        ["truncated.pth: truncated or not a checkpoint"],
    ),
    "eval of a text file": (
        evaluate(Place.text, Place.images),
        4,
        ["text.txt: truncated or not a checkpoint"],
    ),
    "eval of another architecture": (
        evaluate(Place.checkpoint, Place.images, "--model", "resnet32"),
        4,
        ["holds resnet20, not resnet32"],
    ),
    "eval of a wrong description": (
        evaluate(Place.mislabeled, Place.images),
        4,
        ["does not fit resnet32", "weights missing"],
    ),
    "eval of a foreign file": (evaluate(Place.foreign, Place.images), 2, ["--model NAME"]),
    "eval of a foreign file as another": (
        evaluate(Place.foreign, Place.images, "--model", "resnet32"),
        4,
        ["does not fit resnet32"],
    ),
    "eval of an unknown architecture": (
        evaluate(Place.foreign, Place.images, "--model", "resnt20"),
        2,
        ["no architecture", "resnt20"],
    ),
    "eval of a file with code": (evaluate(Place.evil, Place.images), 4, ["pickled code, which is never run"]),
    "eval of an old file with code": (
        evaluate(lambda p: p.evil(legacy=True), Place.images, "--model", "resnet20"),
        4,
        ["pickled code, which is never run"],
    ),
    "eval of an unreadable image": (
        evaluate(Place.checkpoint, lambda p: p.broken("val")),
        2,
        ["val/bee/3.png: not a readable image", "--skip-bad-images"],
    ),
    "eval on an unknown device": (
        evaluate(Place.checkpoint, Place.images, "--device", "tpu"),
        2,
        ["device 'tpu'"],
    ),
    "eval of an unknown split": (evaluate(Place.checkpoint, Place.images, "--split", "dev"), 2, ["dev"]),
    "eval with batch 0": (evaluate(Place.checkpoint, Place.images, "--batch", "0"), 2, ["batch"]),
    "eval of a negative size": (
        evaluate(Place.checkpoint, Place.images, "--img-size", "-1"),
        2,
        ["--img-size -1: expected 0 to 4096"],
    ),
}


def damaged(file: Path) -> Path:
    file.write_bytes(file.read_bytes()[:1000])
    return file


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_with_one_line_and_its_exit_code(case, place, capsys):
    argv, code, words = CASES[case]
    fails(capsys, argv(place), code, *words)
    assert not (place.root / "proof").exists()  # no code was run
    assert not list(place.root.rglob("*.tmp-*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize(
    "argv",
    [train(Place.images, "--device", "cuda"), evaluate(Place.checkpoint, Place.images, "--device", "cuda:0")],
)
def test_a_gpu_that_is_not_here_is_missing(argv, place, capsys):
    fails(capsys, argv(place), 3, "sees 0 GPUs", "--device cpu")


def test_skipped_images_are_counted_and_the_run_ends(place, capsys):
    data = place.broken()
    assert (
        main(
            [
                "train",
                "--data",
                str(data),
                *STUDENT,
                "--teacher",
                "none",
                "--skip-bad-images",
                "--output",
                str(place.root / "run"),
            ]
        )
        == 0
    )
    assert "1 unreadable images left out" in capsys.readouterr().err
    place.checkpoint()
    argv = ["eval", place.root / "best.pth", "--data", data, "--split", "train", "--skip-bad-images"]
    assert main([str(word) for word in argv]) == 0
    assert "n=11 train images" in (out := capsys.readouterr().out) and "1 unreadable images skipped" in out


def test_a_run_stopped_by_an_unreadable_image_goes_on_with_the_flag(place, capsys):
    argv = ["train", "--data", place.broken(), *STUDENT, "--teacher", "none", "--output", place.root / "run"]
    fails(capsys, argv, 2, "3.png")
    assert main(["train", "--resume", str(place.root / "run"), "--skip-bad-images"]) == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("name", ["args.yaml", "last.pth", "best.pth", "summary.csv", "result.json"])
def test_a_full_disk_is_named_whatever_is_being_written(name, place, capsys, monkeypatch):
    real = os.fsync

    def fsync(handle):
        if f"/run/.{name}.tmp-" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    argv = ["train", "--data", place.images(), *STUDENT, "--teacher", "none", "--output", place.root / "run"]
    fails(capsys, argv, 3, f"run/{name}: no space left", "another place")
    assert not (place.root / "run" / name).exists()


def test_a_disk_that_fills_up_in_a_run_leaves_a_run_that_can_go_on(place, capsys, monkeypatch):
    plain, written = files.write_bytes, []

    def write(path, content):
        if Path(path).name == "last.pth":
            written.append(path)
            if len(written) == 3:
                raise files.explained(OSError(errno.ENOSPC, "No space left on device"), Path(path))
        plain(path, content)

    monkeypatch.setattr(files, "write_bytes", write)
    argv = [
        "train",
        "--data",
        place.images(),
        *STUDENT,
        "--teacher",
        "none",
        "--checkpoint-minutes",
        "0",
        "--output",
        place.root / "run",
    ]
    fails(capsys, argv, 3, "last.pth: no space left")
    monkeypatch.undo()
    assert checkpoints.load(place.root / "run" / "last.pth").state["updates"] == 2
    assert main(["train", "--resume", str(place.root / "run")]) == 0


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(place, capsys):
    (place.root / "locked").mkdir(mode=0o500)
    argv = [
        "train",
        "--data",
        place.images(),
        *STUDENT,
        "--teacher",
        "none",
        "--output",
        place.root / "locked" / "run",
    ]
    fails(capsys, argv, 2, "cannot be written")


def test_a_plain_pickle_with_code_is_never_run(place, capsys):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {place.root / 'proof'}",)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (place.root / "p.pkl").write_bytes(pickle.dumps(Evil(), protocol=protocol))
        fails(
            capsys, ["eval", place.root / "p.pkl", "--model", "resnet20", "--data", place.root], 4, "p.pkl: "
        )
    assert not (place.root / "proof").exists()
