"""What is said before a training starts: what is trained on what, and what will not go well.

In:  a run's options, images, student and teacher.
Out: a `Header`: lines for a person, plain values for RUN/header.json, and warnings with the flag that helps.
Elsewhere: counting images (runtime.images.summary), the run (distill.run.job).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from runtime.cli.terminal import loading
from runtime.images import ImageSet
from runtime.images.summary import shown

from ..data.balance import class_weights
from ..processes import together
from ..recipe import Recipe
from ..training.parts import LayerRates, warmup_of
from ..training.task import Splits

FEW_STEPS = 5
"""Steps an epoch below which a schedule has hardly anything to go along."""
LOPSIDED = 5.0
"""The largest class has so many times the images of the smallest: worth a word."""
FEW_VALIDATION_IMAGES = 100
"""With fewer, one image is a point or more of accuracy."""
MOST_COMPARED = 200_000
"""Images among which copies in training and validation are looked for."""
MOST_OPENED = 10_000
"""Files whose headers are read to count turned images; of more, so many are taken evenly."""


@dataclass(frozen=True)
class Header:
    """A run before it starts."""

    train_images: int
    val_images: int
    classes: int
    smallest_class: tuple[str, int] | None
    """(class, training images); None for a stream, of which this is not known."""
    largest_class: tuple[str, int] | None
    left_out: list[str]
    empty: str
    """Classes without training or validation images, in words; empty when there are none."""
    overlap: str
    """Images in both sets, in words; empty when there are none."""
    student: str
    parameters: int
    input_size: tuple[int, int, int]
    teacher: str
    device: str
    epochs: int
    batch: int
    """Images of an optimizer step."""
    steps_per_epoch: int
    left_over: int
    """Training images that an epoch does not reach, others each time."""
    peak_lr: float
    warmup_epochs: float
    layer_decay: float | None
    layers: LayerRates | None = None
    """What the layer decay makes of the peak rate."""
    sampler: str = "uniform"
    class_weights: tuple[tuple[str, float], tuple[str, float]] | None = None
    """(class, weight) of the smallest and the largest weight in the labels' loss; None where all are 1."""
    select: str = "top1"
    """What chooses the best epoch."""
    exif: str = "ignore"
    """What happens to turned images: `ignore` or `apply`."""
    turned: str = ""
    """How many images EXIF says are to be turned or mirrored, in words; empty when there are none."""
    processes: int = 1
    """How many share each batch."""
    batch_of_each: int = 0
    """Images that each of several processes has at once; 0 for one."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A few lines for a person, readable at 60 columns."""
        size = " x ".join(map(str, self.input_size))
        over = f", {self.left_over} images left over" if self.left_over else ""
        if self.processes > 1:
            over = f" ({self.batch_of_each} at once in each of {self.processes} processes){over}"
        return [
            f"data     {self.train_images:,} training, {self.val_images:,} validation images",
            f"         {self.classes} classes, {self._class_sizes()}",
            *(f"         {line}" for line in self.left_out),
            *([f"         {self.turned}, which is undone"] if self.turned and self.exif == "apply" else []),
            f"student  {self.student}, {self.parameters / 1e6:.2f} M parameters, {size}",
            f"teacher  {self.teacher}",
            f"run      {self.epochs} epochs of {_steps(self.steps_per_epoch)} of {self.batch} images{over}",
            f"         peak rate {self.peak_lr:.3g}, warm-up {self.warmup_epochs:g} epochs, {self.device}",
            *self._balance_lines(),
        ]

    def _balance_lines(self) -> list[str]:
        """What treats layers or classes unequally."""
        lines = []
        if self.layers:
            r, many = self.layers, "s" * (self.layers.groups > 1)
            lines.append(
                f"         layer decay {self.layer_decay:g}: {r.groups} group{many} of layers, peak rates"
                f" {r.smallest:.3g} to {r.largest:.3g}"
            )
        if self.sampler == "balanced":
            each = self.train_images / max(self.classes, 1)
            lines.append(
                f"sampler  balanced: {self.train_images:,} images an epoch, about {each:,.0f} of each class"
            )
        if self.class_weights:
            (low, least), (high, most) = self.class_weights
            lines.append(f"weights  of the labels' loss: {least:.3g} ({low}) to {most:.3g} ({high})")
        return lines

    def _class_sizes(self) -> str:
        if self.smallest_class is None or self.largest_class is None:
            return "images of each not known: a stream is only read from the front"
        (small, few), (large, many) = self.smallest_class, self.largest_class
        return f"{few:,} ({small}) to {many:,} ({large}) images"

    def warnings(self) -> list[str]:
        """What will not go well, and the flag that helps."""
        found = []
        if self.steps_per_epoch < FEW_STEPS:
            found.append(
                f"only {_steps(self.steps_per_epoch)} an epoch, {self.steps_per_epoch * self.epochs} in all:"
                f" give a smaller --batch (now {self.batch}) or more --epochs"
            )
        few, many = (each[1] if each else 0 for each in (self.smallest_class, self.largest_class))
        if few and many / few >= LOPSIDED:
            found += self._lopsided(many / few)
        if self.val_images and self.val_images < FEW_VALIDATION_IMAGES:
            found.append(
                f"{self.val_images} validation images: one of them is {100 / self.val_images:.1f} points of"
                " top-1"
            )
        if self.empty:
            found.append(f"{self.empty}: such a class is not learned, or not measured")
        if self.overlap:
            found.append(f"{self.overlap}: accuracy is too high by them")
        if self.sampler == "balanced" and self.class_weights:
            found.append(
                "--sampler balanced and --class-weights both make up for rare classes, which then count twice"
                " over: leave one out"
            )
        if self.turned and self.exif == "ignore":
            found.append(f"{self.turned}, which is ignored: give --exif apply")
        return found

    def _lopsided(self, ratio: float) -> list[str]:
        """Classes of very unequal size, and what makes up for it; nothing where all that is done."""
        help_ = []
        if self.sampler != "balanced" and not self.class_weights:
            help_.append("--sampler balanced or --class-weights balanced gives the small ones the same say")
        if self.select == "top1":
            help_.append("--select balanced takes the epoch with the best mean over the classes")
        if not help_:
            return []
        return [
            f"the largest class has {ratio:.1f} times the images of the smallest: top-1 mostly says how"
            f" good the large classes are; {'; '.join(help_)}"
        ]


