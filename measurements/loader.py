"""How many images a second the training's loader reads and augments, beside timm's `create_loader` with the
same augmentation, and what the parts of it cost.

    python measurements/loader.py [--workers 0] [--images 128] [--rounds 9] [--size 224] [--jpeg 512 384]
    [--aa rand-m9-mstd0.5-inc1] [--cache none] [--json]

Makes JPEGs in a folder that is removed afterwards. Ours and timm's read all of them once a round, in turn,
both as far as uint8 batches, which is what their reading processes give. With --workers 0 that happens in
this process on one thread, timed by the seconds of the processor that it takes, so that the figure is that of
one core, on a machine with other work too; with more workers, or on a GPU, by the clock on the wall.
Normalization and erasing, which both do to batches on the device, are measured apart, as are the parts of
ours: decoding (with --cache ram: reading what was decoded), the crop with its resize, the policy. The first
round is a warm-up. Prints medians, and the
median of the rounds' ratios, which the noise of a busy machine moves least.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from timm.data import ImageDataset, auto_augment, create_loader

from distill.data import TrainLoader, open_data
from distill.data.augment import operations, posterize, timm_settings, training_transform
from distill.data.cached import cached
from distill.data.crops import ResizedCrop
from distill.data.seeds import seed_all
from distill.recipe import Recipe
from runtime import files
from runtime.env import fingerprint
from runtime.errors import UsageError
from runtime.images import ImageSet
from runtime.preprocess import Preprocess

CLASSES = 2
PARTS = 64
"""Images that each part is measured on in a round, at most."""
Work = Callable[[int], int]
"""Does something to images, other ones for each round; how many they were."""


def make_jpegs(folder: Path, count: int, width: int, height: int) -> None:
    """A folder of images a class, as detailed as photographs: noise at several sizes, one above the other."""
    chance = np.random.default_rng(0)
    for number in range(count):
        pixels = np.zeros((height, width, 3))
        for part in (64, 16, 4, 1):
            noise = chance.integers(0, 256, (-(-height // part), -(-width // part), 3), np.uint8)
            larger = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            pixels += np.asarray(larger) * (0.5 if part == 64 else 0.2 if part > 1 else 0.1)
        place = folder / "train" / f"class{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{number}.jpg", quality=90)


def ours(images: ImageSet, recipe: Recipe, spec: Preprocess, device: torch.device) -> dict[str, Work]:
    """Our loader as far as its processes go, and what is done to batches behind them."""
    loader = TrainLoader(images, recipe, spec, device)
    kept = [next(loader.read(0))]

    def read(epoch: int) -> int:
        return sum(len(batch.pixels) for batch in loader.read(epoch))

    def finish(_: int) -> int:
        count = len(loader.finish(kept[0]).images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return count

    return {"ours": read, "on the device": finish}


def of_timm(folder: Path, recipe: Recipe, spec: Preprocess, device: torch.device) -> Work:
    """timm's loader as far as its processes go: its prefetcher normalizes and erases behind them."""
    loader = create_loader(
        ImageDataset(str(folder / "train")),
        spec.input_size,
        recipe.batch,
        is_training=True,
        num_workers=recipe.workers,
        device=device,
        pin_memory=device.type == "cuda",
        persistent_workers=recipe.workers > 0,
        use_prefetcher=True,
        **timm_settings(recipe, spec),
    ).loader
    for step in loader.dataset.transform.transforms:
        for operation in operations(step):
            if operation.aug_fn is auto_augment.posterize:  # which Pillow 13 refuses now and then
                operation.aug_fn = posterize
    return lambda _: sum(len(images) for images, _ in loader)


def parts(images: ImageSet, recipe: Recipe, spec: Preprocess) -> dict[str, Work]:
    """What happens to one image, a step after the other."""
    steps = training_transform(recipe, spec).transforms
    crop = next(step for step in steps if isinstance(step, ResizedCrop))
    numbers = range(min(PARTS, len(images)))
    whole = [images.image(number) for number in numbers]
    cropped = [crop(image) for image in whole]
    policy = steps[steps.index(crop) + 1 :]

    def decode(_: int) -> int:
        return len([images.image(number) for number in numbers])

    def resize(epoch: int) -> int:
        seed_all(epoch)
        return len([crop(image) for image in whole])

    def rest(epoch: int) -> int:
        seed_all(epoch)
        for image in cropped:
            for step in policy:
                image = step(image)
        return len(cropped)

    return {"decode": decode, "crop and resize": resize, "policy, flip": rest}


def measure(work: dict[str, Work], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Images a second, in turn: forward in even rounds, backward in odd ones."""
    rates: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name in list(work)[:: -1 if number % 2 else 1]:
            began = clock()
            count = work[name](number)
            if number:  # the first is a warm-up
                rates[name].append(count / (clock() - began))
    return rates


def summary(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the median of ours over timm's."""
    ratios = [a / b for a, b in zip(rates["ours"], rates["timm"], strict=True)]
    return {
        "images_per_second": {name: statistics.median(each) for name, each in rates.items()},
        "ours_over_timm": {
            "median": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        },
    }


def show(found: dict[str, Any]) -> None:
    """The table and the ratio."""
    table = Table("what", "images/s", "ms per image")
    for name, rate in found["images_per_second"].items():
        table.add_row(name, f"{rate:,.0f}", f"{1000 / rate:.3f}")
    console = Console()
    console.print(table)
    ratio, given = found["ours_over_timm"], found["settings"]
    console.print(
        f"ours over timm: median {ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f}), "
        f"n={given['rounds']} rounds of {given['images']} JPEGs, {given['workers']} workers"
    )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that read; 0: this one, one thread")
    parser.add_argument("--images", type=int, default=128, help="JPEGs to make and read each round")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=224, help="side of the input in pixels")
    parser.add_argument("--jpeg", type=int, nargs=2, default=(512, 384), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--aa", default="rand-m9-mstd0.5-inc1", help="policy of timm; '' for none")
    parser.add_argument("--cache", choices=("none", "ram"), default="none", help="as that of distill train")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    if not 2 <= options.batch <= options.images:
        raise UsageError(f"--batch {options.batch}: expected 2 to --images {options.images}")
    if min(options.rounds, options.size, *options.jpeg) < 1 or options.workers < 0:
        raise UsageError("--rounds, --size and --jpeg: expected 1 or more; --workers: 0 or more")
    return options


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Make the images and measure all on them."""
    make_jpegs(folder, options.images - options.images % options.batch, *options.jpeg)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = Recipe(
        data=str(folder),
        batch=options.batch,
        workers=options.workers,
        aa=options.aa,
        reprob=0.25,
        num_classes=CLASSES,
        cache=options.cache,
    )
    spec = Preprocess((3, options.size, options.size))
    images = cached(open_data(str(folder), "train", CLASSES), recipe, spec)
    work = ours(images, recipe, spec, device)
    work = {"ours": work["ours"], "timm": of_timm(folder, recipe, spec, device)} | work
    is_alone = options.workers == 0 and device.type == "cpu"
    clock = time.process_time if is_alone else time.perf_counter
    return summary(measure(work | parts(images, recipe, spec), options.rounds, clock))


def main() -> int:
    """Measure and print."""
    try:
        options = parsed()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder), options)
    found["settings"], found["machine"] = vars(options), fingerprint()
    if options.json:
        print(files.json_text(found))
    else:
        show(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
