"""Sizes of the tiles that the Triton kernels compute, from the sizes of a map and a kernel alone.

In:  numbers: size of the map, size of the kernel, bytes of a value.
Out: a `Side` for each side of a map, and counts; the same on every machine, so that the same seed gives the
     same bits.
Elsewhere: the kernels (kernels.py), their launch (launch.py).
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST, MOST = 16, 64
"""Sides of a tile that tensor cores take, and of the largest that fits the registers of a program."""
ROWS = {2: 128, 4: 64}
"""Rows of a tile, of all its images together, by the bytes of a value: 128 of float32 would not fit the
shared memory of smaller GPUs."""
STAGES = {2: 3, 4: 2}
"""Taps whose loads are under way at once, by the bytes of a value."""
NARROW_BAND = 33
"""Up to this long side of a kernel a map of several blocks has blocks of 32: larger ones would be
mostly zeros."""


@dataclass(frozen=True)
class Side:
    """One side of a map, cut into blocks."""

    size: int
    """Places of the map along this side."""
    block: int
    """Places of a block, a power of two."""

    @property
    def blocks(self) -> int:
        return -(-self.size // self.block)

    def reach(self, kernel: int) -> int:
        """Blocks before and behind its own that a block sees through a kernel of this side."""
        return min(self.blocks - 1, (kernel // 2 + self.block - 1) // self.block)


def long_side(size: int, kernel: int) -> Side:
    """The side along which the kernel is a matrix."""
    if size <= MOST:
        return Side(size, max(LEAST, power_of_two(size)))
    return Side(size, 32 if kernel <= NARROW_BAND else MOST)


def row_side(size: int) -> Side:
    """The side along which the kernel is walked tap by tap: at most a quarter of a block is empty, or half of
    the only one.
    """
    if size <= MOST:
        return Side(size, power_of_two(size))
    return Side(size, 32 if 0 < size % MOST <= 32 else MOST)


def images(rows: int, value_bytes: int) -> int:
    """Images that one program computes a block of, for blocks of so many rows."""
    return max(1, ROWS[value_bytes] // rows)


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def unit(*values: int, most: int = 16) -> int:
    """The largest power of two, at most `most`, that divides every value."""
    found = most
    for value in values:
        while value % found:
            found //= 2
    return found
