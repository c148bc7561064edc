"""How far a distillation would scale, by arithmetic: bytes, step time, efficiency and first limit of n GPUs.

    python measurements/scale.py [--rate convnext_tiny=2800] [--compress bf16]

Nothing is measured here. The rates of one GPU were measured on an NVIDIA H200 (27 November 2026, torch 2.11,
bf16, batch 128, 224 pixels): a training step of ResNet-50 4,045 images/s, the forward pass of the teacher
SLaK-T 622 images/s; both together 539, which is what the sum of the two times gives. Reading and augmenting
512 x 384 JPEGs with 16 cores: 1,700 images/s. For a network without a measured step give --rate. Speeds of
links and disks are given, the defaults those of data sheets, times --achieved.

All-reduce: each GPU sends and receives 2 (n - 1) / n of the gradients, in buckets of 25 MB as torch's
DistributedDataParallel does, each with a latency per doubling of the GPUs. It goes on beside the backward
pass, two thirds of the student's step; the last bucket waits for its end. Between machines all network cards
carry a share. Every GPU's step varies by --jitter, drawn by a seeded generator, and all wait for the slowest:
printed is the mean over 2,000 steps.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass

import numpy as np
import torch

from distill import models
from distill.data.labels.rows import Layout
from runtime import files
from runtime.errors import Large2SmallError, UsageError

MEASURED = {"resnet50": 4045.0}
"""{student: images/s of a training step without a teacher, on one GPU}."""
STUDENTS = ("resnet50", "convnext_tiny")
BUCKET_MB = 25
BACKWARD = 2 / 3
"""Share of a student's step in which gradients can be sent."""
STEPS = 2000
CLASSES = 1000


@dataclass(frozen=True)
class Cluster:
    """Speeds that are given, not measured. GB are 10**9 bytes."""

    gpus_per_machine: int
    nvlink_gb_per_s: float
    """Of one GPU, in one direction."""
    card_gb_per_s: float
    """Of one network card, of which each GPU has one."""
    achieved: float
    """Share of these speeds that is reached, 0 to 1."""
    latency_us: float
    """Of an all-reduce for each doubling of the GPUs."""
    jitter: float
    """Standard deviation of a step's time over the GPUs, as a share of it."""

    def all_reduce_s(self, megabytes: float, gpus: int) -> float:
        """Seconds of one all-reduce."""
        if gpus == 1:
            return 0.0
        rate = self.nvlink_gb_per_s
        if gpus > self.gpus_per_machine:
            rate = min(rate, self.gpus_per_machine * self.card_gb_per_s)
        travel = sent_mb(megabytes, gpus) / 1e3 / (rate * self.achieved)
        return travel + math.log2(gpus) * self.latency_us / 1e6

    def slowest(self, gpus: int) -> float:
        """Mean over the steps of the slowest GPU's time, as a multiple of the mean GPU's."""
        drawn = np.random.default_rng(0).standard_normal((STEPS, gpus))
        return 1 + self.jitter * float(drawn.max(axis=1).mean()) * (gpus > 1)


def sent_mb(megabytes: float, gpus: int) -> float:
    """What each GPU sends in an all-reduce of so many bytes."""
    return 2 * (gpus - 1) / gpus * megabytes


@dataclass(frozen=True)
class Row:
    """A training on so many GPUs."""

    student: str
    teacher: str
    gpus: int
    batch: int
    """Images of each GPU in a step."""
    gradients_mb: float
    sent_mb: float
    alone_ms: float
    """The step on one GPU."""
    sending_ms: float
    waiting_ms: float
    """The part of the sending that the backward pass does not hide."""
    step_ms: float
    efficiency_percent: float
    """Images/s of each GPU against one alone."""
    images_per_s: float
    """Of all GPUs, if they were fed."""
    input_images_per_s: float
    labels_mb_per_s: float
    """Read from the label store by all; 0 with a live teacher."""
    limit: str
    """What ends the growth first, in words."""


@dataclass(frozen=True)
class Feeding:
    """What brings images and labels to the GPUs."""

    loader_images_per_s: float
    """Of the cores beside one GPU."""
    storage_gb_per_s: float
    """Of the disk that all machines read."""
    image_kb: float
    top: int
    """Stored classes."""

    def label_bytes(self) -> int:
        """Of one stored answer."""
        return Layout(CLASSES, self.top).dtype.itemsize


