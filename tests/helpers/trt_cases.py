"""What runtime.backends.tensorrt.backend must do, run in one process that finds the TEST DOUBLES of TensorRT
and the CUDA driver.

In:  a folder.
Out: on stdout a JSON object {case: None, or the traceback of its failure}.
Elsewhere: starting it, and what must be tried in processes of their own
(tests/runtime/backends/tensorrt/test_backend.py).
"""

import ctypes
import gc
import json
import os
import sys
import threading
import traceback
from pathlib import Path

import doubles
import numpy as np
import tiny_onnx as tiny
from doubles import alive

import runtime
from runtime import artifact
from runtime.backends.tensorrt import cuda, plan
from runtime.errors import ArtifactError, MissingError, UsageError


def weights(classes=5):
    return np.random.default_rng(7).standard_normal((classes, 3)).astype(np.float32)


def images(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def write(
    place, profiles=((1, 4, 8),), *, batch="N", name="student", onnx=None, sidecar=True, engine=None, **facts
):
    """(plan, the ONNX file beside it). facts: of tensorrt_double.serialize; engine: what the metadata says
    differently.
    """
    import tensorrt_double

    onnx = onnx or tiny.write(
        place / f"{name}.onnx", weights(), tiny.metadata(class_names=[*"abcde"]), batch=batch
    )
    content = tensorrt_double.serialize(onnx.read_bytes(), profiles=profiles, **facts)
    path = place / f"{name}.plan"
    path.write_bytes(content)
    if sidecar:
        meta = tiny.metadata(class_names=[*"abcde"], engine=doubles.about(content, onnx, **(engine or {})))
        artifact.sidecar_of(path).write_bytes(artifact.sidecar_bytes(meta))
    return path, onnx


def expected(onnx, batch):
    with runtime.load(onnx) as reference:
        return reference.logits(batch)


def raises(error, words, call):
    """The message of what `call` must raise; it holds `words`, and is one line."""
    try:
        call()
    except error as found:
        text = str(found)
        assert words in text and "\n" not in text, text
        return text
    raise AssertionError(f"no {error.__name__}")


def in_threads(count, work):
    failures = []

    def guarded(number):
        try:
            work(number)
        except BaseException:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


class OnGpu:
    """An array as CuPy or torch would show it, in the memory of a `runtime.backends.tensorrt.cuda.Device`."""

    def __init__(self, device, values, stream=None, strides=None):
        self.device, self.shape = device, values.shape
        with device.active():
            self.memory = device.alloc(values.nbytes)
        ctypes.memmove(self.memory.address, np.ascontiguousarray(values).ctypes.data, values.nbytes)
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "version": 3,
            "strides": strides,
            "data": (self.memory.address, False),
            "stream": stream,
        }

    def values(self):
        """What is there now, without waiting for anything."""
        return np.array(
            (ctypes.c_float * int(np.prod(self.shape))).from_address(self.memory.address)
        ).reshape(self.shape)

    def free(self):
        with self.device.active():
            self.memory.close()


def case_same_logits_as_the_onnx_file(place):
    path, onnx = write(place)
    with runtime.load(path) as engine:
        assert (
            engine.engine == "tensorrt 10.3.0"
            and engine.device == "cuda"
            and engine.input_shape == [None, 3, 8, 8]
        )
        assert "Test Double GPU" in engine.provider and "9.0" in engine.provider and engine.threads is None
        assert engine.class_names == [*"abcde"]
        for count in (1, 3, 8, 2):
            np.testing.assert_array_equal(
                engine.logits(images(count, count)), expected(onnx, images(count, count))
            )


def case_batch_of_fixed_size(place):
    path, onnx = write(place, (), batch=4)
    with runtime.load(path) as engine:
        assert engine.input_shape == [4, 3, 8, 8]
        np.testing.assert_array_equal(engine.logits(images(4)), expected(onnx, images(4)))
        raises(UsageError, "(4, 3, 8, 8)", lambda: engine.logits(images(3)))