@loading("comparing training and validation images")
def header_of(
    recipe: Recipe,
    data: Splits,
    parameters: int,
    input_size: tuple[int, int, int],
    teacher: str,
    device: str,
    exif: str,
    layers: LayerRates | None = None,
) -> Header:
    """The header of a run. teacher: in words; exif: `ignore` or `apply`; layers: what --layer-decay makes of
    the student's rates.
    """
    about = data.train.summary()
    processes = together.size()
    images = recipe.batch * recipe.grad_accum * processes
    steps = len(data.train) // (recipe.batch * processes) // recipe.grad_accum
    return Header(
        train_images=len(data.train),
        val_images=len(data.val),
        classes=len(data.train.class_names),
        smallest_class=about.smallest if len(data.train.labels) else None,
        largest_class=about.largest if len(data.train.labels) else None,
        left_out=[each.line() for each in about.left_out],
        empty=_empty_classes(data),
        overlap=_overlap(data.train, data.val),
        student=recipe.student,
        parameters=parameters,
        input_size=input_size,
        teacher=teacher,
        device=device,
        epochs=recipe.epochs,
        batch=images,
        steps_per_epoch=steps,
        left_over=len(data.train) - steps * images,
        peak_lr=recipe.peak_lr,
        warmup_epochs=warmup_of(recipe),
        layer_decay=recipe.layer_decay,
        layers=layers,
        sampler=recipe.sampler,
        class_weights=_range_of_weights(recipe, data.train),
        select=recipe.select,
        exif=exif,
        turned=_turned(data.train, data.val),
        processes=processes,
        batch_of_each=recipe.batch if processes > 1 else 0,
    )


def _range_of_weights(recipe: Recipe, train: ImageSet) -> tuple[tuple[str, float], tuple[str, float]] | None:
    """(class, weight) of the smallest and of the largest weight in the labels' loss, of the classes that
    have images.
    """
    weights = class_weights(recipe.class_weights, train)
    if weights is None:
        return None
    by_weight = sorted(set(train.labels.tolist()), key=weights.__getitem__)
    low, high = by_weight[0], by_weight[-1]
    names = train.class_names
    return (names[low], float(weights[low])), (names[high], float(weights[high]))


def _turned(*sets: ImageSet) -> str:
    """How many images are stored turned or mirrored, in words."""
    every = sum(len(images.labels) for images in sets)
    step = max(1, -(-every // MOST_OPENED))
    found = [images.orientation(index) for images in sets for index in range(0, len(images.labels), step)]
    count = sum(number > 1 for number in found)
    some = "" if step == 1 else f" looked at (of {every:,})"
    words = f"{count:,} of {len(found):,} images{some} are turned or mirrored by their EXIF orientation"
    return words if count else ""


def _empty_classes(data: Splits) -> str:
    """Classes that an npz file or a set of timm names and has no image of."""
    sets = {"training": data.train, "validation": data.val}
    found = {name: images.summary().empty_classes for name, images in sets.items() if len(images.labels)}
    return "; ".join(f"{name} has no image of {shown(empty)}" for name, empty in found.items() if empty)


def _overlap(train: ImageSet, val: ImageSet) -> str:
    """Copies in both sets, in words; not looked for in streams and very large sets."""
    if not (0 < len(train) + len(val) <= MOST_COMPARED) or not len(train.labels):
        return ""
    try:
        found = train.overlap(val)
    except OSError:  # an image that cannot be read is named when it is trained on
        return ""
    return found.line() if found.count else ""


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"