@dataclass(frozen=True)
class Step:
    """A step of one GPU that is alone."""

    student: str
    batch: int
    gradients_mb: float
    student_images_per_s: float
    teacher_images_per_s: float | None
    """Of a live teacher; None with stored answers."""

    @property
    def own_s(self) -> float:
        """Of the student."""
        return self.batch / self.student_images_per_s

    @property
    def seconds(self) -> float:
        """Of the whole."""
        return self.own_s + (self.batch / self.teacher_images_per_s if self.teacher_images_per_s else 0.0)


def row(one: Step, gpus: int, cluster: Cluster, feed: Feeding) -> Row:
    """The same step on so many GPUs."""
    buckets = max(1, math.ceil(one.gradients_mb / BUCKET_MB))
    each = cluster.all_reduce_s(one.gradients_mb / buckets, gpus)
    waiting = max(each, buckets * each - BACKWARD * one.own_s)
    step = one.seconds * cluster.slowest(gpus) + waiting
    images_per_s, is_stored = gpus * one.batch / step, one.teacher_images_per_s is None
    return Row(
        one.student,
        "stored" if is_stored else "live",
        gpus,
        one.batch,
        one.gradients_mb,
        sent_mb(one.gradients_mb, gpus),
        1e3 * one.seconds,
        1e3 * buckets * each,
        1e3 * waiting,
        1e3 * step,
        100 * one.seconds / step,
        images_per_s,
        min(gpus * feed.loader_images_per_s, storage_images_per_s(feed, is_stored)),
        images_per_s * feed.label_bytes() / 1e6 if is_stored else 0.0,
        limit_of(images_per_s, gpus, feed, is_stored),
    )


def storage_images_per_s(feed: Feeding, has_labels: bool) -> float:
    """Images/s that the shared disk gives, with their labels where these are stored."""
    return feed.storage_gb_per_s * 1e9 / (1e3 * feed.image_kb + (feed.label_bytes() if has_labels else 0))


def limit_of(images_per_s: float, gpus: int, feed: Feeding, has_labels: bool) -> str:
    """GPUs, cores or disk: the one that gives the fewest images/s."""
    cores, disk = gpus * feed.loader_images_per_s, storage_images_per_s(feed, has_labels)
    least = min(images_per_s, cores, disk)
    if least == images_per_s:
        return "GPUs"
    return f"{'cores' if least == cores else 'disk'}: {least:,.0f} images/s"


def gradients_mb(student: str, compress: str) -> float:
    """Of one step, as they travel."""
    with torch.device("meta"):
        network = models.build(student, CLASSES)
    return sum(each.numel() for each in network.parameters()) * (2 if compress == "bf16" else 4) / 1e6


def rates_of(given: list[str]) -> dict[str, float]:
    """The measured rates and those that were given. Raises UsageError for what is not NAME=IMAGES."""
    found = dict(MEASURED)
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if not (name and 0 < found[name] < math.inf):
            raise UsageError(f"--rate {text}: expected NAME=IMAGES, images/s of one GPU above 0")
    return found


HEADINGS = (
    *("student, teacher", "GPUs", "sent MB", "sending ms", "waiting ms", "step ms", "efficiency %"),
    *("images/s", "limit"),
)


