"""`make fuzz MINUTES=5`: mutated files for every reader; whatever is not a clean refusal or the right answer
is kept with the file that showed it.

In:  minutes for all targets together, a seed, the targets.
Out: a line for each target, files in fuzz-found/; exit code 1 where anything was found.
Elsewhere: the readers (tests/helpers/fuzz_reader.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
READER = Path(__file__).with_name("fuzz_reader.py")
SECONDS = 20.0
"""A file that takes longer hangs its reader."""
MEMORY = 1_500_000_000
"""Bytes that a reader may take for one file."""
SEALED = ("checkpoint", "onnx", "graph", "sidecar")
"""Targets whose files have a hash over all: another answer than that of the good file is a fault, unless
both entries of an ONNX file's seal are damaged, which makes it one of another origin."""
EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\0"
"""Without an entry."""
WORDS = [
    *(b"null", b"true", b"[]", b"{}", b"-1", b"1e999", b"NaN", b"9" * 400, b"[" * 3000, b"\xff\xfe", b"\0"),
    *(b"\x1b[2J", b"../../x", b"/proc/self/mem", b"!!python/name:os.system", b"&a [*a]", b"2024-01-01"),
    *(b"\x80\x04", b"\xff" * 8, b"\x7f" * 4, b"\xe2\x80\xae", b"=cmd|' /C calc'!A0", b'""', b"1" * 20),
]
"""What has broken readers before."""


def mutated(good: bytes, dice: random.Random) -> bytes:
    """The file with one to four changes: bits, bytes, words, pieces that go, come twice or change places."""
    content = bytearray(good)
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = dice.randrange(len(content) + 1)
        size = min(dice.choice((1, 2, 4, 8, 64, 512)), len(content) - at)
        kind = dice.randrange(7)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            content[at : at + size] = dice.randbytes(size)
        elif kind == 2:
            del content[at : at + size]
        elif kind == 3:
            content[at:at] = content[at : at + size]
        elif kind == 4:
            content[at : at + dice.choice((0, size))] = dice.choice(WORDS)
        elif kind == 5:
            other = dice.randrange(len(content) + 1)
            content[at:at] = content[other : other + size]
        elif dice.random() < 0.2:
            del content[at:]
    return bytes(content)


def write_good(folder: Path) -> dict[str, Path]:
    """A small good file for each target."""
    sys.path.insert(0, str(HELPERS))
    import numpy as np
    import tiny_onnx
    from PIL import Image

    from distill import checkpoint as checkpoints
    from distill import models
    from distill.checkpoint import Checkpoint
    from runtime.artifact import seal, sidecar_bytes
    from runtime.preprocess import Preprocess

    made = Checkpoint(
        "resnet20",
        {"width": 0.125},
        models.build("resnet20", 4, {"width": 0.125}).state_dict(),
        Preprocess((3, 16, 16), "bilinear", 1.0),
        ["ant", "bee", "cat", "dog"],
    )
    checkpoints.save(made, folder / "checkpoint.pth")
    tiny_onnx.write(folder / "onnx.onnx", meta=tiny_onnx.metadata())
    (folder / "onnx.onnx").write_bytes(seal((folder / "onnx.onnx").read_bytes()))
    (folder / "sidecar.plan.json").write_bytes(sidecar_bytes(tiny_onnx.metadata()))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    np.savez(folder / "npz.npz", x=pixels, y=np.arange(4), class_names=np.array(["a", "b", "c", "d"]))
    (folder / "recipe.yaml").write_text((ROOT / "distill/recipe/demo.yaml").read_text())
    for name, kind in {"png.png": "PNG", "jpeg.jpg": "JPEG"}.items():
        Image.fromarray(pixels[0]).resize((32, 24)).save(folder / name, kind, exif=EXIF)
    (folder / "list.csv").write_text("image,label\npng.png,ant\njpeg.jpg,bee\n")
    return {each.name.split(".")[0]: each for each in folder.iterdir()} | {"graph": folder / "onnx.onnx"}


class Reader:
    """A process that reads files of one target, and is started again after one that ended it."""

    def __init__(self, target: str, good: Path) -> None:
        path = os.pathsep.join([str(ROOT), str(HELPERS)])
        self.process = subprocess.Popen(
            [sys.executable, str(READER), target, str(good), str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        if self.answer(120.0) != "ready":
            self.close()
            raise SystemExit(f"{target}: its good file cannot be read")

    def read(self, path: Path) -> str:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{path}\n".encode())
            self.process.stdin.flush()
        return self.answer(SECONDS)

    def answer(self, seconds: float) -> str:
        """What it says; "hangs" or "ended with CODE" where it says nothing, and then it is gone."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            self.close()
            return f"hangs for more than {seconds:g} s"
        line = self.process.stdout.readline()
        return str(json.loads(line)) if line else f"ended with {self.process.wait()}"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def is_fault(target: str, end: str) -> bool:
    """Whether a reader should not have ended like this."""
    return end not in ("same", "refused", "unsealed") and not (end == "other" and target not in SEALED)


@contextlib.contextmanager
def reading(target: str, good: Path) -> Iterator[list[Reader]]:
    """A list with one reader, whose place another one takes."""
    readers = [Reader(target, good)]
    try:
        yield readers
    finally:
        readers[0].close()


def fuzz(target: str, good: Path, seconds: float, seed: int, found: Path) -> Counter[str]:
    """Ends and how many files had them; files with a fault are kept in `found`."""
    dice, ends, content = random.Random(f"{seed} {target}"), Counter[str](), good.read_bytes()
    case = good.with_name(f"case-{target}{good.name[good.name.index('.') :]}")
    if target == "sidecar":
        case.with_suffix("").write_bytes(b"plan")
    with reading(target, good) as readers:
        last = time.monotonic() + seconds
        while time.monotonic() < last:
            case.write_bytes(mutated(content, dice))
            end = readers[0].read(case)
            if is_fault(target, end):
                found.mkdir(exist_ok=True)
                (found / f"{target}-{ends.total()}{case.suffix}").write_bytes(case.read_bytes())
                print(f"{target}: file {ends.total()}: {end}", flush=True)
                if end.startswith(("hangs", "ended")):
                    readers[0] = Reader(target, good)
            ends[end if not is_fault(target, end) else "fault"] += 1
    return ends


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Read mutated files with every reader.")
    parser.add_argument("--minutes", type=float, default=5.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other files")
    parser.add_argument(
        "--found", type=Path, default=Path("fuzz-found"), help="folder for files with a fault"
    )
    parser.add_argument("targets", nargs="*", help="by default all")
    given = parser.parse_args(words)
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        goods = write_good(Path(folder))
        targets = given.targets or sorted(goods)
        for target in targets:
            seconds = given.minutes * 60 / len(targets)
            ends = fuzz(target, goods[target], seconds, given.seed, given.found)
            said = ", ".join(f"{count:,} {end}" for end, count in sorted(ends.items()))
            print(f"{target}: {ends.total():,} files: {said}", flush=True)
            faults += ends["fault"]
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
