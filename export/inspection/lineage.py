"""Is this file still the child of its ancestors? The hashes it recorded, against the ancestors that are at
hand.

In:  the lineage (and quantization) an artifact or checkpoint recorded; its folder; files and data
sets by flag.
Out: one `Ancestor` per recorded hash: matches, DIFFERS, or not at hand.
Elsewhere: what is recorded (export.commands.onnx, distill.training.trainer), the seal of the artifact itself
(runtime.artifact).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from runtime import files
from runtime.errors import DataError, MissingError, UsageError
from runtime.images import FileSet, ImageSet, open_images
from runtime.images.lists import is_list
from runtime.recorded import found_again, is_plain, local_data

from ..checks import samples

MATCHES, DIFFERS, ABSENT = "matches", "DIFFERS", "not at hand"


@dataclass(frozen=True)
class Given:
    """Ancestors named by the user; None: look beside the artifact."""

    checkpoint: Path | None = None
    teacher: Path | None = None
    student: Path | None = None
    """What a quantization-aware training began with."""
    fp32: Path | None = None
    data: str | None = None
    """Labeled images of validation and evaluation."""
    calib: str | None = None
    """Training images, of which some calibrated."""
    follow: bool = False
    """Also look where the file says, outside of its folder."""


@dataclass(frozen=True)
class Ancestor:
    """One recorded hash and what became of it."""

    what: str
    name: str | None
    """File or data set as it was called then."""
    sha256: str
    """As recorded; empty where a list of images has one each."""
    looked_at: str | None
    """What was hashed now."""
    status: str
    """MATCHES, DIFFERS or ABSENT."""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(
    lineage: Mapping[str, Any], quantization: Mapping[str, Any] | None, file: Path, given: Given
) -> list[Ancestor]:
    """Hash again what can be found. file: the artifact or checkpoint itself, beside which ancestors are
    looked for.

    Raises UsageError or DataError when something that was given cannot be read.
    """
    return [
        *_others_left_out(list(_files(lineage, file, given)), given),
        *_fp32(lineage, file, given),
        *_data(lineage, quantization or {}, file, given),
    ]


def _files(lineage: Mapping[str, Any], file: Path, given: Given) -> Iterator[Ancestor]:
    for what in ("onnx", "checkpoint", "student", "teacher"):
        entry = lineage.get(what)
        if not isinstance(entry, Mapping) or not entry.get("sha256"):
            continue
        name = str(entry.get("file") or "")
        wanted = getattr(given, what, None)  # a plan's ONNX file is only looked for beside it
        places = [wanted] if wanted else [file.parent / PurePath(name).name, Path(name)] if name else []
        if not wanted and not given.follow:
            places = [place for place in places if _is_beside(place, file.parent)]
        yield _hashed(what, name, str(entry["sha256"]), places, bool(wanted))


def _others_left_out(found: list[Ancestor], given: Given) -> Iterator[Ancestor]:
    """A file beside that matches one ancestor contradicts no other one of the same name: a teacher's best.pth
    is not expected where the student's is.
    """
    known = {each.looked_at: each.what for each in found if each.status == MATCHES}
    for each in found:
        if each.status == DIFFERS and each.looked_at in known and getattr(given, each.what, None) is None:
            note = f"{each.looked_at} is the {known[each.looked_at]}"
            each = replace(each, status=ABSENT, note=note, looked_at=None)
        yield each


def _hashed(what: str, name: str, recorded: str, places: list[Path], is_given: bool) -> Ancestor:
    found = [place for place in dict.fromkeys(places) if place.is_file() and (is_given or is_plain(place))]
    if not found:
        if is_given:
            raise UsageError(f"{places[0]}: no such file (given as the {what})")
        return Ancestor(what, name or None, recorded, None, ABSENT)
    same = next((place for place in found if files.sha256(place) == recorded), None)
    if (
        same is None and not is_given and found == [Path(name)] and not found[0].is_absolute()
    ):  # only by chance in this folder
        return Ancestor(what, name, recorded, None, ABSENT, f"{name} in the working folder is another one")
    return Ancestor(what, name or None, recorded, str(same or found[0]), MATCHES if same else DIFFERS)


def _fp32(lineage: Mapping[str, Any], file: Path, given: Given) -> Iterator[Ancestor]:
    """The fp32 artifact. Its name is not recorded, so a file beside it that only has the
    same name does not contradict.
    """
    entry = lineage.get("fp32_onnx")
    if not isinstance(entry, Mapping) or not entry.get("sha256"):
        return
    recorded = str(entry["sha256"])
    guess = file.with_name(f"{file.name.partition('.')[0]}.onnx")
    found = _hashed("fp32 ONNX", "", recorded, [given.fp32 or guess], bool(given.fp32))
    if found.status == DIFFERS and not given.fp32:
        found = Ancestor("fp32 ONNX", None, recorded, None, ABSENT, f"{guess.name} beside it is another one")
    yield found


def _data(
    lineage: Mapping[str, Any], quantization: Mapping[str, Any], file: Path, given: Given
) -> Iterator[Ancestor]:
    data = lineage.get("data") or {}
    evaluation, used = data.get("evaluation") or {}, quantization.get("images")
    opened = _Opened(file.parent, given.follow)
    yield from _one_of(
        opened.compare("validation images", data.get("val_spec"), data.get("val_sha256"), "val", given.data),
        opened.compare(
            "evaluation images", evaluation.get("spec"), evaluation.get("sha256"), "val", given.data
        ),
    )
    if isinstance(evaluation.get("judged_on"), Mapping):
        yield _judged_on(evaluation["judged_on"], *opened.find(evaluation.get("spec"), "val", given.data))
    yield from _one_of(
        opened.compare(
            "training images", data.get("train_spec"), data.get("train_sha256"), "train", given.calib
        ),
        opened.compare(
            "calibration set", data.get("train_spec"), quantization.get("data_sha256"), "train", given.calib
        ),
    )
    if isinstance(used, list) and used:
        yield _calibration(used, *opened.find(data.get("train_spec"), "train", given.calib))


def _one_of(*found: Ancestor | None) -> Iterator[Ancestor]:
    """Two roles that one data set is held against: where it plays one of them, it need not be the other's."""
    known = [ancestor for ancestor in found if ancestor is not None]
    some_match = any(ancestor.status == MATCHES for ancestor in known)
    for ancestor in known:
        if ancestor.status == DIFFERS and some_match:
            ancestor = replace(
                ancestor, status=ABSENT, note=f"{ancestor.looked_at} is another one", looked_at=None
            )
        yield ancestor


