"""`runtime.load` and `Predictor`: answers worked out by hand, threads, wrong input, files of other
origins.
"""

import copy
import math
import pickle
import re
import threading
import warnings

import numpy as np
import pytest
import tiny_onnx
from function_engine import given, predictor_of
from PIL import Image

import runtime
from runtime import ArtifactError, DataError, MissingError, Prediction, UsageError
from runtime.preprocess import Preprocess

RED, BLUE = (255, 0, 0), (0, 0, 255)


class PurePathOfBytes:
    """A path whose name is bytes, which the operating system would take."""

    def __fspath__(self):
        return b"a.onnx"


def solid(color, size=(10, 8)):
    return Image.new("RGB", size, color)


def test_classify_gives_the_probabilities_worked_out_by_hand(student):
    with runtime.load(student) as predictor:
        (guesses,) = predictor.classify(solid(RED))
    e = math.e  # logits of pure red are 0, 0, 1 for blue, green, red
    assert [guess.label for guess in guesses] == [
        "red",
        "blue",
        "green",
    ]  # the tie keeps the lower class first
    assert [guess.index for guess in guesses] == [2, 0, 1]
    assert [guess.probability for guess in guesses] == pytest.approx([e / (e + 2), 1 / (e + 2), 1 / (e + 2)])
    assert isinstance(guesses[0], Prediction)


def test_top_limits_the_guesses_and_may_exceed_the_classes(student):
    with runtime.load(student) as predictor:
        assert [len(predictor.classify(solid(RED), top=top)[0]) for top in (1, 2, 9)] == [1, 2, 3]


def test_of_many_equal_scores_the_lower_class_comes_first(student):
    with runtime.load(student, class_names=[str(i) for i in range(100)]) as predictor:
        (guesses,) = predictor.predictions(np.tile(np.float32([0, 1]), 50)[None], top=100)
    assert [guess.index for guess in guesses] == [*range(1, 100, 2), *range(0, 100, 2)]


def test_every_form_of_image_alone_or_in_a_list_gets_the_same_answer(student, tmp_path):
    solid(BLUE).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    forms = [
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        data,
        bytearray(data),
        memoryview(data),
        solid(BLUE),
        np.asarray(solid(BLUE)),
    ]
    with runtime.load(student) as predictor:
        answers = [predictor.classify(form) for form in forms] + [
            predictor.classify([form]) for form in forms
        ]
        assert len(predictor.classify(forms)) == 7
        assert len(predictor.classify(np.full((8, 10), 9, np.uint8))) == 1  # gray
        assert len(predictor.classify(np.stack([np.asarray(solid(RED))] * 3))) == 3  # (N, H, W, 3)
        assert predictor.classify([]) == []
    assert all(answer == answers[0] for answer in answers)
    assert answers[0][0][0].label == "blue"


def test_logits_equal_the_matrix_product(tiny, tmp_path):
    weights = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)
    path = tiny.write(
        tmp_path / "m.onnx", weights, tiny.metadata(class_names=list("abcde")), bias=[1, 2, 3, 4, 5]
    )
    with runtime.load(path) as predictor:
        found = predictor.logits(x)
    np.testing.assert_allclose(found, x.mean((2, 3)) @ weights.T + [1, 2, 3, 4, 5], rtol=1e-5, atol=1e-5)
    assert (found.shape, found.dtype) == ((4, 5), np.float32)


def test_eight_threads_get_the_same_results_as_one(student):
    batches = [np.random.default_rng(i).standard_normal((2, 3, 8, 8)).astype(np.float32) for i in range(8)]
    wrong, errors = [], []
    with runtime.load(student) as predictor:
        expected = [predictor.logits(batch) for batch in batches]
        start = threading.Barrier(8)

        def work(i):
            try:
                start.wait()
                for _ in range(100):
                    if not np.array_equal(predictor.logits(batches[i]), expected[i]):
                        wrong.append(i)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (wrong, errors) == ([], [])


