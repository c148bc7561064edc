"""What processes that work as one tell each other: small collectives over gloo, also where GPUs compute.

In:  values of this process.
Out: the same in every process; errors that all raise where one has them.
Elsewhere: the group itself (distill.processes.begin), gradients (distill.processes.gradients).

In a single process each of them gives back what it got. Every process has to come to each of them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from runtime.errors import Large2SmallError, UsageError

T = TypeVar("T")
AGREED = "is_agreed"
"""Attribute of an error that all processes raise."""


@dataclass
class _World:
    rank: int = 0
    size: int = 1
    alone: int = 0
    """How many `alone` are open."""


_world = _World()


def enter(rank: int, size: int) -> None:
    """This process is one of `size` from now on; begin calls it."""
    _world.rank, _world.size, _world.alone = rank, size, 0


def size() -> int:
    """How many processes work as one."""
    return 1 if _world.alone else _world.size


def rank() -> int:
    """Which of them this is, from 0."""
    return 0 if _world.alone else _world.rank


def is_main() -> bool:
    """Is it the one that writes and speaks?"""
    return _world.rank == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """What is inside is not shared: it works as in a single process."""
    _world.alone += 1
    try:
        yield
    finally:
        _world.alone -= 1


def _marked(error: Large2SmallError) -> Large2SmallError:
    setattr(error, AGREED, True)
    return error


def is_agreed(error: BaseException) -> bool:
    """Do all processes raise it, so that one of them says it?"""
    return getattr(error, AGREED, False)


@dataclass
class Answer:
    """What the processes agreed on."""

    asked: bool
    """Whether one of them asked."""


@contextlib.contextmanager
def agreed(asks: bool = False) -> Iterator[Answer]:
    """What is inside fails in all processes where it fails in one of them, with its error. asks: a question
    that is answered by yes where one of them asks; the answer is there behind the `with`.
    """
    answer = Answer(asks)
    if size() == 1:
        yield answer
        return
    problem: Large2SmallError | None = None
    try:
        yield answer
    except Large2SmallError as error:
        problem = error
    worst = _largest(2 if problem else int(asks))
    if worst == 2:
        raise _marked(_first(gathered(problem))) from problem
    answer.asked = worst == 1


def _first(problems: list[Large2SmallError | None]) -> Large2SmallError:
    """The problem of the first process that has one, named by it where not all have the same."""
    rank, first = next((rank, each) for rank, each in enumerate(problems) if each is not None)
    same = all(each is not None and str(each) == str(first) for each in problems)
    return first if same else of_rank(first, rank)


def of_rank(error: Large2SmallError, rank: int) -> Large2SmallError:
    """The error, with the process that has it named in front."""
    named = copy.copy(error)
    named.args = (f"rank {rank}: {error}",)
    return named


def _largest(value: int) -> int:
    """The largest value of all processes, after log2(size) messages of each: torch's all_reduce sends a
    number around the ring.
    """
    mine, other, step = torch.tensor([value]), torch.zeros(1, dtype=torch.int64), 1
    while step < size():
        sent = distributed.isend(mine.clone(), (rank() + step) % size())
        distributed.recv(other, (rank() - step) % size())
        if sent is not None:
            sent.wait()
        mine, step = torch.maximum(mine, other), 2 * step
    return int(mine)


def any_of(flag: bool) -> bool:
    """Is it true in one process or more?"""
    return flag if size() == 1 else bool(_largest(int(flag)))


def all_of(flag: bool) -> bool:
    """Is it true in every process?"""
    return not any_of(not flag)


def gathered(value: T) -> list[T]:
    """The value of every process, by rank."""
    if size() == 1:
        return [value]
    values: list[T] = [value] * size()
    distributed.all_gather_object(values, value)
    return values


def to_main(value: T) -> list[T]:
    """The value of every process, by rank, in the main one; in the others nothing."""
    if size() == 1:
        return [value]
    values: list[T] = [value] * size() if rank() == 0 else []
    distributed.gather_object(value, values or None, dst=0)
    return values


def from_main(make: Callable[[], T]) -> T:
    """What `make` gives or raises in the main process, which alone calls it."""
    if size() == 1:
        return make()
    made: list[T] = []
    with agreed():
        if rank() == 0:
            made.append(make())
    sent: list[T | None] = [made[0] if made else None]
    distributed.broadcast_object_list(sent, src=0)
    return sent[0]  # type: ignore[return-value]  # the main process put it there


def in_turns(mine: list[T]) -> list[T]:
    """The items of all processes in one list, where they took turns: item i is the main process's first."""
    if size() == 1:
        return mine
    lists = gathered(mine)
    most = max(map(len, lists))
    return [each[turn] for turn in range(most) for each in lists if turn < len(each)]


def average(values: Tensor) -> Tensor:
    """The mean over the processes, on the CPU, as float64."""
    values = values.detach().double().cpu()
    if size() > 1:
        distributed.all_reduce(values)
        values /= size()
    return values


def average_on_device(tensors: Iterable[Tensor | None]) -> None:
    """Put the mean over the processes into each tensor."""
    for tensor in tensors:
        if size() > 1 and tensor is not None:
            distributed.all_reduce(tensor)
            tensor /= size()


@torch.no_grad()
def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Put the main process's values into each tensor."""
    if size() == 1:
        return
    for tensor in tensors:
        sent = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous()
        distributed.broadcast(sent, src=0)
        if sent is not tensor:
            tensor.copy_(sent)


def require_same(values: Mapping[str, object], fix: str) -> None:
    """Raise UsageError where a process has another value than the main one. values: by their names; fix: what
    to do.
    """
    first, *others = gathered({name: str(value) for name, value in values.items()})
    for number, other in enumerate(others, 1):
        for name in first:
            if other.get(name) != first[name]:
                raise _marked(
                    UsageError(
                        f"rank 0 has {name} {_short(first[name])}, and rank {number} has"
                        f" {_short(str(other.get(name)))}. {fix}"
                    )
                )


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def share(images: int) -> tuple[int, ...]:
    """Places in a batch of all processes that are this one's, of as many `images` in each.

    Halves from both ends where the number is even, so that mixup and cutmix, which pair the first image with
    the last, find both in the same process; otherwise one part after the other.
    """
    return share_of(images, rank(), size()) if size() > 1 else tuple(range(images))


def share_of(images: int, rank: int, size: int) -> tuple[int, ...]:
    """`share` of process `rank` of `size`."""
    if images % 2:
        return tuple(range(rank * images, (rank + 1) * images))
    half, all_ = images // 2, images * size
    front = range(rank * half, (rank + 1) * half)
    return (*front, *(all_ - 1 - place for place in reversed(front)))
