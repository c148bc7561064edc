"""Processes find each other, work as one, and end together.

In:  the device that they compute on; what torchrun tells each.
Out: a group of torch.distributed, which is ended where the work is; the first reason why one of them could
     not go on, said once, with its rank.
Elsewhere: what they tell each other meanwhile (distill.processes.together), exit codes (runtime.errors).

An error that all raise (`together.agreed`) is said by rank 0. Where one process fails by itself, it says so
and leaves its exit code in the store that they found each other through; the others, which wait for it in
vain, find that code and end with it. A process that was killed leaves none: then the others call the roll.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from runtime import env
from runtime.cli import outcome, terminal
from runtime.cli.terminal import loading
from runtime.errors import Interrupted, Large2SmallError, MissingError, UsageError

from . import world
from .roll import Roll, StuckWatch, lost_words

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")
GATHERING = timedelta(minutes=5)
"""How long the first process waits for the last one."""
PATIENCE = timedelta(minutes=60)
"""How long they wait for one that is alive and says nothing: it may fit a teacher or read a slow disk."""
EXIT_S = 10
"""Seconds that a process has to end where torch still waits for one that is gone."""
WORD_S = 10.0
"""How long they wait for the reason of one that has ended, where all are still there."""
SAME_S = 1.0
"""How long the one that has an error to say waits for the others to have the same one."""
SAME_EVERYWHERE = ("large2small", "torch", "timm", "torchvision", "numpy", "pillow")
"""Packages whose versions have to be the same in all processes."""
LOST = (
    r"onnection|closed by peer|[Bb]roken pipe|[Ss]ocket|ECONN|[Tt]imed? ?out|NCCL|gloo|recvValue|"
    r"remote process|process group"
)
"""What torch says, among other things, where another process is gone."""


class FromMain(Protocol):
    """`together.from_main`."""

    def __call__(self, make: Callable[[], T], /) -> T: ...


@contextlib.contextmanager
def begun(device: str, same: Mapping[str, object] | None = None) -> Iterator[FromMain]:
    """The processes that were started together work as one inside; a single one as ever. device: as --device
    says it; same: values that all have to have, by their names. Yields `together.from_main`, which needs
    torch only where there are several.

    Raises UsageError for processes that do not know of each other and for different versions or values,
    MissingError where they cannot find each other. Those that have nothing to say end with SystemExit.
    """
    size = world.announced()
    if size == 1:
        yield lambda make: make()
        return
    with _listening() as heard:
        met: Met | None = None
        try:
            with loading(f"waiting for the other {size - 1} processes"):
                met = _open(device, size)
            heard.watch(met.roll)
            _require_same(same or {})
            yield _from_main
            met.roll.leave(met.store)
        except Exception as error:
            heard.listening.clear()
            raise _last_word(error, met) from error
        except KeyboardInterrupt as error:  # Ctrl-C reaches all, and one of them says so
            if met is None or world.rank() == 0:
                raise
            raise SystemExit(128 + getattr(error, "number", signal.SIGINT)) from error
        finally:
            heard.over.set()
            _leave()


@dataclass(frozen=True)
class Met:
    """Where the processes have found each other."""

    store: Store
    roll: Roll


@dataclass
class _Heard:
    """What this process does of SIGTERM."""

    listening: threading.Event = field(default_factory=threading.Event)
    """Whether it raises Interrupted; from then on it is ignored."""
    stuck: StuckWatch | None = None

    @property
    def over(self) -> threading.Event:
        return self.stuck.over if self.stuck else threading.Event()

    def watch(self, roll: Roll) -> None:
        """Where the main thread does not hear of it, ask who is lost."""
        if self.stuck:
            self.stuck.roll = roll


@contextlib.contextmanager
def _listening() -> Iterator[_Heard]:
    """SIGTERM raises Interrupted once, and is ignored from then on: torchrun sends it to all where one has
    ended, and they have the reason to say.
    """
    heard = _Heard()
    heard.listening.set()

    def end(number: int, _: FrameType | None) -> None:
        if heard.listening.is_set():
            heard.listening.clear()
            raise Interrupted(f"stopped by {signal.Signals(number).name}", number)

    previous: Any = None
    try:
        previous = signal.signal(signal.SIGTERM, end)
        heard.stuck = StuckWatch()
    except ValueError:  # not in the main thread: signals are someone else's
        heard.listening.clear()
    try:
        yield heard
    finally:
        if heard.stuck:
            heard.stuck.close()
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _open(device: str, size: int) -> Met:
    """Make the group, and put this process on the roll."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is said in one line, below
    with _undisturbed():
        import torch
        from torch import distributed
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        from . import meeting, together

    if distributed.is_initialized():
        raise UsageError(
            "this process is in a process group of torch.distributed already. Train in processes that are in"
            " none"
        )
    kind = device.partition(":")[0]
    on_gpu = kind == "cuda" or (kind == "auto" and torch.cuda.is_available())
    if on_gpu and world.local_rank() < torch.cuda.device_count():  # else pick_device refuses it by name
        torch.cuda.set_device(world.local_rank())
    terminal.mute(lines=world.rank() != 0, errors=False)
    try:
        everyones, rank, size = next(iter(rendezvous("env://", timeout=GATHERING)))
        name = meeting.meet(everyones, rank, size, GATHERING)
        store = PrefixStore(name, everyones)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise _unfound(error, size) from error
    together.enter(rank, size)

    def connect() -> Store:
        return PrefixStore(name, next(iter(rendezvous("env://", timeout=GATHERING)))[0])

    return Met(store, Roll(connect, rank, size))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """SIGTERM waits until what is inside is done: torch cannot be imported again after half of it was."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unfound(error: Exception, size: int) -> MissingError:
    """Why the processes could not find each other, in one line."""
    said = " ".join(str(error).split())
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if "EADDRINUSE" in said or "already in use" in said:
        return MissingError(
            f"port {port} of {address} is in use by another program, so the {size} processes cannot find each"
            " other there. Give torchrun another one (--master-port PORT), or --standalone on one machine"
        )
    reason = f"torch says: {said[:160]}"
    return MissingError(
        f"rank {world.rank()}: the {size} processes did not find each other at {address}:{port} ({reason})."
        " Look whether all were started, with the same number of processes, and whether their machines reach"
        " each other"
    )


def _from_main(make: Callable[[], T]) -> T:
    from .together import from_main

    return from_main(make)


def _require_same(values: Mapping[str, object]) -> None:
    from .together import require_same

    require_same(env.versions(SAME_EVERYWHERE), "Install the same versions on all machines")
    require_same(values, "Start all with the same words, where they see the same run folder")


def _last_word(error: Exception, met: Met | None) -> BaseException:
    """What this process raises: the error, where it is the one to say it, or the end without a word."""
    from . import together

    if met is None:
        return error
    if together.is_agreed(error):
        assert isinstance(error, Large2SmallError)
        return error if world.rank() == 0 else SystemExit(error.exit_code)
    try:
        return _own_word(error, met)
    except (RuntimeError, OSError):  # the store is gone, too, and with it the process that kept it
        if outcome.as_ours(error):
            return error
        return MissingError(
            f"rank {world.rank()}: the process that the others meet at ({os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}), which is rank 0 or torchrun, has ended, or its machine is out of"
            " reach. Look at what it said"
        )


def _own_word(error: Exception, met: Met) -> BaseException:
    from . import together

    store, ours = met.store, outcome.as_ours(error)
    if isinstance(error, Interrupted) and (lost := met.roll.missing(store)):  # torchrun stops who is left
        ours = MissingError(lost_words(lost))
    if ours is None and isinstance(error, RuntimeError) and re.search(LOST, str(error)):
        _close_connections()
        time.sleep(0.2)  # who has a reason leaves it before it ends
        if not store.check(["code"]):
            ours = _why_lost(met)
    code = ours.exit_code if ours else outcome.INTERNAL_ERROR
    same = f"error {ours}"
    store.add(same, 1)
    if store.add("said", 1) > 1:
        return SystemExit(int(store.get("code")) if store.check(["code"]) else code)
    store.set("code", str(code))
    if ours is None:
        return error
    is_named = str(ours).startswith("rank ") or _is_of_all(same, store)
    return ours if is_named else together.of_rank(ours, world.rank())


def _is_of_all(same: str, store: Store) -> bool:
    """Have all processes added the same error, as they do for a file that none of them finds?"""
    end = time.monotonic() + SAME_S
    while store.add(same, 0) < world.announced() and time.monotonic() < end:
        time.sleep(0.05)
    return store.add(same, 0) == world.announced()


def _why_lost(met: Met) -> MissingError | None:
    """Who is not there any more; None where another process has said the reason meanwhile."""
    lost = met.roll.missing(met.store)
    if not lost:  # all are there, so one of them is about to say why it broke off
        with contextlib.suppress(RuntimeError):
            met.store.wait(["code"], timedelta(seconds=WORD_S))
            return None
    return MissingError(lost_words(lost))


def _close_connections() -> None:
    """Let those who wait for this process know that it does not come; torch may wait, so not for long."""
    from torch import distributed

    def close() -> None:
        with contextlib.suppress(Exception):  # what is broken cannot be closed, and need not be
            distributed.destroy_process_group()

    thread = threading.Thread(target=close, daemon=True)
    thread.start()
    thread.join(2)
    if thread.is_alive() and hasattr(signal, "alarm"):  # then torch may wait once more when Python ends
        atexit.register(signal.alarm, EXIT_S)


def _leave() -> None:
    from torch import distributed

    from . import together

    if distributed.is_initialized():
        _close_connections()
    together.enter(0, 1)
    terminal.mute(lines=False, errors=False)
