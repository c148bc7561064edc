"""Decoded training images that are kept for the next epoch: in memory, on a disk, or on the device."""

from .images import cached

__all__ = ["cached"]
