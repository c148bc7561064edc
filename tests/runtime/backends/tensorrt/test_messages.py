"""What TensorRT's logger says: kept, heard by those who listen, and explained."""

import threading
from types import SimpleNamespace

import pytest

from runtime.backends.tensorrt import messages


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        (
            (
                "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed. Version tag does"
                " not match. Note: Current Version: 240, Serialized Engine Version: 239"
            ),
            "another TensorRT version",
        ),
        (
            (
                "The engine plan file is not compatible with this version of TensorRT, expecting library"
                " version 10.3 got 10.0, please rebuild."
            ),
            "another TensorRT version",
        ),
        (
            (
                "The engine plan file is generated on an incompatible device, expecting compute 8.6 got"
                " compute 8.9, please rebuild."
            ),
            "another kind of GPU",
        ),
        ("The current device is not compatible with this hardware-compatible engine.", "another kind of GPU"),
        ("Platform specific tag mismatch detected.", "another operating system"),
        ("Magic tag does not match", "damaged"),
        ("Cannot deserialize with an empty memory buffer", "damaged"),
        (
            (
                "Cannot deserialize engine with lean runtime since IRuntime::getEngineHostCodeAllowed() is"
                " false."
            ),
            "a runtime of its own",
        ),
        ("Error Code 2: OutOfMemory (Requested size was 2048 bytes.)", "memory does not suffice"),
    ],
)
def test_what_tensorrt_says_is_kept_and_explained(line, meaning):
    text = messages.explain(line)
    assert meaning in text and text.endswith(f"({line})")


def test_unknown_reason_is_passed_on_as_it_is():
    assert messages.explain("Cask error") == "Cask error"


def test_log_keeps_the_last_lines_and_gives_those_since_a_call():
    log = messages.Log()
    for number in range(100):
        log.add("ERROR" if number % 2 else "WARNING", f"line  {number}\n")
    log.add("INFO", "not kept")
    assert log.count == 100 and len(log.lines) == messages.KEPT
    assert log.reason() == "line 95; line 97; line 99"
    assert log.reason(since=98) == "line 99"
    assert log.reason(since=100) == messages.Log().reason() == "TensorRT gave no reason"
    assert log.of("WARNING", since=96) == ["line 96", "line 98"]


class Bindings:
    """As much of TensorRT's module as a logger needs."""

    __name__ = "tensorrt_for_this_test"

    class ILogger:
        def __init__(self):
            return


def test_every_listener_hears_what_is_said_while_it_listens():
    logger, error = messages.logger(Bindings()), SimpleNamespace(name="ERROR")
    with messages.logged() as first:
        logger.log(error, "one")
        with messages.logged() as second:
            logger.log(error, "two")
        logger.log(error, "three")
    logger.log(error, "four")
    assert (first.of("ERROR"), second.of("ERROR")) == (["one", "two", "three"], ["two"])
    assert messages.RECENT.of("ERROR")[-4:] == ["one", "two", "three", "four"]


def test_listeners_in_many_threads_hear_all_of_their_own_time():
    logger = messages.logger(Bindings())
    assert messages.logger(Bindings()) is logger, "one for the process"
    heard = []

    def listen(number):
        for turn in range(50):
            with messages.logged() as log:
                logger.log(SimpleNamespace(name="ERROR"), f"{number} {turn}")
                heard.append(f"{number} {turn}" in [text for _, text in log.lines])

    threads = [threading.Thread(target=listen, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard) == 400 and all(heard) and messages._LISTENING == [messages.RECENT]
