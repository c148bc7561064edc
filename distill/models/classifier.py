"""The classifier of a network, and what is done where a file's does not fit the data's classes.

In:  a network built for the data's classes, and weights by name that may have another classifier or none.
Out: weights that fit, with the network's own fresh classifier where the file's was left out, and a line that
     says so.
Elsewhere: reading files (distill.checkpoint), other names of the same weights (distill.models.convert).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

NEW = " -> new, "
"""In a note: the classifier knows nothing yet."""
HEADS = ("head", "heads", "fc", "classifier", "head_dist", "last_linear", "aux_logits")
"""What other projects call the part of a network that makes the logits."""


def layers_of(network: nn.Module) -> list[str]:
    """Names of the layers that make the logits, as timm's registry tells them; several in distilled
    transformers.
    """
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    named = config.get("classifier") or ()
    names = [named] if isinstance(named, str) else list(named)
    modules = dict(network.named_modules())
    known = [name for name in names if _has_weights(modules.get(name))]
    if known or not hasattr(network, "get_classifier"):
        return known
    ask: Any = network.get_classifier
    found = ask()
    given = list(found) if isinstance(found, (tuple, list)) else [found]
    return [name for name, module in modules.items() if any(module is each for each in given)]


def replaced(layer: str, before: str, classes: int) -> str:
    """The line that says a classifier is a new one."""
    return f"classifier {layer}: {before}{NEW}{classes} classes"


def fitted(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    file_classes: Sequence[str] | None,
    data_classes: Sequence[str],
) -> tuple[dict[str, Tensor], list[str]]:
    """(weights for `network`, lines to show): the classifier is kept where it is for the data's classes, its
    rows are put into their order, and otherwise it stays as fresh as the network has it.

    file_classes: None where the file does not name them; then a classifier of as many classes is kept.
    """
    weights, own, notes = dict(weights), network.state_dict(), []
    same_names = file_classes is None or set(file_classes) == set(data_classes)
    for layer in layers_of(network):
        keys = [key for key in own if key.startswith(f"{layer}.")]
        fits = all(key in weights and weights[key].shape == own[key].shape for key in keys)
        if fits and same_names:
            if file_classes is None:
                notes.append(
                    f"classifier {layer}: kept; its {len(data_classes)} classes are taken to be in the"
                    " order of the data's"
                )
            elif list(file_classes) != list(data_classes):
                rows = [list(file_classes).index(name) for name in data_classes]
                weights |= {key: weights[key][rows] for key in keys}
                notes.append(f"classifier {layer}: its classes are put into the order of the data's")
            continue
        notes.append(
            replaced(layer, _classes(weights, layer), len(data_classes))
            + ("" if same_names or not fits else " (of other names)")
        )
        weights |= {key: own[key] for key in keys}
        weights = {
            key: value for key, value in weights.items() if key in own or not key.startswith(f"{layer}.")
        }
    return _without_other_heads(weights, own, notes)


def _without_other_heads(
    weights: dict[str, Tensor], own: Mapping[str, Tensor], notes: list[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of a head that the network does not have are left out, but only beside a new classifier."""
    if not any(NEW in note for note in notes):
        return weights, notes
    other = [key for key in weights if key not in own and key.split(".")[0] in HEADS]
    if other:
        notes.append(f"left out: {len(other)} weights of another head (first: {other[0]})")
    return {key: value for key, value in weights.items() if key not in other}, notes


def _classes(weights: Mapping[str, Tensor], layer: str) -> str:
    weight = weights.get(f"{layer}.weight")
    return "not in the file" if weight is None or not weight.ndim else f"{weight.shape[0]} classes"


def _has_weights(module: nn.Module | None) -> bool:
    return module is not None and any(True for _ in module.parameters())
