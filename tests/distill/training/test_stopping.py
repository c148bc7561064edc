"""A training hears a signal once, and ends at the next one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from distill.training.stopping import STOPS, StopSignal
from runtime.errors import Interrupted

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


class Again(BaseException):
    """What the handler from before does."""


@pytest.fixture(params=STOPS, ids=lambda number: number.name)
def number(request):
    """A signal whose handler from before raises Again."""

    def again(*_):
        raise Again

    before = signal.signal(request.param, again)
    yield request.param
    signal.signal(request.param, before)


def test_the_first_is_noted_and_the_second_is_handled_as_before(number):
    stop = StopSignal()
    with stop.listening():
        stop.check(0, Path("run"))
        os.kill(os.getpid(), number)
        said = rf"stopped by {number.name} after step 3\..*--resume run"
        with pytest.raises(Interrupted, match=said) as caught:
            stop.check(3, Path("run"))
        with pytest.raises(Again):
            os.kill(os.getpid(), number)
    assert caught.value.exit_code == {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}[number.name]
    with pytest.raises(Again):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGHUP] if os.name != "nt" else [], indirect=True)
def test_under_nohup_the_terminal_may_go(number):
    signal.signal(number, signal.SIG_IGN)
    stop = StopSignal()
    with stop.listening():
        os.kill(os.getpid(), number)
        stop.check(1, Path("run"))
    assert signal.getsignal(number) == signal.SIG_IGN