def case_batch_outside_every_profile(place):
    path, onnx = write(place, ((2, 2, 3), (6, 7, 8)))
    with runtime.load(path) as engine:
        for count in (1, 4, 5, 9):
            words = f"takes batches of 2 to 3 or 6 to 8 images, given {count}"
            raises(UsageError, words, lambda n=count: engine.logits(images(n)))
            np.testing.assert_array_equal(
                engine.logits_in_batches(images(count)), expected(onnx, images(count))
            )
        assert engine.logits(images(7)).shape == (7, 5)


def case_profile_with_the_smallest_memory_is_taken(place):
    path, onnx = write(place, ((1, 16, 32), (1, 1, 1), (2, 4, 8)))
    with runtime.load(path) as engine:
        before = alive()["bytes"]
        engine.logits(images(1))
        assert alive()["bytes"] == before, "opened with the smallest profile"
        engine.logits(images(2))
        assert 0 < alive()["bytes"] - before < 32 * 192 * 4, "the next larger one"
        engine.logits(images(9))
        assert alive()["bytes"] - before > 32 * 192 * 4
        for count in (1, 5, 20, 2, 1, 32, 8):
            np.testing.assert_array_equal(
                engine.logits(images(count, count)), expected(onnx, images(count, count))
            )
        full = alive()
        for count in (1, 5, 20, 2, 1, 32, 8):
            engine.logits(images(count))
        assert alive() == full, "buffers are allocated once for each profile"


def case_logits_go_where_the_caller_wants(place):
    path, onnx = write(place)
    with runtime.load(path) as engine:
        out, batch = np.full((3, 5), np.nan, np.float32), images(3)
        assert engine.logits(batch, out=out) is out
        np.testing.assert_array_equal(out, expected(onnx, batch))
        first = engine.logits(batch)
        engine.logits(images(3, 9))
        np.testing.assert_array_equal(first, out)  # not the engine's own memory
        strided = np.zeros((3, 10), np.float32)[:, ::2]
        np.testing.assert_array_equal(engine.logits(batch, out=strided), out)
        for bad in (np.empty((2, 5), np.float32), np.empty((3, 5))):
            raises(
                UsageError,
                "expected a writeable float32 array (3, 5)",
                lambda b=bad: engine.logits(batch, out=b),
            )


def case_batch_that_is_not_contiguous(place):
    path, onnx = write(place)
    wide = np.random.default_rng(3).standard_normal((2, 3, 8, 16)).astype(np.float32)[..., ::2]
    with runtime.load(path) as engine:
        np.testing.assert_array_equal(engine.logits(wide), expected(onnx, np.ascontiguousarray(wide)))


def case_bad_batches(place):
    path, _ = write(place)
    with runtime.load(path) as engine:
        raises(
            UsageError, "expected float32 (N, 3, 8, 8)", lambda: engine.logits(images(2).astype(np.float64))
        )
        raises(UsageError, "expected float32 (N, 3, 8, 8)", lambda: engine.logits(images(2)[:, :2]))
        raises(UsageError, "expected float32 (N, 3, 8, 8)", lambda: engine.logits(images(0)))
        holed = images(2)
        holed[1, 2, 3, 4] = np.nan
        raises(UsageError, "NaN (1 of 384 values)", lambda: engine.logits(holed))
        raises(UsageError, "neither a numpy array nor an array on a GPU", lambda: engine.logits([1, 2]))


