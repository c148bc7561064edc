"""The alternate signal stack of a thread is put back; read here by sigaltstack itself."""

import ctypes
import mmap
import sys

import pytest

from runtime.backends import signal_stack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layout of stack_t is that of Linux")
SIZE = 1 << 16


class Stack(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def current():
    found = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found.address, found.flags, found.size


def put(address, size, flags=0):
    assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(address, flags, size)), None) == 0


@pytest.fixture
def memory():
    before, pages = current(), mmap.mmap(-1, SIZE)
    view = ctypes.c_char.from_buffer(pages)
    yield ctypes.addressof(view)
    put(before[0], before[2], before[1])
    del view
    pages.close()


def test_a_stack_that_a_library_sets_is_replaced_by_the_earlier_one(memory):
    before = current()
    with signal_stack.kept():
        put(memory, SIZE)
        assert current() == (memory, 0, SIZE)
    assert current() == before


def test_it_is_put_back_after_an_error_too(memory):
    before = current()
    with pytest.raises(ValueError, match="cannot load"), signal_stack.kept():
        put(memory, SIZE)
        raise ValueError("cannot load")
    assert current() == before


def test_a_stack_that_has_become_too_small_gives_way_to_none(memory, monkeypatch):
    put(memory, SIZE)
    real = ctypes.CDLL(None).sigaltstack

    def of_a_system_that_saves_more(new, old):
        stack = new and ctypes.cast(new, ctypes.POINTER(Stack)).contents
        return -1 if stack and not stack.flags and stack.size == SIZE else real(new, old)

    class Library:
        sigaltstack = staticmethod(of_a_system_that_saves_more)

    monkeypatch.setattr(signal_stack.ctypes, "CDLL", lambda name: Library)
    with signal_stack.kept():
        pass
    monkeypatch.undo()
    assert current()[1] == signal_stack.SS_DISABLE
