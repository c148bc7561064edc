"""What both libraries under runtime.backends.tensorrt.cuda must do: on a GPU, or in a process that finds the
TEST DOUBLE of the CUDA driver.

In:  pycuda or cuda-python, and `double` where the driver is the test double, whose counts of what is alive
are compared too.
Out: on stdout a JSON object {case: None, why it was skipped, or the traceback of its failure}.
Elsewhere: starting it (tests/runtime/test_cuda.py).
"""

import contextlib
import ctypes
import gc
import json
import os
import sys
import threading
import traceback

import numpy as np

from runtime.backends.tensorrt import cuda
from runtime.errors import ArtifactError, MissingError, UsageError

CALLS = 10_000


@contextlib.contextmanager
def closing(*owned):
    """The values, closed in reverse order, whatever happens."""
    with contextlib.ExitStack() as stack:
        for each in owned:
            stack.callback(each.close)
        yield owned


def raises(error, words, call):
    try:
        call()
    except error as found:
        text = str(found)
        assert words in text and "\n" not in text, text
        return
    raise AssertionError(f"no {error.__name__}")


def numbers(count, seed=0):
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def case_facts(device):
    assert device.library == LIBRARY and device.index == 0 and device.name.strip() == device.name != ""
    major, minor = device.compute_capability
    assert 3 <= major < 30 and 0 <= minor < 10
    assert device.can_capture == (LIBRARY == "cuda-python")
    assert int(device.cuda_version.split(".")[0]) >= 11 and device.driver_version
    with device.active():
        assert 0 < device.free_memory() <= device.total_memory
    if DOUBLE:
        assert (
            device.name == "Test Double GPU"
            and device.compute_capability == (9, 0)
            and device.total_memory == 2**30
        )


def case_copies(device):
    sent = numbers(1000)
    with (
        device.active(),
        closing(
            device.stream(),
            device.alloc(sent.nbytes),
            device.alloc(sent.nbytes),
            device.pinned((1000,), np.float32),
            device.pinned((10, 100), np.float32),
        ) as owned,
    ):
        stream, first, second, source, back = owned
        assert first.nbytes == sent.nbytes and first.address != second.address
        assert (
            source.array.shape == (1000,) and back.array.shape == (10, 100) and back.array.dtype == np.float32
        )
        source.array[:], back.array[:] = sent, 0
        device.to_device(first.address, source.array, stream)
        device.on_device(second.address, first.address, sent.nbytes, stream)
        device.to_host(back.array, second.address, stream)
        stream.synchronize()
        np.testing.assert_array_equal(back.array.ravel(), sent)
        # a part, from the middle
        device.to_host(back.array[3], second.address + 4 * 500, stream)
        stream.synchronize()
        np.testing.assert_array_equal(back.array[3], sent[500:600])


def case_plain_arrays_are_copied_too(device):
    sent, back = numbers(64), np.zeros(64, np.float32)
    with device.active(), closing(device.stream(), device.alloc(256)) as (stream, memory):
        device.to_device(memory.address, sent, stream)
        device.to_host(back, memory.address, stream)
        stream.synchronize()
    np.testing.assert_array_equal(back, sent)


def case_copies_wait_for_nobody(device):
    if not DOUBLE:
        return "when a copy is done cannot be chosen on a GPU"
    with (
        device.active(),
        closing(
            device.stream(),
            device.alloc(256),
            device.pinned((64,), np.float32),
            device.pinned((64,), np.float32),
        ) as (stream, memory, source, back),
    ):
        source.array[:], back.array[:] = 1, 0
        device.to_device(memory.address, source.array, stream)
        device.to_host(back.array, memory.address, stream)
        assert not back.array.any(), "done before anybody waited"
        stream.synchronize()
        assert (back.array == 1).all()
    return None


def case_events(device):
    with (
        device.active(),
        closing(
            device.stream(),
            device.event(),
            device.event(),
            device.alloc(2**20),
            device.pinned((2**18,), np.float32),
        ) as (stream, start, stop, memory, source),
    ):
        start.record(stream)
        for _ in range(10):
            device.to_device(memory.address, source.array, stream)
        stop.record(stream)
        stop.synchronize()
        assert 0 < stop.milliseconds_since(start) < 10_000
        device.to_host(source.array, memory.address, stream)
        stop.record(stream)  # an event is used again
        stop.synchronize()
        assert stop.milliseconds_since(start) > 0


def case_waits_for_another_stream(device):
    sent = numbers(64)
    with (
        device.active(),
        closing(
            device.stream(),
            device.stream(),
            device.alloc(256),
            device.pinned((64,), np.float32),
            device.pinned((64,), np.float32),
        ) as (theirs, ours, memory, source, back),
    ):
        source.array[:], back.array[:] = sent, 0
        device.to_device(memory.address, source.array, theirs)
        device.wait_for(ours, theirs.handle)
        device.to_host(back.array, memory.address, ours)
        ours.synchronize()
        np.testing.assert_array_equal(back.array, sent)
        for default in (0, cuda.DEFAULT_STREAM, 2):
            device.wait_for(ours, default)
        ours.synchronize()


def case_threads(device):
    with device.active():
        shared = device.alloc(8 * 4096)
    failures = []

    def work(number):
        try:
            for turn in range(50):
                sent = numbers(1024, 100 * number + turn)
                with (
                    device.active(),
                    closing(device.stream(), device.pinned((1024,), np.float32)) as (stream, host),
                ):
                    host.array[:] = sent
                    device.to_device(shared.address + 4096 * number, host.array, stream)
                    stream.synchronize()
                    host.array[:] = 0
                    device.to_host(host.array, shared.address + 4096 * number, stream)
                    stream.synchronize()
                    np.testing.assert_array_equal(host.array, sent)
        except BaseException:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with device.active():
        shared.close()
    assert not failures, failures[0]