def case_arrays_on_the_gpu(place):
    path, onnx = write(place)
    device = cuda.open_device(0)
    with runtime.load(path) as engine:
        batch = images(3)
        source, target = OnGpu(device, batch), OnGpu(device, np.zeros((3, 5), np.float32))
        np.testing.assert_array_equal(engine.logits(source), expected(onnx, batch))
        assert engine.logits(source, out=target) is target
        np.testing.assert_array_equal(target.values(), expected(onnx, batch))
        ctypes.memset(target.memory.address, 0, 60)
        assert engine.logits(batch, out=target) is target
        np.testing.assert_array_equal(target.values(), expected(onnx, batch))
        double = OnGpu(device, batch.astype(np.float64))
        raises(UsageError, "float64 (3, 3, 8, 8) on the GPU", lambda: engine.logits(double))
        raises(UsageError, "expected float32 (3, 5)", lambda: engine.logits(source, out=source))
        turned = OnGpu(device, batch, strides=(4, 4, 4, 4))
        raises(UsageError, "not contiguous", lambda: engine.logits(turned))
        many = OnGpu(device, images(9))
        raises(UsageError, "given 9", lambda: engine.logits(many))
        for each in (source, target, double, turned, many):
            each.free()
    device.close()


class ByDlpack:
    """numpy's capsule of an array, said to be on a GPU."""

    def __init__(self, values, index):
        self.values, self.index = values, index

    def __dlpack_device__(self):
        return (2, self.index)

    def __dlpack__(self, *, stream=None):
        return self.values.__dlpack__()


def case_arrays_on_another_gpu(place):
    path, onnx = write(place)
    with runtime.load(path) as engine:
        raises(
            UsageError,
            "batch is on cuda:1; the plan is open on cuda:0",
            lambda: engine.logits(ByDlpack(images(2), 1)),
        )
        out = ByDlpack(np.zeros((2, 5), np.float32), 1)
        raises(UsageError, "out is on cuda:1", lambda: engine.logits(images(2), out=out))
        np.testing.assert_array_equal(engine.logits(ByDlpack(images(2), 0)), expected(onnx, images(2)))


def case_what_the_producer_still_has_in_its_stream_is_waited_for(place):
    path, onnx = write(place)
    device = cuda.open_device(0)
    with device.active():
        late = device.stream()
    source, later = OnGpu(device, images(2, 1), stream=late.handle), images(2, 2)
    with runtime.load(path) as engine:
        with device.active():
            device.to_device(
                source.memory.address, later, late
            )  # not done yet: the double does work when it is waited for
        np.testing.assert_array_equal(source.values(), images(2, 1))
        np.testing.assert_array_equal(engine.logits(source), expected(onnx, later))
    source.free()
    with device.active():
        late.close()
    device.close()


def case_eight_threads_on_one_context_and_on_three(place):
    path, onnx = write(place, ((1, 1, 2), (1, 4, 8)))
    wanted = {seed: expected(onnx, images(seed % 8 + 1, seed)) for seed in range(40)}
    for contexts in (1, 3):
        with runtime.load(path, contexts=contexts) as engine:

            def work(number, engine=engine):
                for seed in range(number, 40, 8):
                    np.testing.assert_array_equal(engine.logits(images(seed % 8 + 1, seed)), wanted[seed])

            in_threads(8, work)
            assert alive()["streams"] == contexts


def case_graphs_give_the_same_and_few_are_kept(place):
    path, onnx = write(place)
    with runtime.load(path, cuda_graph=True) as engine:
        assert "CUDA graphs" in engine.provider
        for count in (1, 2, 1, 8, 3, 4, 5, 6, 7, 2, 1, 1):
            for seed in (0, 1):
                np.testing.assert_array_equal(
                    engine.logits(images(count, seed)), expected(onnx, images(count, seed))
                )
        assert alive()["graphs"] == 4
        wanted = [expected(onnx, images(count)) for count in range(1, 9)]
        in_threads(
            8, lambda number: np.testing.assert_array_equal(engine.logits(images(number + 1)), wanted[number])
        )


def case_graphs_are_replayed_not_enqueued_again(place):
    path, _ = write(place)
    with runtime.load(path, cuda_graph=True) as engine:
        import tensorrt_double

        engine.logits(images(2))
        context = next(iter(engine._backend._held.pool._slots[0]._contexts.values()))
        context._enqueue = None  # a call would fail
        made = next(tensorrt_double._NUMBERS)
        for _ in range(3):
            engine.logits(images(2))
        assert next(tensorrt_double._NUMBERS) == made + 1
        del context


