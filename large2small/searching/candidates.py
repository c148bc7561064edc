"""The networks that a search chooses from.

In:  words such as 'convnext_*', ours, 'resnet20 width=0.5|1 img_size=32|64', or a file of such lines.
Out: a `Candidate` for each network, set of arguments and size.
Elsewhere: which networks there are (distill.models.catalog), their arguments (distill.models.arguments).
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime import UsageError, files

OURS = "ours"
SIZE = "img_size"
"""The argument that is the side of the input."""
EXAMPLE = "such as 'convnext_*', ours, or 'resnet20 width=0.5|1 img_size=32|64'"
LONGEST = 80
"""Letters of a folder's name."""


@dataclass(frozen=True)
class Candidate:
    """A network with fresh weights."""

    network: str
    args: tuple[str, ...]
    """KEY=VALUE, as --student-args takes them."""
    size: int
    """Side of the input, pixels."""

    @property
    def name(self) -> str:
        """For a person, and for the journal."""
        return " ".join([self.network, *self.args, f"@{self.size}"])

    @property
    def folder(self) -> str:
        """A name of a folder that no other candidate has."""
        parts = [self.network, *self.args, f"{self.size}px"]
        plain = "+".join(re.sub(r"[^\w.=-]+", "_", part) for part in parts)
        if plain == "+".join(parts) and len(plain) <= LONGEST and "+" not in "".join(parts):
            return plain
        return f"{plain[:LONGEST]}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Line:
    """What one line asks for: a name, a pattern or `ours`, and values for each argument."""

    text: str
    pattern: str
    values: dict[str, list[str]]


def lines(words: Sequence[str]) -> list[Line]:
    """What was typed, with the lines of files in the place of their names. Raises UsageError for what is not
    one.
    """
    found = [_line(text, source) for word in words for text, source in _texts(word)]
    if not found:
        raise UsageError(f"--candidates: nothing in it. Expected networks, {EXAMPLE}")
    return found


def _texts(word: str) -> Iterator[tuple[str, str]]:
    """(line, where it stands)."""
    if not Path(word).is_file():
        yield word, "--candidates"
        return
    for number, text in enumerate(files.read_text(word).splitlines(), 1):
        if text.partition("#")[0].strip():
            yield text.partition("#")[0], f"{word}, line {number}"


def _line(text: str, source: str) -> Line:
    pattern, *arguments = text.split() or [""]
    values: dict[str, list[str]] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not key.isidentifier() or not equals or not all(value.split("|")) or key in values:
            raise UsageError(
                f"{source} {files.short(text)}: {files.short(argument)}: expected KEY=VALUE, each key once,"
                f" with | between several values, {EXAMPLE}"
            )
        values[key] = value.split("|")
    if not re.fullmatch(r"[\w*?\[\]!-]+", pattern):
        raise UsageError(
            f"{source} {files.short(text)}: expected a network's name or a pattern, {EXAMPLE}. Candidates"
            " start from fresh weights: tags of published ones, hubs, folders and checkpoints are not taken"
        )
    if any(not each.isdecimal() or not 0 < int(each) <= 4096 for each in values.get(SIZE, [])):
        raise UsageError(f"{source} {files.short(text)}: {SIZE}: expected a side in pixels, 1 to 4096")
    return Line(text.strip(), pattern, values)


def candidates(asked: Sequence[Line], size: int) -> list[Candidate]:
    """Every combination, each once, in the order of the lines. size: of all that say none; 0 for what each
    network declares.

    Raises UsageError where a line matches no network.
    """
    found: dict[Candidate, None] = {}
    for line in asked:
        for network in _networks(line):
            found |= dict.fromkeys(_combined(network, line, size))
    return list(found)


def _networks(line: Line) -> list[str]:
    from distill.models import catalog, names

    if line.pattern == OURS:
        return [name for name in catalog.matching("*", ours=True) if not catalog.kernel_of(name)]
    if not set("*?[") & set(line.pattern):
        names.require_known(line.pattern)
        return [line.pattern]
    return catalog.matching(line.pattern)


def _combined(network: str, line: Line, size: int) -> Iterator[Candidate]:
    from distill.models import preprocess_of

    sides = [int(each) for each in line.values.get(SIZE, [])]
    sides = sides or [size or preprocess_of(network).input_size[1]]
    pairs = [[f"{key}={value}" for value in values] for key, values in line.values.items() if key != SIZE]
    for args in itertools.product(*pairs):
        for side in sides:
            yield Candidate(network, args, side)
