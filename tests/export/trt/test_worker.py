"""The process that builds a plan ends with the one that asked for it."""

from __future__ import annotations

import os
import select
import signal
import sys
import time

import pytest

from export.trt import worker


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG")
def test_a_builder_does_not_outlive_a_parent_that_was_killed():
    reading, writing = os.pipe()  # the end of what is read is the end of all who can write
    parent = os.fork()
    if not parent:
        if not os.fork():
            worker._end_with_parent()
            os.write(writing, b"building")
            time.sleep(30)
            os._exit(0)
        time.sleep(30)
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 100) == b"building"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert select.select([reading], [], [], 10)[0] and os.read(reading, 100) == b""
    os.close(reading)