def case_closing_frees_everything_and_later_calls_are_refused(place):
    path, _ = write(place, ((1, 1, 1), (2, 4, 8)))
    before = alive()
    for cuda_graph in (False, True):
        engine = runtime.load(path, contexts=2, cuda_graph=cuda_graph)
        engine.logits(images(1))
        engine.logits(images(4))
        run = engine._backend.run
        engine.close()
        engine.close()
        assert alive() == before
        raises(UsageError, "closed", lambda e=engine: e.logits(images(1)))
        raises(UsageError, "closed", lambda r=run: r(images(1)))


def case_closing_waits_for_a_slot_that_is_lent(place):
    from runtime.backends.tensorrt.slots import Pool

    pool, lent, back, closed = Pool(place, ["slot"]), threading.Event(), threading.Event(), threading.Event()

    def work(number):
        if number == 0:
            with pool.lend() as slot:
                assert slot == "slot"
                lent.set()
                assert back.wait(10)
        elif number == 1:
            lent.wait(10)
            assert pool.close() == ["slot"]
            closed.set()
        else:
            lent.wait(10)
            assert not closed.wait(0.2), "closed while a call was running"
            back.set()
            assert closed.wait(10)

    in_threads(3, work)
    raises(UsageError, "closed", lambda: pool.lend().__enter__())


def case_closing_waits_for_running_calls(place):
    path, onnx = write(place)
    wanted, results, refused = expected(onnx, images(8)), [], []
    for _ in range(5):
        engine = runtime.load(path, contexts=2)
        started = threading.Barrier(5)

        def work(number, engine=engine, started=started):
            started.wait()
            if number == 4:
                engine.close()
                return
            try:
                while True:
                    results.append(np.array_equal(engine.logits(images(8)), wanted))
            except UsageError:
                refused.append(number)

        in_threads(5, work)
    assert len(refused) == 20 and all(results)


def case_gone_without_closing(place):
    path, _ = write(place)
    before = alive()
    engine = runtime.load(path)
    engine.logits(images(1))
    del engine
    gc.collect()
    assert alive() == before


def case_ten_thousand_calls_leave_nothing(place):
    path, _ = write(place)
    with runtime.load(path, contexts=2) as engine:
        batch = images(1)
        engine.logits(batch)
        before = alive()
        for _ in range(10_000):
            engine.logits(batch)
        assert alive() == before
        import tensorrt_double

        assert not tensorrt_double.JOBS


def case_no_memory(place):
    path, _ = write(place, ((1, 1, 1), (2, 2, 2_000_000)))
    before = alive()
    with runtime.load(path) as engine:
        held = alive()
        text = raises(MissingError, "out of GPU memory", lambda: engine.logits(images(2)))
        assert "MiB are free" in text
        assert alive() == held, "what was half made is freed"
        assert engine.logits(images(1)).shape == (1, 5)
    assert alive() == before


def case_engines_that_are_not_a_classifier(place):
    from onnx import TensorProto, helper

    def odd(name, inputs, outputs, nodes):
        values = [[helper.make_tensor_value_info(*each) for each in side] for side in (inputs, outputs)]
        graph = helper.make_graph(nodes, "odd", *values)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        file = place / f"{name}.onnx"
        file.write_bytes(model.SerializeToString())
        return write(place, (), name=name, onnx=file)[0]

    flat = [helper.make_node("Flatten", ["image"], ["logits"])]
    float32, image = TensorProto.FLOAT, ("image", TensorProto.FLOAT, [1, 3, 2, 2])
    two = odd("two", [image, ("mask", float32, [1])], [("logits", float32, [1, 12])], flat)
    half = odd(
        "half",
        [("image", TensorProto.FLOAT16, [1, 3, 2, 2])],
        [("logits", TensorProto.FLOAT16, [1, 12])],
        flat,
    )
    row = odd("row", [("image", float32, [1, 12])], [("logits", float32, [1, 12])], flat)
    map_ = odd(
        "map", [image], [("logits", float32, [1, 3, 2, 2])], [helper.make_node("Relu", ["image"], ["logits"])]
    )
    before = alive()
    raises(ArtifactError, "mask float32 (1,)", lambda: runtime.load(two))
    raises(ArtifactError, "image half (1, 3, 2, 2)", lambda: runtime.load(half))
    raises(ArtifactError, "expected float32 (N, C, H, W)", lambda: runtime.load(row))
    raises(ArtifactError, "logits float32 (1, 3, 2, 2)", lambda: runtime.load(map_))
    for quirk, words in (
        ({"host": ["image"]}, "is on the host"),
        ({"vectorized": ["logits"]}, "Four wide channel vectorized"),
        ({"data_dependent": True}, "known before it runs"),
    ):
        raises(ArtifactError, words, lambda q=quirk: runtime.load(write(place, quirks=q)[0]))
    assert alive() == before


