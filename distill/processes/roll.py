"""Who of the processes is still there: each answers a roll call, also while it computes or waits for a GPU.

In:  the store that the processes found each other through.
Out: the ranks that do not answer; the end of a process that would wait for them without end.
Elsewhere: what is said of them (distill.processes.begin).

A process answers from a thread with a connection of its own, so that a busy one is not taken for a lost one.
A GPU that waits for a lost process's part of a sum lets no signal through; where a roll call has shown that
one is lost, the thread ends such a process after GRACE_S.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from runtime.errors import MissingError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

ROLL_CALL_S = 2.0
"""Seconds that the others have to say that they are there."""
GRACE_S = 20.0
"""Seconds that a process has to end by itself once another one is known to be lost."""
REACTION_S = 3.0
"""Seconds in which a process that is not stuck reacts to SIGTERM in its own way."""
LONG = timedelta(days=365)


class Roll:
    """This process on the roll: answers calls until `leave`."""

    def __init__(self, connect: Callable[[], Store], rank: int, size: int) -> None:
        """connect: opens another connection to the store."""
        self.connect, self.rank, self.size = connect, rank, size
        self.over = threading.Event()
        threading.Thread(target=self._answer, args=(connect(),), daemon=True).start()

    def leave(self, store: Store) -> None:
        """This process has done its work, and is not missing."""
        self.over.set()
        store.set(f"left {self.rank}", "yes")

    def missing(self, store: Store) -> list[int]:
        """The ranks that do not answer a roll call."""
        number = store.add("rolls", 1)
        store.set(f"roll {number}", "called")
        return self._absent(store, number)

    def _absent(self, store: Store, number: int) -> list[int]:
        end = time.monotonic() + ROLL_CALL_S
        while store.add(f"answers {number}", 0) < self.size and time.monotonic() < end:
            time.sleep(0.05)
        if store.add(f"answers {number}", 0) >= self.size:
            return []
        return [
            rank
            for rank in range(self.size)
            if not store.check([f"here {number} {rank}"]) and not store.check([f"left {rank}"])
        ]

    def _answer(self, store: Store) -> None:
        try:
            for number in itertools.count(1):
                store.wait([f"roll {number}"], LONG)
                store.set(f"here {number} {self.rank}", "yes")
                store.add(f"answers {number}", 1)
                # beside this thread, which has to answer the next call meanwhile
                threading.Thread(target=self._end_if_stuck, args=(number,), daemon=True).start()
        except RuntimeError:  # the store is gone: the main thread sees to it
            return

    def _end_if_stuck(self, number: int) -> None:
        try:
            store = self.connect()
            lost = self._absent(store, number)
            if lost and not self.over.wait(GRACE_S):
                end_stuck(store, lost_words(lost))
        except RuntimeError:  # the store is gone, with what was to be asked of it
            return


def lost_words(ranks: list[int]) -> str:
    """What is said of processes that have ended without a word."""
    who = f"rank {', '.join(map(str, ranks))}" if ranks else "a process"
    return (
        f"{who} has ended without a word: killed, often because memory ran out, or its machine is gone. The"
        " run goes on from its last checkpoint with --resume"
    )


def end_stuck(store: Store, words: str) -> None:
    """End this process, whose main thread does not come back; say why where nobody has said it."""
    if store.add("said", 1) == 1:
        store.set("code", str(MissingError.exit_code))
        print(f"error: {words}", file=sys.stderr, flush=True)
    os._exit(MissingError.exit_code)


class StuckWatch:
    """Ends the process where SIGTERM came and the main thread, inside of torch, does not hear of it."""

    def __init__(self) -> None:
        """Only in the main thread; `close` undoes it."""
        self.roll: Roll | None = None
        self.over = threading.Event()
        self._read, self._written = socket.socketpair()
        self._written.setblocking(False)
        self._before = signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        """Watch no longer."""
        self.over.set()
        signal.set_wakeup_fd(self._before)
        self._written.close()

    def _watch(self) -> None:
        with self._read:
            while heard := self._read.recv(64):
                if signal.SIGTERM not in heard or self.over.wait(REACTION_S):
                    continue
                if self.roll is None:  # still looking for the others: one of them has a reason to say
                    os._exit(128 + signal.SIGTERM)
                else:
                    self._call(self.roll)

    def _call(self, roll: Roll) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone: torchrun ends what is left
            roll.missing(roll.connect())  # whoever is stuck ends after it
