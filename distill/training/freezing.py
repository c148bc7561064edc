"""Parts of a network that training leaves as they are: layers near the input, all but the classifier, norms.

In:  a network with its first weights, and what --freeze and --freeze-norms say.
Out: the same with frozen parameters, the modules that have to stay in evaluation mode, and a line that says
     so.
Elsewhere: which layer is the classifier (distill.models.classifier), the loop (distill.training.trainer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from runtime.errors import UsageError

from ..models import classifier


@dataclass(frozen=True)
class Frozen:
    """What stays as it is."""

    norms: tuple[nn.Module, ...] = ()
    """Batch norms that keep their statistics."""
    note: str = ""
    """A line to show; empty where nothing is frozen."""

    def hold(self) -> None:
        """Put what is frozen back into evaluation mode, after the network was put into training mode."""
        for norm in self.norms:
            norm.eval()


def freeze(network: nn.Module, what: str, norms: bool) -> Frozen:
    """Freeze the part that `what` names: stem, stages:N (stem and the first N stages), all-but-head, or
    nothing.

    norms: batch norms everywhere keep the statistics they have. Raises UsageError where the network does not
    say what its stages are.
    """
    names = _names(network, what) if what else set()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in names)
    kept = [
        module
        for prefix, module in network.named_modules()
        if isinstance(module, _BatchNorm) and (norms or f"{prefix}.weight" in names)
    ]
    lines = [f"{what} ({len(names)} of {len(list(network.parameters()))} tensors)"] if what else []
    lines += [f"statistics of {len(kept)} batch norms"] if kept else []
    return Frozen(tuple(kept), f"frozen: {', '.join(lines)}" if lines else "")


def _names(network: nn.Module, what: str) -> set[str]:
    """Names of the parameters that --freeze means."""
    every = {name for name, _ in network.named_parameters()}
    heads = tuple(f"{layer}." for layer in classifier.layers_of(network))
    if what == "all-but-head":
        return {name for name in every if not name.startswith(heads)}
    matcher: Any = getattr(network, "group_matcher", None)
    if matcher is None:
        raise UsageError(
            f"--freeze {what}: {type(network).__name__} does not say what its stages are. Expected"
            " all-but-head"
        )
    groups = group_parameters(network, matcher(coarse=True))
    last = 0 if what == "stem" else int(what.partition(":")[2])
    if last >= max(groups):
        raise UsageError(f"--freeze {what}: this network has {max(groups) - 1} stages before its head")
    return {name for group, inside in groups.items() if group <= last for name in inside} - {
        name for name in every if name.startswith(heads)
    }
