"""The clock, the turns, the boundaries and the report of `bench latency`."""

import gc
import json
import time

import numpy as np
import pytest

import runtime
from bench import __main__ as cli
from bench.clock import calls as timed
from bench.clock import latency
from bench.commands import latency as command
from runtime import DataError, MissingError, UsageError
from runtime.images import open_images


def quick(path, **changes):
    return command.Options(**{"engine": path, "warmup": 1, "iterations": 3, "threads": 1} | changes)


def measured(options):
    """(the JSON result, boundary -> durations in ns)."""
    result = command.measure(options)
    return result.to_dict(), {name: timing.samples for name, timing in result.timings.items()}


def test_measure_times_every_iteration_and_no_warm_up():
    calls = []
    samples = latency.measure(
        lambda: calls.append(len(calls)) or time.sleep(0.02 if len(calls) <= 2 else 0.001),
        warmup=2,
        iterations=5,
    )
    assert (len(samples), len(calls)) == (5, 7)
    assert samples.dtype == np.int64
    assert samples.min() >= 1_000_000  # a sleep is never shorter than asked for
    assert np.median(samples) < 20_000_000  # the slow first two were the warm-up


def test_measure_for_a_duration_makes_at_least_one_call():
    assert len(latency.measure(lambda: time.sleep(0.01), warmup=0, iterations=1, duration=1e-6)) == 1
    start = time.perf_counter()
    samples = latency.measure(lambda: time.sleep(0.001), warmup=0, iterations=1, duration=0.1)
    assert 0.1 <= time.perf_counter() - start < 5
    assert 2 <= len(samples) <= 100


def test_the_garbage_collector_is_off_while_timing_and_on_afterwards():
    seen = []
    latency.measure(lambda: seen.append(gc.isenabled()), warmup=1, iterations=2)
    assert seen == [False, False, False]
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        latency.measure(lambda: 1 / 0, warmup=0, iterations=1)
    assert gc.isenabled()


def test_interleaved_gives_turns_in_rotating_order_and_equal_counts():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = latency.interleaved(calls, iterations=5, per_turn=2, warmup=0)
    assert {name: len(values) for name, values in samples.items()} == {"a": 5, "b": 5, "c": 5}
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    # the first three are the warm-up; then rounds that begin with a, b, c (equal neighbors melt into one
    # turn)
    assert turns == ["a", "b", "c", "a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert order.count("a") == 1 + 3 * latency.SETTLE + 5


def test_interleaved_compares_artifacts_and_not_moments():
    # a machine that becomes 10 times slower half way through hits both alike
    begin = time.perf_counter()

    def work(ms):
        time.sleep(ms / 1000 * (1 if time.perf_counter() - begin < 0.15 else 10))

    samples = latency.interleaved(
        {"one": lambda: work(0.5), "three": lambda: work(1.5)}, iterations=40, per_turn=4, warmup=0
    )
    assert 1.3 < samples["three"].sum() / samples["one"].sum() < 4


def test_both_boundaries_are_measured_with_units_in_the_keys(student):
    result, samples = measured(quick(student, percentiles="50,99"))
    for name in ("compute", "end_to_end"):
        row = result[name]
        assert row["n"] == len(samples[name]) == 3
        assert row["latency_p50_ms"] == pytest.approx(sorted(samples[name])[1] / 1e6)
        assert row["throughput_images_per_s"] == pytest.approx(3 / (samples[name].sum() / 1e9))
        assert "synthetic" in row["input"]
        assert "latency_p90_ms" not in row
    assert result["end_to_end"]["latency_p50_ms"] > result["compute"]["latency_p50_ms"]  # it decodes as well
    assert (result["provider"], result["name"], result["batch"]) == (
        "CPUExecutionProvider",
        "student fp32",
        1,
    )
    assert result["engine"].startswith("onnxruntime 1.")
    assert result["fingerprint"]["packages"]["numpy"] == np.__version__


def test_the_synthetic_jpeg_is_larger_than_the_input_and_says_so(student):
    with runtime.load(student) as predictor:
        calls = timed.make_calls(predictor, 2)
        assert calls.inputs["end_to_end"].startswith("synthetic JPEG, 9x9,")  # 1.15 * 8 = 9.2
        guesses = calls.functions["end_to_end"]()
        assert [len(guess) for guess in guesses] == [3, 3]
        assert calls.functions["compute"]().shape == (2, 3)


def test_the_same_seed_makes_the_same_input(tiny, student):
    def logits(seed):
        with runtime.load(student) as predictor:
            return timed.make_calls(predictor, 1, seed=seed).functions["compute"]()

    np.testing.assert_array_equal(logits(0), logits(0))
    assert not np.array_equal(logits(0), logits(1))


def test_real_images_are_used_when_given(student, photos):
    with runtime.load(student) as predictor:
        calls = timed.make_calls(predictor, 12, images=open_images(str(photos), "val"))
        assert str(photos) in calls.inputs["compute"]
        # solid colors: the largest logit of every image is its brightness, 1.0 down to 0.7, four of each
        # class
        best = calls.functions["compute"]().max(axis=1)
        np.testing.assert_allclose(sorted(best), np.repeat([178, 204, 229, 255], 3) / 255, atol=0.01)
        assert sorted({row[0].label for row in calls.functions["end_to_end"]()}) == ["blue", "green", "red"]


def test_arrays_are_encoded_so_that_end_to_end_decodes(student, tmp_path, monkeypatch):
    fed = []
    monkeypatch.setattr(runtime.Predictor, "classify", lambda self, images: fed.extend(images))
    np.savez(
        tmp_path / "a.npz",
        x=np.full((3, 8, 8, 3), 255, np.uint8),
        y=np.array([0, 1, 2]),
        class_names=np.array(["blue", "green", "red"]),
    )
    result, _ = measured(quick(student, data=f"npz:{tmp_path / 'a.npz'}"))
    assert "encoded as PNG in memory, 3 different" in result["end_to_end"]["input"]
    assert {image[:4] for image in fed} == {b"\x89PNG"}


def test_without_preprocessing_end_to_end_is_null_with_a_reason(tiny, tmp_path):
    result, _ = measured(quick(tiny.write(tmp_path / "foreign.onnx")))
    assert result["end_to_end"] is None
    assert "does not say how images are preprocessed" in result["not_measured"]["end_to_end"]
    assert result["compute"]["n"] == 3
    assert result["unknown"] == ["preprocess", "class_names"]
    assert (result["name"], result["precision"]) == ("foreign.onnx", None)


def test_a_boundary_not_asked_for_is_null(student):
    result, samples = measured(quick(student, boundary="end-to-end"))
    assert result["compute"] is None
    assert list(samples) == ["end_to_end"]


def test_a_free_size_comes_from_the_flag_or_is_asked_for(tiny, tmp_path):
    path = tiny.write(tmp_path / "free.onnx", size=("H", "W"))
    with pytest.raises(UsageError, match="--img-size 224"):
        measured(quick(path))
    assert "1x3x16x24" in measured(quick(path, img_size="16x24"))[0]["compute"]["input"]


def test_a_free_size_changes_the_preprocessing_too(tiny, tmp_path):
    path = tiny.write(tmp_path / "free.onnx", meta=tiny.metadata(), size=("H", "W"))
    with runtime.load(path) as predictor:
        calls = timed.make_calls(predictor, 1, size=(20, 30))
        assert calls.inputs["end_to_end"].startswith("synthetic JPEG, 23x34")
        assert predictor.preprocess.input_size == (3, 20, 30)
        assert calls.functions["compute"]().shape == (1, 3)


def test_a_fixed_size_refuses_another(student):
    with pytest.raises(UsageError, match="takes 8x8 images, not 9x9"):
        measured(quick(student, img_size="9"))


def test_a_fixed_batch_names_the_flag_that_works(tiny, tmp_path):
    path = tiny.write(tmp_path / "four.onnx", meta=tiny.metadata(), batch=4)
    with pytest.raises(UsageError, match="Add --batch 4"):
        measured(quick(path))
    assert measured(quick(path, batch=4))[0]["batch"] == 4


def test_an_unreadable_image_is_named(student, photos):
    (photos / "red" / "0.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"0\.png"):
        measured(quick(student, data=str(photos), batch=12))


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": 0},
        {"iterations": 0},
        {"warmup": -1},
        {"duration": 0.0},
        {"percentiles": "x"},
        {"img_size": "0"},
        {"img_size": "8x"},
    ],
)
def test_settings_out_of_range_are_refused(student, changes):
    with pytest.raises(UsageError, match="expected"):
        quick(student, **changes)