def test_closing_while_threads_predict_ends_in_results_or_a_usage_error(student):
    batch = np.zeros((1, 3, 8, 8), np.float32)
    predictor, others = runtime.load(student), []

    def work():
        try:
            while True:
                predictor.logits(batch)
        except UsageError:
            pass
        except Exception as error:
            others.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    predictor.close()
    for thread in threads:
        thread.join(10)
    assert others == []
    assert not any(thread.is_alive() for thread in threads)


def test_a_closed_predictor_says_so_and_may_be_closed_again(student):
    predictor = runtime.load(student)
    predictor.close()
    predictor.close()
    for call in (
        lambda: predictor.logits(np.zeros((1, 3, 8, 8), np.float32)),
        lambda: predictor.classify(solid(RED)),
    ):
        with pytest.raises(UsageError, match=r"student\.onnx: closed"):
            call()


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((1, 3, 8, 8)),
        np.zeros((1, 3, 8, 8), np.uint8),
        np.zeros((3, 8, 8), np.float32),
        np.zeros((0, 3, 8, 8), np.float32),
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((1, 3, 8, 9), np.float32),
        [[1.0]],
        None,
    ],
    ids=["float64", "uint8", "no batch", "empty batch", "channels last", "another size", "a list", "None"],
)
def test_a_wrong_batch_is_refused_with_what_was_expected(student, batch):
    with (
        runtime.load(student) as predictor,
        pytest.raises(UsageError, match=r"expected float32 \(N, 3, 8, 8\)"),
    ):
        predictor.logits(batch)


def test_an_unreadable_image_among_others_is_named(student, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"junk")
    with runtime.load(student) as predictor, pytest.raises(DataError, match=r"bad\.jpg"):
        predictor.classify([solid(RED), tmp_path / "bad.jpg"])


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "cpu:one"])
def test_an_unknown_device_is_refused(student, device):
    with pytest.raises(UsageError, match="expected cpu, cuda or cuda:INDEX"):
        runtime.load(student, device)


def test_cuda_without_cuda_is_an_error_and_never_the_cpu(student):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is here")
    with pytest.raises(MissingError, match=r"needs CUDAExecutionProvider.*large2small\[gpu\]"):
        runtime.load(student, "cuda")


@pytest.mark.parametrize("threads", [0, -1])
def test_a_thread_count_below_one_is_refused(student, threads):
    with pytest.raises(UsageError, match="threads"):
        runtime.load(student, threads=threads)


def test_what_runs_is_reported(student):
    with runtime.load(student, threads=1) as predictor:
        assert (predictor.provider, predictor.threads) == ("CPUExecutionProvider", 1)
        assert predictor.engine.startswith("onnxruntime ")
        assert predictor.input_shape == [None, 3, 8, 8]
        assert predictor.metadata.role == "student"
        assert predictor.unknown == []


def test_a_predictor_shows_file_network_input_classes_and_engine(student):
    what = f"<Predictor {student}: fp32 mean_color, input (N, 3, 8, 8), 3 classes (blue, green, red), "
    with runtime.load(student) as predictor:
        assert repr(predictor) == f"{what}onnxruntime {predictor.engine.split()[1]} on cpu>"
    assert repr(predictor) == f"{what}closed>"


def test_a_predictor_of_a_file_of_unknown_origin_can_be_shown(tiny, tmp_path):
    path = tiny.write(tmp_path / "foreign.onnx")
    with pytest.warns(UserWarning, match="class_names"):
        predictor = runtime.load(path)
    assert f"{path}: unknown network, input (N, 3, 8, 8), classes not named, onnxruntime" in repr(predictor)


def test_of_many_classes_three_are_shown(tiny, tmp_path):
    many = [f"class-{i}" for i in range(1000)]
    predictor = runtime.load(tiny.write(tmp_path / "m.onnx", meta=tiny.metadata()), class_names=many)
    assert "1000 classes (class-0, class-1, class-2, ...)" in repr(predictor)