def case_tensorrt_s_own_reason_is_passed_on(place):
    path, _ = write(place, quirks={"fails": True})
    with runtime.load(path) as engine:
        text = raises(ArtifactError, "Cask convolution execution", lambda: engine.logits(images(1)))
        assert "cannot run it" in text
    engine = None
    foreign, _ = write(place, name="foreign", sidecar=False, compute_capability="8.6")
    text = raises(
        ArtifactError, "expecting compute 9.0 got compute 8.6", lambda: runtime.load(foreign, verify=False)
    )
    assert "another kind of GPU" in text and "--rebuild" in text
    damaged = place / "damaged.plan"
    damaged.write_bytes(path.read_bytes()[:-1] + b"?")
    raises(ArtifactError, "the file is damaged, or not a plan", lambda: runtime.load(damaged, verify=False))
    assert alive()["device"] == 0


def case_foreign_plan_opens_when_asked(place):
    path, onnx = write(place, sidecar=False)
    raises(ArtifactError, "student.plan.json is not beside it", lambda: runtime.load(path))
    with runtime.load(path, verify=False) as engine:
        assert engine.metadata.precision == "unknown" and engine.preprocess is None
        np.testing.assert_array_equal(engine.logits(images(2)), expected(onnx, images(2)))


def case_weights_come_from_the_onnx_file_beside(place):
    stripped = {"flags": {"strip_weights": True}}
    path, onnx = write(place, stripped=["weights", "bias"], engine=stripped)
    with runtime.load(path) as engine:
        np.testing.assert_array_equal(engine.logits(images(2)), expected(onnx, images(2)))
    other, source = write(place, name="other", stripped=["weights", "extra"], engine=stripped)
    raises(ArtifactError, "no weights for extra", lambda: runtime.load(other))
    source.write_bytes(source.read_bytes() + b"\0")
    raises(ArtifactError, "SHA-256 differs", lambda: runtime.load(other))
    source.unlink()
    raises(ArtifactError, "other.onnx, which has them, is not beside it", lambda: runtime.load(other))
    assert alive()["device"] == 0


def case_version_compatible_plan_runs_on_a_later_version_only(place):
    flags = {"flags": {"version_compat": True}}
    older, onnx = write(place, version_compat=True, engine=flags | {"version": "10.2.0.5"})
    content = bytearray(older.read_bytes())
    content[25] = 2
    older.write_bytes(content)
    meta = tiny.metadata(engine=doubles.about(bytes(content), onnx, **flags))
    artifact.sidecar_of(older).write_bytes(artifact.sidecar_bytes(meta))
    with runtime.load(older) as engine:
        np.testing.assert_array_equal(engine.logits(images(2)), expected(onnx, images(2)))
    content[25] = 4
    older.write_bytes(content)
    meta = tiny.metadata(engine=doubles.about(bytes(content), onnx, **flags))
    artifact.sidecar_of(older).write_bytes(artifact.sidecar_bytes(meta))
    raises(ArtifactError, "its own version or a later one", lambda: runtime.load(older))


