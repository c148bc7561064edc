"""Which of how many processes this is, as the environment says.

In:  the variables of torchrun, Slurm and MPI.
Out: numbers; UsageError for processes that cannot find each other.
Elsewhere: finding each other (distill.processes.begin).
"""

from __future__ import annotations

import os

from runtime.errors import UsageError

WORLD = "WORLD_SIZE"
OTHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Where srun and mpirun say how many processes they started, without telling them of each other."""
TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets besides WORLD_SIZE."""


def announced() -> int:
    """How many processes were started together, 1 or more. Raises UsageError where they were started in a way
    that does not tell them where the others are, and for numbers that cannot be.
    """
    missing = [name for name in TORCHRUN if not os.environ.get(name, "").strip()]
    if os.environ.get(WORLD, "").strip() and not missing:
        return _checked()
    for name in (WORLD, *OTHERS):
        said = os.environ.get(name, "").strip()
        if said and said not in ("0", "1"):
            lacks = f" and no {', '.join(missing)}" if name == WORLD else ""
            raise UsageError(
                f"started as one of several processes ({name}={said}){lacks}: they do not know of each other"
                " and would write the same files. Start them with torchrun: torchrun --nproc-per-node GPUS -m"
                f" distill ...; or start one, with srun -n 1 or with {name} unset"
            )
    return 1


def require_one(command: str) -> None:
    """Raise UsageError for a command that works in one process only. command: its name."""
    if announced() > 1:
        raise UsageError(
            f"WORLD_SIZE={os.environ[WORLD]}: {command} works in one process. Start it without torchrun"
        )


def _checked() -> int:
    """WORLD_SIZE; UsageError where it and the ranks are not numbers that go together."""
    try:
        size, rank, local, _ = (
            int(os.environ[name]) for name in (WORLD, "RANK", "LOCAL_RANK", "MASTER_PORT")
        )
    except ValueError:
        size, rank, local = 0, -1, -1
    if not (0 <= rank < size and 0 <= local < size):
        said = ", ".join(f"{name}={os.environ[name]}" for name in (WORLD, *TORCHRUN))
        raise UsageError(f"{said}: expected numbers, the ranks below WORLD_SIZE. Start with torchrun")
    return size


def rank() -> int:
    """The number of this process among all, from 0."""
    return int(os.environ["RANK"])


def local_rank() -> int:
    """Its number on this machine, from 0: the number of its GPU."""
    return int(os.environ["LOCAL_RANK"])


def speaks() -> bool:
    """Is this the process that prints results: the only one, or the first of several?"""
    return announced() == 1 or rank() == 0