@pytest.mark.parametrize(
    ("batch_sizes", "size", "calls"),
    [
        ([(1, 8)], 64, [8, 3]),
        ([(1, 8)], 4, [4, 4, 3]),
        ([(4, 8)], 64, [8, 4]),
        ([(4, 4)], 1, [4, 4, 4]),
        ([(1, 2), (6, 8)], 8, [8, 6]),
        ([(1, 2), (6, 8)], 4, [6, 6]),
        ([(8, 8), (1, 32)], 64, [11]),
        ([(16, 16)], 2, [16]),
    ],
)
def test_any_number_of_images_goes_in_the_batches_that_the_file_takes(batch_sizes, size, calls):
    predictor = predictor_of(lambda batch: batch[:, 0, 0], batch_sizes, (1, 1, 2))
    images = np.arange(22, dtype=np.float32).reshape(11, 1, 1, 2)
    np.testing.assert_array_equal(predictor.logits_in_batches(images, size), images[:, 0, 0])
    assert given(predictor) == calls
    with pytest.raises(UsageError, match="expected float32"):
        predictor.logits_in_batches(images[:0])


def test_a_file_of_free_batch_size_takes_any_and_one_of_fixed_size_its_own(student, tiny, tmp_path):
    with runtime.load(student, threads=1) as predictor:
        assert predictor.batch_sizes == [(1, None)] and predictor.fit(1000) == 1000
    with pytest.warns(UserWarning, match="carries no preprocess"):
        fixed = runtime.load(tiny.write(tmp_path / "fixed.onnx", batch=4))
    assert fixed.batch_sizes == [(4, 4)] and fixed.fit(1) == fixed.fit(9) == 4
    images = np.random.default_rng(0).standard_normal((9, 3, 8, 8)).astype(np.float32)
    with pytest.warns(UserWarning, match="carries no preprocess"):
        free = runtime.load(tiny.write(tmp_path / "free.onnx"))
    np.testing.assert_allclose(fixed.logits_in_batches(images), free.logits(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [2, 4])
def test_class_names_must_be_as_many_as_scores(student, count):
    said = pytest.raises(ArtifactError, match=f"gives 3 scores per image, and there are {count} class names")
    with runtime.load(student, class_names=["name"] * count) as predictor, said:
        predictor.classify(solid(RED))


def test_scores_go_where_the_caller_wants_them(student):
    images, out = (
        np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32),
        np.full((3, 3), 7, np.float32),
    )
    with runtime.load(student) as predictor:
        assert predictor.logits(images, out=out) is out
        np.testing.assert_array_equal(out, predictor.logits(images))
        with pytest.raises(UsageError, match=r"expected a writeable float32 array \(3, 3\)"):
            predictor.logits(images, out=out[:2])


def test_a_file_without_metadata_runs_and_says_what_is_unknown(tiny, tmp_path):
    path = tiny.write(tmp_path / "foreign.onnx")
    with pytest.warns(UserWarning, match=r"foreign\.onnx: carries no preprocess and no class_names"):
        predictor = runtime.load(path)
    assert predictor.unknown == ["preprocess", "class_names"]
    assert predictor.logits(np.ones((1, 3, 8, 8), np.float32)).tolist() == [[1, 1, 1]]
    with pytest.raises(ArtifactError, match="preprocessing unknown"):
        predictor.classify(solid(RED))