def _is_beside(place: Path, folder: Path) -> bool:
    """Whether a path that a file names is in `folder`, links followed."""
    try:
        return place.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, a link to itself
        return False


class _Opened:
    """Data sets opened and hashed once, however often they are asked for."""

    def __init__(self, folder: Path, follow: bool) -> None:
        self.folder, self.follow = folder, follow
        self.sets: dict[tuple[str, str], tuple[ImageSet, str] | None] = {}

    def find(
        self, spec: Any, split: str, named: str | None
    ) -> tuple[str | None, tuple[ImageSet, str] | None]:
        """Where the data set is, and the set with its fingerprint; None when it is not at hand."""
        place = named or _at_hand(spec, self.folder, self.follow)
        if place and (place, split) not in self.sets:
            self.sets[place, split] = _open(place, split, bool(named))
        return place, self.sets[place, split] if place else None

    def compare(
        self, what: str, spec: Any, sha256: str | None, split: str, named: str | None
    ) -> Ancestor | None:
        """None when no hash was recorded."""
        if not sha256:
            return None
        place, found = self.find(spec, split, named)
        name = spec if isinstance(spec, str) else None
        if found is None or not found[1]:
            return Ancestor(what, name, sha256, None, ABSENT)
        only_names = isinstance(found[0], FileSet)
        return Ancestor(
            what,
            name,
            sha256,
            place,
            MATCHES if found[1] == sha256 else DIFFERS,
            "classes, file names and labels" if only_names else "",
        )


def _at_hand(spec: Any, folder: Path, follow: bool) -> str | None:
    """A recorded spec that can be opened here: digits, or a path in the folder of the file; with `follow`
    also one elsewhere.
    """
    if not isinstance(spec, str) or not spec:
        return None
    if spec.partition(":")[0] == "digits":  # a data set of that spec is called digits:val
        return "digits"
    spec = found_again(spec, folder)
    kind = next((each for each in ("npz:", "csv:") if spec.startswith(each)), "")
    path = spec[len(kind) :]
    places = [place for place in (folder / path, Path(path)) if follow or _is_beside(place, folder)]
    place = next((place for place in places if is_plain(place)), None)
    return local_data(f"{kind}{place}", str(folder), "--data") if place else None


def _open(spec: str, split: str, is_given: bool) -> tuple[ImageSet, str] | None:
    """None where the data is not one that this machine can open, unless the user named it."""
    try:
        images = _reader(spec)(spec, split)
    except (DataError, MissingError, ImportError):
        if is_given:
            raise
        return None
    return images, images.fingerprint()


def _reader(spec: str) -> Callable[[str, str], ImageSet]:
    """What opens the data: the runtime, and for what only timm reads the training's own reader."""
    if spec == "digits" or spec.startswith("npz:") or Path(spec).is_dir() or is_list(spec):
        return open_images
    from distill.data import open_data

    return open_data


def _calibration(listed: list[list[str]], place: str | None, found: tuple[ImageSet, str] | None) -> Ancestor:
    """The images that calibrated, one by one by their content."""
    what = f"{len(listed)} calibration images"
    if found is None:
        return Ancestor(what, None, "", None, ABSENT)
    images = found[0]
    index = {images.item_name(i).removeprefix(images.name): i for i in range(len(images))}
    for recorded, sha256 in listed:
        here = index.get(_inside(recorded))
        if here is None or images.item_sha256(here) != sha256:
            problem = "is not there" if here is None else "has another content"
            return Ancestor(what, recorded, sha256, place, DIFFERS, f"{recorded} {problem}")
    return Ancestor(what, None, "", place, MATCHES, "content of each")


def _judged_on(
    recorded: Mapping[str, Any], place: str | None, found: tuple[ImageSet, str] | None
) -> Ancestor:
    """The labeled images that the artifact was judged on: chosen again, and their content hashed."""
    what, sha256 = f"{recorded['images']} evaluated images", str(recorded["sha256"])
    if found is None:
        return Ancestor(what, None, sha256, None, ABSENT)
    chosen = samples.choose(found[0].labels, int(recorded["images"]), int(recorded["seed"]))
    same = samples.content(found[0], chosen) == sha256
    return Ancestor(
        what, None, sha256, place, MATCHES if same else DIFFERS, "names, labels and content of each"
    )


def _inside(recorded: str) -> str:
    """An image's name without its data set's: '/cat/1.jpg' of 'train/cat/1.jpg', '[3]' of 'train.npz[3]'
    (samples.listing).
    """
    if "/" in recorded:
        return recorded[recorded.index("/") :]
    return recorded[recorded.rindex("[") :] if "[" in recorded else recorded
