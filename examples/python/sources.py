"""Where images come from: a folder once, a folder that is watched, or a camera.

In:  a path or a camera; `offer(name, image) -> bool`, which returns False when nobody takes images any more;
a stop event.
Out: calls of `offer`, until the source has no more images or the stop event is set.
Elsewhere: what happens to the images (pipeline).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from runtime import MissingError, UsageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp")
LOOK_S = 0.1
"""Seconds between two looks at a watched folder."""

Offer = Callable[[str, Any], bool]


def folder(path: Path, offer: Offer, stop: threading.Event, watch: bool = False) -> None:
    """Offer the images in `path` (not below it), by name; with `watch` go on with those that appear or are
    written anew.

    A watched file counts as arrived when two looks find the same size and time of change: it is no longer
    being written. Raises UsageError when the folder cannot be read, also later on.
    """
    for name in _arrived(path, stop) if watch else sorted(_look(path)):
        if stop.is_set() or not offer(name, name):
            return


def _look(path: Path) -> dict[str, tuple[int, int]]:
    """Name -> size and time of change of every image now."""
    found = {}
    try:
        entries = [
            entry for entry in os.scandir(path) if entry.name.lower().endswith(SUFFIXES) and entry.is_file()
        ]
    except OSError as error:
        raise UsageError(
            f"{path}: not a folder that can be read ({error.strerror}). Give --folder a folder with images "
            f"({', '.join(SUFFIXES)})"
        ) from None
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):  # taken away between the two calls
            status = entry.stat()
            found[entry.path] = (status.st_size, status.st_mtime_ns)
    return found


def _arrived(path: Path, stop: threading.Event) -> Iterator[str]:
    done: dict[str, tuple[int, int]] = {}
    before: dict[str, tuple[int, int]] = {}
    while not stop.is_set():
        now = _look(path)
        done = {
            name: state for name, state in done.items() if name in now
        }  # no memory of files that are gone
        for name in sorted(
            name for name, state in now.items() if before.get(name) == state != done.get(name)
        ):
            done[name] = now[name]
            yield name
        before = now
        stop.wait(LOOK_S)


def camera(device: str, offer: Offer, stop: threading.Event) -> None:
    """Offer every frame of a V4L2 camera (a number or /dev/videoN) or of what else OpenCV opens (a file, the
    URL of a stream).

    Needs OpenCV, which nothing else here does. Raises MissingError when it is not installed, the camera
    cannot be opened, or a camera or stream delivers no more frames.
    """
    try:
        import cv2
    except ImportError:
        raise MissingError("--camera needs OpenCV. Install it: pip install opencv-python-headless") from None
    is_v4l2 = device.isdigit() or device.startswith("/dev/video")
    is_endless = is_v4l2 or "://" in device  # a stream that stops is lost; a file that stops is at its end
    capture = cv2.VideoCapture(
        int(device) if device.isdigit() else device, cv2.CAP_V4L2 if is_v4l2 else cv2.CAP_ANY
    )
    try:
        if not capture.isOpened():
            raise MissingError(
                f"camera {device} cannot be opened. Is it connected, and may this user read it (group video)?"
            )
        number = 0
        while not stop.is_set():
            arrived, frame = capture.read()
            if not arrived and is_endless:
                raise MissingError(
                    f"camera {device} delivers no frames any more ({number} so far). Is it still connected?"
                )
            if not arrived or not offer(
                f"frame {number}", np.ascontiguousarray(frame[..., ::-1])
            ):  # OpenCV's order is BGR
                return
            number += 1
    finally:
        capture.release()