def test_the_caller_may_say_what_a_file_does_not(tiny, tmp_path):
    path = tiny.write(tmp_path / "foreign.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor = runtime.load(path, preprocess=tiny.PLAIN, class_names=("b", "g", "r"))
    assert predictor.classify(solid(RED))[0][0].label == "r"


def test_without_class_names_the_labels_are_numbers(tiny, tmp_path):
    path = tiny.write(tmp_path / "m.onnx", meta=tiny.metadata(class_names=None))
    with pytest.warns(UserWarning, match="class_names"):
        assert runtime.load(path).classify(solid(RED))[0][0].label == "class 2"


def test_a_missing_file_is_a_usage_error(tmp_path):
    for name in ("no.onnx", "no.plan"):
        with pytest.raises(UsageError, match="no such file"):
            runtime.load(tmp_path / name)


def test_another_kind_of_file_names_the_command_that_makes_one(tmp_path):
    (tmp_path / "best.pth").write_bytes(b"")
    with pytest.raises(UsageError, match="distill export onnx"):
        runtime.load(tmp_path / "best.pth")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"", r"ONNX Runtime .* cannot open it"),
        (lambda data: b"junk" * 100, r"not an ONNX file, or cut short \(.*distill export onnx CKPT"),
        (
            lambda data: data[: len(data) // 2],
            r"changed since it was written \(its SHA-256 seal does not hold\)",
        ),
    ],
    ids=["empty", "junk", "truncated"],
)
def test_a_damaged_file_is_an_artifact_error_on_one_line(student, damage, words):
    student.write_bytes(damage(student.read_bytes()))
    with pytest.raises(ArtifactError, match=rf"student\.onnx: {words}") as found:
        runtime.load(student)
    assert "\n" not in str(found.value)


def test_a_truncated_file_of_another_origin_is_one_line_too(tiny, tmp_path):
    path = tiny.write(tmp_path / "other.onnx")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=r"cut short \(\d+ bytes where \d+ are announced\)"):
        runtime.load(path)


@pytest.fixture
def sealed(student):
    """The artifact as export writes it."""
    return student


def test_a_sealed_file_opens_and_answers_as_before(sealed):
    with runtime.load(sealed) as predictor:
        assert predictor.metadata.role == "student"
        assert predictor.classify(solid(RED))[0][0].label == "red"


def test_a_changed_weight_is_found_before_anything_is_predicted(sealed, tiny):
    content = bytearray(sealed.read_bytes())
    place = content.index(tiny.RIGHT.tobytes())
    content[place + 2] ^= 0x80  # a 0 becomes a tiny number: the file still opens and runs
    sealed.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"student\.onnx: changed since it was written") as found:
        runtime.load(sealed)
    assert found.value.exit_code == 4 and "\n" not in str(found.value)
    with runtime.load(sealed, verify=False) as predictor:  # who wants to look at it nevertheless
        assert predictor.logits(np.ones((1, 3, 8, 8), np.float32)).shape == (1, 3)


def test_a_file_cut_anywhere_does_not_open(sealed):
    """Cut before the seal's name is whole, the engine refuses it; after that, the seal. A cut between two
    fields would still be valid protobuf, without the metadata that stands at the end.
    """
    whole = sealed.read_bytes()
    for length in range(0, len(whole), 7):
        sealed.write_bytes(whole[:length])
        with pytest.raises(ArtifactError):
            runtime.load(sealed)


def test_metadata_of_a_newer_schema_is_refused(tiny, tmp_path):
    path = tiny.write(tmp_path / "new.onnx", meta=tiny.metadata(schema=99))
    with pytest.raises(ArtifactError, match="metadata schema 99"):
        runtime.load(path)


def test_a_preprocessing_spec_of_a_newer_version_is_refused(tiny, tmp_path):
    class Newer(Preprocess):
        def to_dict(self):
            return super().to_dict() | {"gamma": 2.2}

    path = tiny.write(tmp_path / "new.onnx", meta=tiny.metadata(preprocess=Newer()))
    with pytest.raises(ArtifactError, match=r"new\.onnx.*gamma"):
        runtime.load(path)


