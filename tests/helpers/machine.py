"""How fast this machine is, for tests with a limit in seconds.

In:  nothing.
Out: a factor, 1 or more.
"""

from __future__ import annotations

import ast
import functools
import inspect
import time

USUAL = 0.2
"""Processor seconds of `_work` on the machine on which the limits were set."""


@functools.cache
def slowness() -> float:
    """How many times as long a fixed piece of work takes here as on the machine the limits are for; never
    below 1, so that no limit gets tighter on a fast one.
    """
    return max(1.0, min(_work() for _ in range(3)) / USUAL)


def _work() -> float:
    """Processor seconds for parsing and compiling a large module of the standard library, which is what
    starting a command does most.
    """
    source = inspect.getsource(ast) + inspect.getsource(inspect)
    began = time.process_time()
    for _ in range(3):
        compile(ast.parse(source), "work", "exec")
    return time.process_time() - began
