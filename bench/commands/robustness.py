"""`distill bench robustness`: how errors grow when images are corrupted, occluded, shuffled or moved.

In:  `Options`: artifacts and labeled images.
Out: tables on stdout, with --json one JSON object; with --save a file.
Elsewhere: the pictures and figures (bench.comparing.robustness), what each figure means (docs/robustness.md).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from runtime import UsageError, env
from runtime.cli import settings
from runtime.cli.nearest import nearest
from runtime.cli.settings import Flag
from runtime.cli.terminal import loading, progress_bar
from runtime.images import open_images

from .. import report
from ..comparing.robustness import shown
from ..comparing.robustness.asking import ask, chosen
from ..comparing.robustness.corruptions import CORRUPTIONS, SEVERITIES
from ..comparing.robustness.figures import robustness
from ..comparing.robustness.views import PARTS, Asked, constants_for
from ..results import saved
from ..subject import RunOptions, describe, open_artifact, require_preprocess

SUMMARY = "measure errors on corrupted, occluded, shuffled and shifted images"
DESCRIPTION = """The first artifact, or that of --relative-to, is the reference: mCE is the mean over the
corruptions of an artifact's error divided by the reference's. All artifacts see the same images.

examples:
  {prog} teacher.onnx student.onnx student.int8.onnx --data photos
  {prog} student.onnx student.int8.onnx --data photos --images 500 --severities 3
  {prog} student.onnx --data photos --parts occlusion,shuffle --json
  {prog} student.onnx --data npz:test.npz --corruptions jpeg_compression,pixelate"""


@dataclass(frozen=True)
class Options(RunOptions):
    """Robustness."""

    artifacts: Annotated[tuple[Path, ...], Flag("FILE", positional=True)]
    """Artifacts, one or more: .onnx files, or .plan files with their .plan.json beside them."""
    data: Annotated[str, Flag("DATA", common=True)]
    """Labeled images: DIR, npz:FILE or digits."""
    split: Literal["train", "val"] = "val"
    """Part of --data to read."""
    relative_to: Annotated[Path | None, Flag("FILE", common=True)] = None
    """Artifact whose errors the others are divided by, such as the teacher or the control; by default the
    first one."""
    parts: Annotated[str, Flag("LIST", common=True)] = "all"
    """Parts to measure: all, or some of corruptions,occlusion,shuffle,shifts,crops."""
    corruptions: Annotated[str, Flag("LIST", common=True)] = "all"
    """Corruptions to make: all, or some with commas between, such as gaussian_noise,contrast."""
    severities: Annotated[str, Flag("LIST", common=True)] = "all"
    """Severities of each corruption: all five, or some with commas between, such as 1,3,5."""
    constants: Literal["auto", "cifar", "imagenet"] = "auto"
    """Constants of the corruptions: CIFAR-10-C's or ImageNet-C's; auto: CIFAR-10-C's where the reference's
    input has a side of at most 64 pixels."""
    images: Annotated[int | None, Flag("N", aliases=("--limit",), common=True, least=1)] = None
    """Number of images, drawn by --seed, 1 or more; all when not given."""
    batch: Annotated[int, Flag("N", aliases=("-b", "--batch-size"), least=1)] = 64
    """Images per call, 1 or more; a file that does not take so many gets what it takes."""
    skip_bad_images: bool = False
    """Leave out and count images that cannot be read, instead of stopping at the first."""
    workers: Annotated[int | None, Flag("N", aliases=("-j",), least=1)] = None
    """Threads that decode and corrupt images, 1 or more; by default all usable cores."""
    seed: int = 0
    """Seed of the noise, of the patches and of the choice of --images."""
    save: Annotated[Path | None, Flag("FILE", common=True)] = None
    """File to write the result to, as JSON."""
    json: Annotated[bool, Flag(common=True)] = False
    """Print the result as one JSON object and nothing else."""
    overwrite: bool = False
    """Replace an existing file of --save."""

    def __post_init__(self) -> None:
        settings.check(self)
        if not self.artifacts:
            raise UsageError("no artifact given. Name one or more: student.onnx student.int8.onnx")
        _listed("parts", self.parts, PARTS)
        _listed("corruptions", self.corruptions, tuple(CORRUPTIONS))
        _listed("severities", self.severities, tuple(map(str, SEVERITIES)))
        self.require_read(self.files)

    @property
    def files(self) -> list[Path]:
        """The artifacts, the reference first."""
        if self.relative_to is None:
            return list(self.artifacts)
        same = self.relative_to.resolve()
        return [self.relative_to, *(path for path in self.artifacts if path.resolve() != same)]

    def asked(self, auto: str) -> Asked:
        """What to measure; auto: the constants that suit the reference."""
        return Asked(
            _listed("parts", self.parts, PARTS),
            _listed("corruptions", self.corruptions, tuple(CORRUPTIONS)),
            tuple(map(int, _listed("severities", self.severities, tuple(map(str, SEVERITIES))))),
            auto if self.constants == "auto" else self.constants,
            self.seed,
        )


def _listed(flag: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """'a, b' -> these words in the order of `known`; 'all' -> all. Raises UsageError for an unknown one."""
    expected = f"Expected all, or some of {','.join(known)}"
    if text.strip() == "all":
        return known
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in known:
            raise UsageError(f"--{flag} {word!r}{nearest(word, known)} {expected}")
    if not words:
        raise UsageError(f"--{flag} is empty. {expected}")
    return tuple(word for word in known if word in words)


def run(options: Options) -> None:
    """Measure robustness, and print the result."""
    report.require_place(options.save, options.overwrite)
    found = do(options)
    report.deliver(found, options.json, lambda: shown.tables(found), lambda: keep(options, found))


def keep(options: Options, found: shown.Report) -> None:
    """Write the file of --save."""
    if options.save:
        line = saved.command_line("bench robustness", options)
        saved.write(options.save, "robustness", line, found.to_dict())


def do(options: Options) -> shown.Report:
    """Measure. Raises what opening, reading and evaluating raise."""
    with loading(f"looking for the images of {options.data}"):
        images = open_images(options.data, options.split)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_artifact(path, options)) for path in options.files]
        asked = options.asked(constants_for(require_preprocess(opened[0])))
        count = len(chosen(len(images), options.images, options.seed))
        with progress_bar("robustness", count) as advance:
            answered = ask(
                opened,
                images,
                asked,
                count=options.images,
                batch=options.batch,
                skip_bad=options.skip_bad_images,
                split=options.split,
                workers=options.workers,
                progress=advance,
            )
        subjects = [describe(each, options) for each in opened]
    found = [robustness(each, answered.answers[0], asked) for each in answered.answers]
    return shown.Report(
        subjects, found, asked, images.name, options.split, answered.skipped, env.fingerprint()
    )