def test_a_network_that_takes_no_image_is_refused(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9),
        str(tmp_path / "m.onnx"),
    )
    with pytest.raises(ArtifactError, match="expected one float32 input"):
        runtime.load(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"contexts": 0}, "contexts=0 is read by tensorrt only, and student.onnx runs on onnxruntime"),
        ({"cuda_graph": True}, "cuda_graph=True is read by tensorrt only"),
        ({"hint": "throughput"}, "hint='throughput' is read by openvino only"),
        ({"backend": "openvino", "provider": "cuda"}, "provider='cuda' is read by onnxruntime only"),
        ({"threads": 1.5}, "threads 1.5: expected a whole number"),
    ],
)
def test_a_setting_that_the_engine_does_not_read_is_refused(student, settings, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        runtime.load(student, **settings)


def test_a_checkpoint_is_not_an_artifact(tmp_path):
    path = tmp_path / "best.pth"
    path.write_bytes(b"PK")
    for backend in (None, "onnxruntime"):
        with pytest.raises(
            UsageError, match=r"opens \.onnx and \.plan files\. Make one: distill export onnx CKPT"
        ):
            runtime.load(path, backend=backend)


def test_top_0_is_refused(student):
    with runtime.load(student) as predictor, pytest.raises(UsageError, match="top 0: expected 1 or more"):
        predictor.classify(np.zeros((8, 8, 3), np.uint8), top=0)


def test_one_image_with_channels_first_is_refused(student):
    with (
        runtime.load(student) as predictor,
        pytest.raises(UsageError, match=(r"\(3, 48," r" 40\).*channels first")),
    ):
        predictor.classify(np.zeros((3, 48, 40), np.uint8))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_batch_mapped_from_a_file_is_taken(student, tmp_path, backend):
    """np.load(mmap_mode="r") gives an array that cannot be written, of a class of its own."""
    pytest.importorskip(backend)
    batch = np.random.default_rng(0).random((5, 3, 8, 8), np.float32)
    np.save(tmp_path / "batch.npy", batch)
    mapped = np.load(tmp_path / "batch.npy", mmap_mode="r")
    with runtime.load(student, backend=backend) as predictor:
        expected = predictor.logits(batch)
        assert np.array_equal(predictor.logits(mapped), expected)
        assert np.array_equal(predictor.logits(mapped[1:3]), predictor.logits(batch[1:3]))
        assert np.array_equal(predictor.logits_in_batches(mapped, 2), predictor.logits_in_batches(batch, 2))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "batch holds NaN (2 of 384 values)"),
        (math.inf, "batch holds infinity (2 of 384 values)"),
        (-math.inf, "batch holds infinity (2 of 384 values)"),
    ],
)
def test_a_batch_with_a_number_that_is_not_finite_is_refused(student, value, words):
    batch = np.zeros((2, 3, 8, 8), np.float32)
    batch[0, 1, 2, 3] = batch[1, 2, 7, 7] = value
    with runtime.load(student) as predictor, pytest.raises(UsageError, match=re.escape(words)):
        predictor.logits(batch)


def test_large_numbers_whose_squares_overflow_are_taken(student):
    batch = np.full((1, 3, 8, 8), 1e30, np.float32)
    with runtime.load(student) as predictor:
        assert np.isfinite(predictor.logits(batch)).all()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_logits_that_are_not_numbers_are_an_error_of_every_call(backend, tmp_path):
    weights = tiny_onnx.RIGHT.copy()
    weights[1, 1] = np.nan
    path = tiny_onnx.write(tmp_path / "nan.onnx", weights, tiny_onnx.metadata())
    batch = np.ones((2, 3, 8, 8), np.float32)
    with runtime.load(path, backend=backend) as predictor:
        for call in (predictor.logits, predictor.logits_in_batches):
            with pytest.raises(ArtifactError, match="scores that are NaN or infinite"):
                call(batch)
        assert np.isnan(predictor.logits(batch, finite=False)).any()


