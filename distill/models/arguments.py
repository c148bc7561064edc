"""Which arguments a network may be built with: its own, and none of those that timm itself reads.

In:  an architecture and arguments by name, which a file may have named.
Out: nothing, or UsageError.
Elsewhere: building a network (distill.models), what names mean (distill.models.names).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import timm
from timm.models import build_model_with_cfg
from torch import nn

from runtime.cli.nearest import nearest
from runtime.errors import UsageError

FROM_TIMM = ("bn_eps", "bn_momentum", "use_naflex")
"""Arguments of networks that timm reads before the network does."""


@contextmanager
def building(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Around the building of a network with these arguments: raises UsageError for one that is not the
    network's own before anything is built, and for whatever the network does not take.
    """
    require_own(name, arguments)
    try:
        yield
    except Exception as error:  # every architecture complains in its own way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        shown = " ".join(f"{dict(arguments)}".split())
        raise UsageError(f"{name} cannot be built with {shown} ({reason})") from error


def require_own(name: str, arguments: Iterable[str]) -> None:
    """Raise UsageError for an argument that is not one of the network's own.

    timm.create_model itself takes more: files to load (checkpoint_path), folders to keep them in (cache_dir),
    where weights come from (pretrained_cfg). Those are never a network's, and a checkpoint could name them.
    """
    known: set[str] = set(FROM_TIMM)
    module = sys.modules[timm.model_entrypoint(name).__module__]
    for each in vars(module).values():
        if isinstance(each, type) and is_dataclass(
            each
        ):  # settings, whose fields timm lets arguments replace
            known |= {field.name for field in fields(each)}
        elif isinstance(each, type) and issubclass(each, nn.Module):
            own = {key for base in each.__mro__[:-1] for key in _parameters(base)}
            known |= own if "num_classes" in own else set()
    known -= _parameters(timm.create_model) | _parameters(build_model_with_cfg)
    for key in arguments:
        if key not in known:
            raise UsageError(
                f"{name} cannot be built with the argument {key!r}: it is not one of that network's own"
                f"{nearest(str(key), known)} Leave it out"
            )


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)