def to_markdown(rows: list[Row]) -> str:
    """The table of docs/scale.md."""
    lines = [HEADINGS, ("---", *["---:"] * 7, "---")]
    for each in rows:
        lines.append(
            (
                f"{each.student}, {each.teacher}",
                str(each.gpus),
                f"{each.sent_mb:.0f}",
                f"{each.sending_ms:.2f}",
                f"{each.waiting_ms:.2f}",
                f"{each.step_ms:.1f}",
                f"{each.efficiency_percent:.1f}",
                f"{each.images_per_s:,.0f}",
                each.limit,
            )
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def beside(feed: Feeding, rows: list[Row]) -> list[str]:
    """When input and label store become the limit, in words."""
    fastest = max(rows, key=lambda each: each.images_per_s / each.gpus)
    each_gpu = fastest.images_per_s / fastest.gpus
    with_labels, label = storage_images_per_s(feed, True), feed.label_bytes()
    alone = feed.storage_gb_per_s * 1e9 / label
    return [
        f"The cores beside a GPU give {feed.loader_images_per_s:,.0f} images/s; a GPU takes up to"
        f" {each_gpu:,.0f} ({fastest.student}, {fastest.teacher} answers).",
        f"A disk of {feed.storage_gb_per_s:g} GB/s gives {with_labels:,.0f} images/s of {feed.image_kb:g} kB,"
        f" enough for {with_labels / each_gpu:.0f} such GPUs.",
        f"A stored answer, the {feed.top} largest of {CLASSES} classes, has {label} bytes: the label store by"
        f" itself would be the limit at {alone:,.0f} images/s, of {alone / each_gpu:,.0f} such GPUs.",
    ]


SPEEDS = {
    "teacher-rate": (622, "images/s of the live teacher on one GPU"),
    "gpus-per-machine": (8, "GPUs of each machine, each with a network card"),
    "nvlink": (450, "GB/s of a GPU inside its machine, in one direction"),
    "card": (50, "GB/s of a network card: 400 Gb/s"),
    "achieved": (0.7, "share of the links' speeds that is reached"),
    "loader": (1700, "images/s of the cores beside one GPU"),
    "storage": (20, "GB/s of the disk that all machines read"),
    "image-kb": (110, "kB of an image file"),
    "latency": (10, "microseconds of an all-reduce for each doubling of the GPUs; may be 0"),
    "jitter": (0.01, "deviation of a step's time, as a share of it; may be 0"),
}
"""{flag: (default, help)}."""


def parsed() -> argparse.Namespace:
    """The flags, checked."""
    parser = argparse.ArgumentParser(
        prog="scale.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--students", nargs="+", default=STUDENTS, metavar="NAME")
    parser.add_argument(
        "--rate", nargs="+", default=[], metavar="NAME=IMAGES", help="images/s of a training step on one GPU"
    )
    parser.add_argument("--batch", type=int, default=128, help="images of each GPU in a step")
    parser.add_argument("--top", type=int, default=10, help="stored classes, of 1,000")
    parser.add_argument("--compress", choices=["none", "bf16"], default="none", help="as --ddp-compress")
    for flag, (default, words) in SPEEDS.items():
        parser.add_argument(f"--{flag}", type=float, default=default, help=f"{words} (default {default:g})")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args()
    for flag in SPEEDS:
        value, may_be_0 = getattr(options, flag.replace("-", "_")), flag in ("latency", "jitter")
        if not (0 < value < math.inf or (may_be_0 and value == 0)):
            parser.error(f"--{flag} {value:g}: expected {'0 or more' if may_be_0 else 'above 0'}")
    if min(*options.gpus, options.batch, options.top) < 1 or options.top > CLASSES:
        parser.error(f"expected --gpus and --batch from 1 on, --top from 1 to {CLASSES}")
    return options


def rows_of(options: argparse.Namespace, rates: dict[str, float], feed: Feeding) -> list[Row]:
    """Of every student whose rate is known, with a live teacher and with stored answers."""
    cluster = Cluster(
        int(options.gpus_per_machine),
        options.nvlink,
        options.card,
        options.achieved,
        options.latency,
        options.jitter,
    )
    steps = [
        Step(student, options.batch, gradients_mb(student, options.compress), rates[student], teacher)
        for student in options.students
        if student in rates
        for teacher in (options.teacher_rate, None)
    ]
    return [row(one, gpus, cluster, feed) for one in steps for gpus in options.gpus]


def main() -> int:
    """Print the table and the limits."""
    options = parsed()
    feed = Feeding(options.loader, options.storage, options.image_kb, options.top)
    try:
        rates = rates_of(options.rate)
        rows = rows_of(options, rates, feed)
    except Large2SmallError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    missing = [student for student in options.students if student not in rates]
    if options.json:
        print(files.json_text({"rows": [vars(each) for each in rows], "not_measured": missing}))
        return 0
    if rows:
        print("\n".join([to_markdown(rows), "", *beside(feed, rows)]))
    for student in missing:
        print(f"{student}: no step of it was measured. Give --rate {student}=IMAGES, images/s of one GPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