def case_context_is_current_only_inside(device):
    if not DOUBLE:
        return "another library may hold a context in this thread"
    library, current = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(1)
    for depth in (0, 1, 2):
        with contextlib.ExitStack() as stack:
            for _ in range(depth):
                stack.enter_context(device.active())
            library.cuCtxGetCurrent(ctypes.byref(current))
            assert bool(current.value) == (depth > 0)
    try:
        with device.active():
            raise KeyError("of the caller")
    except KeyError:
        library.cuCtxGetCurrent(ctypes.byref(current))
    assert not current.value, "left current after an error"
    return None


def case_graph(device):
    with (
        device.active(),
        closing(
            device.stream(),
            device.alloc(256),
            device.pinned((64,), np.float32),
            device.pinned((64,), np.float32),
        ) as (stream, memory, source, back),
    ):

        def enqueue():
            device.to_device(memory.address, source.array, stream)
            device.to_host(back.array, memory.address, stream)

        if not device.can_capture:
            raises(MissingError, "cuda-python", lambda: device.capture(stream, enqueue))
            return
        back.array[:] = 0
        with closing(device.capture(stream, enqueue)) as (graph,):
            assert not back.array.any(), "captured, not run"
            for seed in (1, 2):
                source.array[:] = numbers(64, seed)
                graph.launch(stream)
                stream.synchronize()
                np.testing.assert_array_equal(back.array, numbers(64, seed))

        def broken():
            enqueue()
            raise KeyError("of the caller")

        try:
            device.capture(stream, broken)
        except KeyError:
            pass
        else:
            raise AssertionError("the caller's error is lost")
        enqueue()  # the stream is no longer capturing
        stream.synchronize()


def case_out_of_memory(device):
    with device.active():
        raises(MissingError, "out of GPU memory: 4,194,304.0 MiB asked for", lambda: device.alloc(2**42))
        device.alloc(256).close()


def case_wrong_call_is_an_error_of_ours(device):
    if not DOUBLE:
        return "a call that is wrong may end the context of a GPU"

    def nothing():
        with device.active():
            device.alloc(0)

    raises(ArtifactError, "CUDA: ", nothing)
    return None


def case_closing_twice_is_harmless(device):
    with device.active():
        owned = [device.stream(), device.event(), device.alloc(16), device.pinned((4,), np.float32)]
        for _ in range(2):
            for each in owned:
                each.close()
    other = cuda.open_device(0, LIBRARY)
    other.close()
    other.close()


def case_closed_in_another_thread(device):
    def work():
        other = cuda.open_device(0, LIBRARY)
        opened.append(other)

    opened = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if DOUBLE:
        held = ctypes.CDLL("libcuda.so.1").double_references
        assert held(0) == 2
    opened[0].close()
    assert not DOUBLE or held(0) == 1, "the primary context is still held"
    with device.active():
        device.alloc(16).close()


def case_second_device_shares_the_first_one_s_memory(device):
    other = cuda.open_device(0, LIBRARY)
    sent, back = numbers(16), np.zeros(16, np.float32)
    with device.active():
        memory, stream = device.alloc(64), device.stream()
        device.to_device(memory.address, sent, stream)
        stream.synchronize()
    with other.active(), closing(other.stream()) as (reader,):
        other.to_host(back, memory.address, reader)
        reader.synchronize()
    np.testing.assert_array_equal(back, sent)
    other.close()
    with device.active():  # still there after the other let its part of the primary context go
        memory.close()
        stream.close()


def case_ten_thousand_calls_leave_nothing(device):
    with (
        device.active(),
        closing(device.stream(), device.event(), device.alloc(1024), device.pinned((256,), np.float32)) as (
            stream,
            event,
            memory,
            host,
        ),
    ):

        def call():
            with device.active():
                device.to_device(memory.address, host.array, stream)
                device.wait_for(stream, 0)
                device.to_host(host.array, memory.address, stream)
                event.record(stream)
                event.synchronize()

        call()
        free, counts = device.free_memory(), alive() if DOUBLE else None
        for _ in range(CALLS):
            call()
        stream.synchronize()
        assert device.free_memory() == free
        assert not DOUBLE or alive() == counts


def case_allocated_ten_thousand_times(device):
    with device.active():
        device.alloc(2**20).close()
        free = device.free_memory()
        for _ in range(CALLS):
            with closing(device.alloc(2**20)):
                pass
        for _ in range(100):
            with closing(device.stream(), device.event(), device.pinned((256,), np.float32)):
                pass
        assert device.free_memory() == free


def case_index_that_is_not_there(device):
    raises(UsageError, "cuda:99: this machine has", lambda: cuda.open_device(99, LIBRARY))
    raises(UsageError, "cuda:-1: this machine has", lambda: cuda.open_device(-1, LIBRARY))


def main() -> int:
    found = {}
    for name, case in [(name, case) for name, case in globals().items() if name.startswith("case_")]:
        try:
            device = cuda.open_device(0, LIBRARY)
            try:
                found[name] = case(device)
            finally:
                device.close()
            gc.collect()
            left = {kind: count for kind, count in alive().items() if count} if DOUBLE else {}
            assert not left, f"left on the GPU: {left}"
        except BaseException as error:
            found[name] = "".join(traceback.format_exception(error))
            traceback.clear_frames(error.__traceback__)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    LIBRARY, DOUBLE = sys.argv[1], sys.argv[2:] == ["double"]
    if DOUBLE:
        from doubles import alive

        sys.setdlopenflags(
            os.RTLD_LAZY
        )  # pycuda names functions that are never called and that the double does not have
    sys.exit(main())
