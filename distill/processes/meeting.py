"""The processes of this start meet, and not those of an earlier one that left its keys in the same store.

In:  a store that all can reach; torchrun keeps one over its restarts.
Out: a part of it that is new, the same for all.
Elsewhere: opening the store (distill.processes.begin).

Rank 0 names the part. The others may read the name of an earlier start, so each says hello under the name it
has read, with a word of its own, and is welcomed with that word by the rank 0 of its own start alone.
"""

from __future__ import annotations

import os
import secrets
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from runtime.errors import MissingError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

NAME = "start"
PAUSE = timedelta(milliseconds=500)
"""How long one waits before it looks for a new name."""


def meet(store: Store, rank: int, size: int, patience: timedelta) -> str:
    """The name of the part of the store that is this start's. Raises MissingError for processes that do not
    come, with their ranks.
    """
    end = time.monotonic() + patience.total_seconds()
    return _welcome(store, size, end) if rank == 0 else _hello(store, rank, end)


def _welcome(store: Store, size: int, end: float) -> str:
    """Rank 0 waits for the others."""
    name = secrets.token_hex(8)
    store.set(NAME, name)
    missing = list(range(1, size))
    while missing:
        for rank in [each for each in missing if store.check([f"{name} hello {each}"])]:
            word = store.get(f"{name} hello {rank}").decode()
            store.set(f"{name} welcome {word}", "yes")
            missing.remove(rank)
        if missing and time.monotonic() > end:
            raise _alone(f"rank {', '.join(map(str, missing))}")
        time.sleep(0.05 if missing else 0)
    return name


def _hello(store: Store, rank: int, end: float) -> str:
    """Another process waits for rank 0."""
    from torch.distributed import DistStoreError

    word = secrets.token_hex(8)
    while time.monotonic() < end:
        try:
            store.wait([NAME], PAUSE)
            name = store.get(NAME).decode()
            store.set(f"{name} hello {rank}", word)
            store.wait([f"{name} welcome {word}"], PAUSE)
            return name
        except DistStoreError:  # not yet; or the name was an earlier start's
            continue
    raise _alone("rank 0")


def _alone(who: str) -> MissingError:
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return MissingError(
        f"{who} did not come to {place}, where the processes meet. Look whether all were started, with the"
        " same number of processes, and whether that port is open between the machines"
    )