def case_plan_for_any_gpu_from_ampere_on(place):
    path, _ = write(
        place,
        compute_capability="8.6",
        hardware_compat="AMPERE_PLUS",
        engine={"compute_capability": "8.6", "flags": {"hardware_compat": "ampere_plus"}},
    )
    with runtime.load(path) as engine:
        assert engine.logits(images(1)).shape == (1, 5)


def case_tensorrt_for_rtx(place):
    import tensorrt_double

    sys.modules["tensorrt_rtx_bindings"] = tensorrt_double.make("rtx-1.7")
    path, onnx = write(
        place, version="rtx-1.7", engine={"flavor": "rtx", "version": "1.7.1.116", "compute_capability": None}
    )
    with runtime.load(path, cuda_graph=True) as engine:
        assert engine.engine == "tensorrt_rtx 1.7.1.116" and engine.provider.startswith(
            "TensorRT for RTX on Test Double GPU"
        )
        np.testing.assert_array_equal(engine.logits(images(2)), expected(onnx, images(2)))
    bound, _ = write(
        place,
        version="rtx-1.7",
        name="bound",
        compute_capability="8.9",
        engine={"flavor": "rtx", "version": "1.7.1.116", "compute_capability": "8.9"},
    )
    raises(
        ArtifactError,
        "TensorRT for RTX names GPUs of compute capability 7.5, 8.0",
        lambda: runtime.load(bound),
    )
    del sys.modules["tensorrt_rtx_bindings"]


def case_failed_call_leaves_nothing_pending(place):
    path, _ = write(place, quirks={"fails": True})
    device = cuda.open_device(0)
    source = OnGpu(device, images(2))
    with runtime.load(path) as engine:
        raises(ArtifactError, "Cask", lambda: engine.logits(source))
        slot = engine._backend._held.pool._slots[0]
        target = np.zeros((2, 3, 8, 8), np.float32)
        ctypes.memmove(target.ctypes.data, slot._buffers[0].input.address, target.nbytes)
        np.testing.assert_array_equal(
            target, images(2)
        )  # copied when the error came, so the caller may free it
        del slot
    source.free()
    device.close()


def case_context_that_cannot_be_set_up_is_freed_at_once(place):
    path, _ = write(place, ((1, 1, 1), (2, 4, 8)), quirks={"profile": True})
    with runtime.load(path) as engine:
        before, kept = alive()["device"], None
        try:
            engine.logits(images(2))
        except ArtifactError as error:
            kept = error
        assert "cannot choose a profile: Error in set optimization profile async." in str(kept)
        assert alive()["device"] == before + 2, "the profile's two buffers, and no context"
        assert engine.logits(images(1)).shape == (1, 5)


def case_bad_arguments(place):
    path, _ = write(place)
    raises(UsageError, "contexts 0", lambda: runtime.load(path, contexts=0))
    raises(UsageError, "this machine has 1 GPU", lambda: runtime.load(path, device="cuda:1"))
    raises(UsageError, "a plan runs on an NVIDIA GPU", lambda: runtime.load(path, device="cpu"))
    assert plan.gpu_index("cuda:3") == 3


def main(folder: Path) -> int:
    import tensorrt_double

    found = {}
    for name, case in [(name, case) for name, case in globals().items() if name.startswith("case_")]:
        place = folder / name
        place.mkdir()
        try:
            case(place)
            gc.collect()
            assert not tensorrt_double.FAULTS, tensorrt_double.FAULTS
            left = {kind: count for kind, count in alive().items() if count}
            assert not left, f"left on the GPU: {left}"
            found[name] = None
        except BaseException as error:
            found[name] = "".join(traceback.format_exception(error))
            traceback.clear_frames(error.__traceback__)
            del error
        tensorrt_double.FAULTS.clear()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.setdlopenflags(
        os.RTLD_LAZY
    )  # pycuda names functions that are never called and that the double does not have
    sys.exit(main(Path(sys.argv[1])))
