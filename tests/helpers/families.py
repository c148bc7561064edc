"""Students of every family that are quick to export, with weights and statistics that are not the first ones.

In:  the name of a family.
Out: its network in eval mode, always the same; its graph.
"""

import torch
from exports_once import to_onnx
from stirring import stirred

from distill import models
from export.graph import from_torch

FAMILIES = {  # name: (architecture, arguments, image side)
    "cifar resnet": ("resnet20", {}, 32),
    "slak": (
        "slak_tiny",
        {"dims": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "kernel_sizes": [13, 11, 9, 7], "patch_size": 2},
        64,
    ),
    "replknet": (
        "replknet_31b",
        {"channels": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "kernel_sizes": [13, 11, 9, 7]},
        64,
    ),
    "unireplknet": (
        "unireplknet_a",
        {"dims": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "kernel_sizes": [[3], [13], [13], [13]]},
        64,
    ),
    "resnet": ("resnet18", {}, 64),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [16, 16, 32, 32]}, 64),
    "mobilenetv2": ("mobilenetv2_050", {}, 64),
    "mobilenetv3": ("mobilenetv3_small_050", {}, 64),
    "efficientnet": ("efficientnet_b0", {}, 64),
    "repvgg": ("repvgg_a0", {}, 64),
    "regnet": ("regnetx_002", {}, 64),
    "densenet": ("densenet121", {"block_config": [2, 2, 2, 2], "growth_rate": 16}, 64),
    "inception": ("inception_v3", {}, 96),
}


def network(family):
    """For seven classes."""
    name, arguments, _ = FAMILIES[family]
    torch.manual_seed(0)
    return stirred(models.build(name, 7, arguments))


def graph(family):
    """As export makes it."""
    side = FAMILIES[family][2]
    return to_onnx(from_torch.merge(network(family)), (3, side, side))
