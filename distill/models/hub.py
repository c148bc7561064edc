"""Published files, fetched quietly: what is here already is used, anything else is announced with its size.

In:  a repository of the Hugging Face hub and the names a file may have there, or an address.
Out: the file on this disk. Where it cannot be had: MissingError within seconds, UsageError for what is not
     there.
Elsewhere: what a network's name means (distill.models.names), reading weights (distill.checkpoint).
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from runtime.cli.terminal import loading, say
from runtime.errors import MissingError, UsageError

ANSWER_SECONDS = 5.0
"""A server that has not answered by then counts as out of reach."""
MOST_SECONDS = 8.0
"""The same with looking up its address, which has no limit of its own."""
REPOSITORY = r"(?!.*(--|\.\.))[a-zA-Z0-9_][\w.-]{0,94}/[a-zA-Z0-9_][\w.-]{0,94}(?<![.-])"
"""What the hub allows as OWNER/NAME."""
MEGA = 10**6
T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """A file that is published, for messages."""

    name: str
    """What it is to the user: the network's name."""
    way_out: str
    """Flag and value that make it unnecessary, for example `--student-ckpt FILE`."""
    parameters: Callable[[], int] | None = None
    """Counts the network's weights, where a server does not tell a size; None: too small to announce."""

    def missing(self, host: str, reason: str) -> MissingError:
        return MissingError(
            f"{self.name}: cannot be fetched from {host} ({reason}). Give its weights as a file:"
            f" {self.way_out}; or run this once where there is a network"
        )

    def announce(self, size: int | None, host: str) -> None:
        """One line before a download."""
        if self.parameters is not None:
            words = f"{_mega(size)} MB" if size else f"about {_mega(4 * self.parameters())} MB"
            say(f"downloading {self.name}, {words}, from {host}")

    def found(self, path: Path) -> Path:
        """`path`, which was downloaded before, and a line that says so."""
        if self.parameters is not None:
            say(f"{self.name}: downloaded before, {_mega(path.stat().st_size)} MB, {path}")
        return path


def from_hub(repository: str, names: Sequence[str], wanted: Wanted) -> Path:
    """The first of `names` that OWNER/NAME[@REVISION] has. Raises UsageError where it has none of them, or is
    not there.
    """
    owner_and_name, _, revision = repository.partition("@")
    if not re.fullmatch(REPOSITORY, owner_and_name) or not re.fullmatch(r"[\w./-]*", revision):
        raise UsageError(
            f"{wanted.name}: expected hf-hub:OWNER/NAME, for example hf-hub:timm/resnet18.a1_in1k"
        )
    with _quietly():
        import huggingface_hub

        for name in names:
            known = huggingface_hub.try_to_load_from_cache(owner_and_name, name, revision=revision or None)
            if isinstance(known, str):
                return wanted.found(Path(known))
        for name in names:
            path = _fetched(owner_and_name, name, revision or None, wanted)
            if path is not None:
                return path
    raise UsageError(
        f"{wanted.name}: {_hub()} has the repository, but no {' and no '.join(names)} in it, so it is not a"
        " network of timm. Give another name"
    )


def _fetched(repository: str, name: str, revision: str | None, wanted: Wanted) -> Path | None:
    """The file, downloaded now; None where the repository does not have it."""
    import huggingface_hub
    from huggingface_hub import errors

    url, host = huggingface_hub.hf_hub_url(repository, name, revision=revision), _hub()
    try:
        about = _within(
            MOST_SECONDS, lambda: huggingface_hub.get_hf_file_metadata(url, timeout=ANSWER_SECONDS)
        )
        wanted.announce(about.size, host)
        with loading(f"downloading {wanted.name}"):
            return Path(
                huggingface_hub.hf_hub_download(
                    repository, name, revision=revision, etag_timeout=ANSWER_SECONDS
                )
            )
    except errors.LocalEntryNotFoundError as error:  # the hub went away in between
        raise wanted.missing(host, _reason(error.__cause__ or error)) from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise wanted.missing(
            host, "its owner has to let you in: accept the terms there, set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{wanted.name}: {host} has no revision {revision} of it. Give another") from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f"{wanted.name}: {host} has no such repository, or it is a private one (then set HF_TOKEN)"
        ) from error
    except Exception as error:  # the network's and the disk's many ways
        raise wanted.missing(host, _reason(error)) from error


def from_url(url: str, wanted: Wanted) -> Path:
    """The file at an address that timm names, in the folder where torch keeps such files."""
    import torch

    path = Path(torch.hub.get_dir(), "checkpoints", Path(urllib.parse.urlparse(url).path).name)
    if path.is_file():
        return wanted.found(path)
    host = urllib.parse.urlparse(url).netloc
    try:
        wanted.announce(_within(MOST_SECONDS, lambda: _size(url)), host)
        path.parent.mkdir(parents=True, exist_ok=True)
        with loading(f"downloading {wanted.name}"):
            torch.hub.download_url_to_file(url, str(path), progress=False)
    except Exception as error:  # the network's and the disk's many ways
        raise wanted.missing(host, _reason(error)) from error
    return path


def _size(url: str) -> int | None:
    request = urllib.request.Request(url, method="HEAD")
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and len(length) < 20 else None


def _within(seconds: float, do: Callable[[], T]) -> T:
    """What `do` gives. Raises TimeoutError after `seconds`, whatever it waits for, and what it raises."""
    found: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(do())
        except BaseException as error:  # raised again below, in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return found[0]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the bars, warnings and log lines of huggingface_hub."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from huggingface_hub import utils

        level = utils.logging.get_verbosity()
        shown = not utils.are_progress_bars_disabled()
        utils.logging.set_verbosity(logging.CRITICAL)
        utils.disable_progress_bars()
        try:
            yield
        finally:
            utils.logging.set_verbosity(level)
            if shown:
                utils.enable_progress_bars()


def _hub() -> str:
    """The host that stands for the hub here; HF_ENDPOINT names another than huggingface.co."""
    from huggingface_hub import constants

    return urllib.parse.urlparse(constants.ENDPOINT).netloc or constants.ENDPOINT


def _reason(error: BaseException) -> str:
    """Why a file cannot be had, in a few words."""
    names = {each.__name__ for each in type(error).__mro__}
    if "OfflineModeIsEnabled" in names:
        return "HF_HUB_OFFLINE is set"
    answer: Any = getattr(error, "response", None)
    status = getattr(answer, "status_code", None) or getattr(error, "code", None)
    if isinstance(status, int):
        return f"it answered {status}"
    if any("Timeout" in name for name in names):
        return "no answer"
    if names & {"ConnectError", "ConnectionError", "NetworkError", "URLError", "gaierror"}:
        return "no connection"
    return " ".join(str(error).split())[:120] or type(error).__name__


def _mega(size: int) -> str:
    return f"{size / MEGA:.0f}" if size >= 10 * MEGA else f"{size / MEGA:.1f}"