def test_json_is_one_object_and_nothing_else(student, capsys):
    assert (
        cli.main(
            [
                "latency",
                "--engine",
                str(student),
                "--iterations",
                "2",
                "--warmup",
                "0",
                "--threads",
                "1",
                "--json",
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert json.loads(out)["compute"]["n"] == 2
    assert err == ""


def test_the_text_has_percentiles_n_warm_up_threads_and_provider(student, capsys):
    argv = ["latency", "--engine", str(student), "--iterations", "7", "--warmup", "4", "--threads", "1"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    for words in (
        "student fp32  batch 1  latency in ms",
        "p50",
        "p99",
        "warm-up 4",
        "1 thread; warm-up 4",
        "CPUExecutionProvider",
        "end-to-end",
        "synthetic",
    ):
        assert words in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("place", ["student.onnx/x.json", "/proc/nowhere/x.json"])
def test_a_results_file_that_cannot_be_written_is_named_before_measuring(
    student, tmp_path, capsys, monkeypatch, place
):
    monkeypatch.setattr(command, "measure", lambda options: pytest.fail("measured"))
    assert cli.main(["latency", "--engine", str(student), "--results-file", str(tmp_path / place)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_what_was_measured_is_shown_though_the_disk_is_full_then(student, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        command.saved.files, "write_text", lambda *_: (_ for _ in ()).throw(MissingError("no space left"))
    )
    argv = [
        "latency",
        "--engine",
        str(student),
        "--iterations",
        "3",
        "--results-file",
        str(tmp_path / "a.json"),
    ]
    assert cli.main(argv) == 3 and "latency in ms" in capsys.readouterr().out
    assert (
        cli.main([*argv, "--json"]) == 3 and json.loads(capsys.readouterr().out)["exit_code"] == 3
    )  # one object


@pytest.mark.parametrize(("flag", "value"), [("--duration", "inf"), ("--seed", "-1"), ("--duration", "0")])
def test_values_that_cannot_be_are_refused(student, capsys, flag, value):
    assert cli.main(["latency", "--engine", str(student), flag, value]) == 2
    assert "expected" in capsys.readouterr().err


def test_the_results_file_keeps_every_duration_and_is_not_overwritten(student, tmp_path, capsys):
    target = tmp_path / "result.json"
    argv = [
        "latency",
        "--engine",
        str(student),
        "--iterations",
        "3",
        "--threads",
        "1",
        "--results-file",
        str(target),
    ]
    assert cli.main(argv) == 0
    written = json.loads(target.read_text())
    assert len(written["samples_ms"]["compute"]) == 3
    assert max(written["samples_ms"]["compute"]) == pytest.approx(written["compute"]["latency_max_ms"])
    assert cli.main(argv) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main([*argv, "--overwrite"]) == 0
