"""Processes that were started together meet, also where an earlier start left its keys in the store."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from distill.processes import meeting
from distill.processes.meeting import meet
from runtime.errors import MissingError

PATIENCE = timedelta(seconds=10)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(meeting, "PAUSE", timedelta(milliseconds=50))


def start(connect, size, last):
    """The names that each process of a start goes on with; the process `last` comes after the others."""

    def one(rank):
        time.sleep(0.1 * (rank == last))
        return meet(connect(), rank, size, PATIENCE)

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(one, range(size)))


@pytest.mark.parametrize("last", [0, 2])
def test_each_start_has_a_name_of_its_own_that_all_know(connect, last):
    names = [start(connect, 3, last), start(connect, 3, last), start(connect, 2, last)]
    assert all(len(set(of_one)) == 1 for of_one in names)
    assert len({of_one[0] for of_one in names}) == 3


@pytest.mark.parametrize(("rank", "said"), [(0, "rank 1, 2 did"), (1, "rank 0 did")])
def test_who_does_not_come_is_named(connect, monkeypatch, rank, said):
    start(connect, 3, last=0)  # what it left is taken for nobody
    with pytest.raises(MissingError, match=said):
        meet(connect(), rank, 3, timedelta(seconds=0.2))