def test_a_number_is_not_an_image(student):
    with runtime.load(student) as predictor:
        for image in (np.array(3), 5, None, {"a": 1}):
            with pytest.raises(UsageError, match=r"expected (uint8 \(height|a path)"):
                predictor.classify(image)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_numbers_are_an_error_and_no_guess(student, bad):
    with runtime.load(student) as predictor:
        scores = np.array([[0.0, 1.0, 2.0], [0.0, bad, 2.0]], np.float32)
        with pytest.raises(ArtifactError, match="scores that are NaN or infinite"):
            predictor.predictions(scores)
        assert predictor.predictions(np.array([[0.0, -math.inf, 1.0]], np.float32))[0][2].probability == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((b"abc",), "load was given 3 bytes; expected the path of a file"),
        ((None,), "load was given a NoneType"),
        ((3,), "load was given a int"),
        (("x" * 5000 + ".onnx",), "cannot be opened (File name too long)"),
        (("/",), "/: is a folder. Expected an .onnx or .plan file"),
        ((PurePathOfBytes(),), "load was given a PurePathOfBytes"),
    ],
)
def test_what_is_no_path_is_refused(given, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        runtime.load(*given)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": 0}, "device 0: expected text"),
        ({"backend": ["onnxruntime"]}, "backend ['onnxruntime']: expected text"),
        ({"provider": 1}, "provider 1: expected text"),
        ({"hint": None}, "hint None: expected text"),
        ({"threads": "2"}, "threads '2': expected a whole number"),
        ({"threads": True}, "threads True: expected a whole number"),
        ({"contexts": 1.0}, "contexts 1.0: expected a whole number"),
        ({"preprocess": {"crop_pct": 1.0}}, "From a dictionary: Preprocess.from_dict(...)"),
        ({"class_names": "cats"}, "class_names 'cats': expected a list of names"),
        ({"threads": 10**20}, "threads 100000000000000000000: expected at most "),
        ({"contexts": 100_000}, "contexts 100000: expected at most "),
        ({"class_names": [1, 2, 3]}, "class_names [1, 2, 3]: expected a list of names"),
    ],
)
def test_an_argument_of_another_type_is_named(student, settings, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        runtime.load(student, **settings)


def test_names_in_an_array_are_taken(student):
    with runtime.load(student, class_names=np.array(["a", "b", "c"])) as predictor:
        assert predictor.class_names == ["a", "b", "c"]


def test_what_is_not_an_array_is_said(student):
    batch = np.zeros((2, 3, 8, 8), np.float32)
    with runtime.load(student) as predictor:
        for call, words in {
            lambda: predictor.logits(np.ma.masked_array(batch)): "batch is a MaskedArray of float32",
            lambda: predictor.logits_in_batches([batch]): "images are a list; expected float32 (N, 3, 8, 8)",
            lambda: predictor.logits_in_batches(None): "images are a NoneType",
            lambda: predictor.logits_in_batches(batch, 1.5): "size 1.5: expected a whole number",
            lambda: predictor.logits_in_batches(batch, 0): "size 0: expected 1 or more",
            lambda: predictor.predictions([[1.0, 2.0, 3.0]]): "logits are a list; expected an array",
            lambda: predictor.classify(np.zeros((0, 8, 3), np.uint8)): "array of uint8 (0, 8, 3): expected",
        }.items():
            with pytest.raises(UsageError, match=re.escape(words)):
                call()


@pytest.mark.parametrize("top", [2.5, "3", None, True])
def test_top_is_a_whole_number(student, top):
    with runtime.load(student) as predictor:
        with pytest.raises(UsageError, match=f"top {re.escape(repr(top))}: expected a whole number"):
            predictor.classify(solid(RED), top=top)
        assert len(predictor.classify(solid(RED), top=np.int64(2))[0]) == 2


@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_predictor_is_neither_pickled_nor_copied(student, way):
    with runtime.load(student) as predictor:
        with pytest.raises(UsageError, match=r"cannot be pickled or copied.* Call runtime\.load in each"):
            way(predictor)
        assert predictor.classify(solid(RED))[0][0].label == "red"
