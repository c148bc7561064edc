"""The functions of `import large2small` do what the commands do, and return it."""

import inspect
import json

import numpy as np
import pytest
from PIL import Image

import large2small
import runtime
from runtime import errors
from runtime.images import open_images

pytestmark = pytest.mark.usefixtures("exports_once", "without_report")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """npz:FOLDER of some of the digits."""
    folder = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 256), ("val", 100)):
        images = open_images("digits", split)
        x, y, names = images.x[:count], images.labels[:count], np.array(images.class_names)
        np.savez(folder / f"{split}.npz", x=x, y=y, class_names=names)
    return f"npz:{folder}"


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """A narrow student trained for an epoch beside its control, on some of the digits."""
    folder = tmp_path_factory.mktemp("run")
    shared = {"student_args": {"width": 0.25}, "data": digits, "img_size": 32, "batch": 32, "epochs": 1}
    teacher = large2small.train(
        teacher="none", student="resnet20", output=folder / "teacher", quiet=True, **shared
    )
    return large2small.train(
        teacher_ckpt=teacher.checkpoint,
        student="resnet20",
        output=folder / "student",
        control=True,
        quiet=True,
        **shared,
    )


@pytest.fixture(scope="module")
def artifact(run, exports_once):
    return large2small.export_onnx(run.checkpoint, verify_size=32, quiet=True)


def test_every_error_of_the_runtime_is_there():
    found = {name for name, each in vars(errors).items() if inspect.isclass(each)}
    assert found <= set(large2small.__all__)
    assert all(getattr(large2small, name) is getattr(errors, name) for name in found)


def test_everything_of_the_runtime_is_there():
    assert set(runtime.__all__) <= set(large2small.__all__)
    assert large2small.load is runtime.load


def test_the_types_of_the_results_are_there_for_annotations(run, artifact):
    assert isinstance(run, large2small.RunResult) and isinstance(artifact, large2small.Exported)
    assert {name for name in dir(large2small) if name[0].isupper()} >= set(large2small.RESULTS)
    assert all(getattr(large2small, name).__name__ == name for name in large2small.RESULTS)
    with pytest.raises(AttributeError, match="has no attribute 'RunResults'"):
        large2small.RunResults  # noqa: B018


@pytest.mark.slow
def test_a_run_is_resumed_and_its_student_trained_as_int8(run):
    again = large2small.train(resume=run.path, quiet=True)
    assert again.to_dict() == run.to_dict()
    few = {"epochs": 1, "train_size": 64, "calib_size": 16}
    int8 = large2small.train(qat=True, resume=run.checkpoint, quiet=True, **few)
    assert int8.path == run.path.with_name("student-qat")
    assert "qat: true" in (int8.path / "args.yaml").read_text()


def test_a_run_says_what_its_result_file_says(run):
    kept = json.loads((run.path / "result.json").read_text())
    assert run.top1 == kept["best"]["top1_percent"] and run.control_top1 == kept["control"]["top1_percent"]
    assert run.teacher_top1 == kept["teacher"]["top1_percent"]
    assert run.checkpoint == run.path / "best.pth" and run.checkpoint.is_file()
    assert run.to_dict() == kept
    assert repr(run) == (
        f"RunResult(path='{run.path}', student='resnet20', top1={run.top1:.2f},"
        f" teacher_top1={run.teacher_top1:.2f}, control_top1={run.control_top1:.2f})"
    )


def test_an_export_is_a_path_wherever_one_is_expected(artifact, run):
    assert artifact.path == run.path / "best.onnx"
    assert artifact.size_bytes == artifact.path.stat().st_size and artifact.precision == "fp32"
    with large2small.load(artifact) as predictor:
        assert predictor.metadata == artifact.metadata
    latency = large2small.bench_latency(artifact, iterations=3, warmup=0, results_file=run.path / "l.json")
    assert latency.timings["compute"].summary.n == 3
    kept = json.loads((run.path / "l.json").read_text())
    assert len(kept["samples_ms"]["compute"]) == 3 and kept["file"] == str(artifact.path)


def test_a_run_is_a_path_wherever_a_checkpoint_or_a_run_is_expected(run, tmp_path):
    written = large2small.export_onnx(run, output=tmp_path / "a.onnx", verify_size=16, quiet=True)
    assert written.path == tmp_path / "a.onnx" and written.path.is_file()
    assert large2small.evaluate(run, quiet=True).top1 == pytest.approx(run.top1)


def test_the_accuracy_of_the_file_is_that_of_the_run(artifact, run, digits):
    found = large2small.bench_accuracy(artifact, digits, quiet=True)
    assert found.result.top1 == pytest.approx(run.top1)  # of the same validation images


def test_a_checkpoint_is_evaluated_on_the_images_it_was_validated_with(run):
    found = large2small.evaluate(run.checkpoint, quiet=True)
    assert found.top1 == pytest.approx(run.top1) and found.to_dict()["images"] == run.best.images == 100


def test_images_on_the_disk_are_classified_and_one_that_cannot_be_read_is_named(artifact, tmp_path):
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    broken, white = large2small.predict(artifact, tmp_path, top=2, quiet=True)
    assert white.image == str(tmp_path / "white.png") and not white.error and len(white.guesses) == 2
    with large2small.load(artifact) as predictor:
        assert list(white.guesses) == predictor.classify(white.image, top=2)[0]
    assert "broken.png" in broken.error and not broken.guesses
    assert large2small.predict(str(artifact.path), [tmp_path / "white.png"], top=2) == [white]


def test_what_fails_is_an_exception_with_the_words_of_the_command(tmp_path, artifact):
    with pytest.raises(large2small.UsageError, match=r"nowhere\.pth: no such checkpoint"):
        large2small.export_onnx(tmp_path / "nowhere.pth")
    with pytest.raises(large2small.UsageError, match="exists"):
        large2small.export_onnx(artifact.path.with_name("best.pth"))
    with pytest.raises(large2small.UsageError, match="has no keyword workspce; did you mean workspace"):
        large2small.export_trt(artifact, workspce="1GiB")
    with pytest.raises(large2small.DataError, match="no such folder"):
        large2small.bench_accuracy(str(artifact.path), tmp_path / "none")


def test_nothing_is_printed(artifact, capfd, tmp_path):
    large2small.export_onnx(
        artifact.path.with_name("best.pth"),
        output=str(tmp_path / "int8.onnx"),
        int8=True,
        max_drop=100,
        calib_size=16,
        verify_size=16,
        accuracy_size=16,
        quiet=True,
    )
    assert capfd.readouterr() == ("", "")
