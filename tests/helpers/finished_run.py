"""A run folder as a training leaves it, without the training.

In:  a folder of photographs.
Out: best.pth, metrics.jsonl, args.yaml, result.json of a network with random weights.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distill import checkpoint as checkpoints
from distill import models
from runtime.images import open_images
from runtime.preprocess import Preprocess

COLORS = {"blue": (30, 30, 220), "green": (30, 220, 30), "red": (220, 30, 30)}


def write_photos(folder: Path, names=tuple(COLORS), count: int = 5) -> Path:
    """folder/val/CLASS/i.png, noise around a color."""
    generator = np.random.default_rng(0)
    for name, color in zip(names, COLORS.values(), strict=False):
        place = folder / "val" / name
        place.mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(generator.normal(color, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{i}.png")
    return folder


def write_run(folder: Path, data: Path, result: dict | None = None, epochs: int = 3, seed: int = 0) -> Path:
    """A run of `data` with a control; result: entries of result.json."""
    images = open_images(str(data), "val")
    torch.manual_seed(seed)
    network = models.build("resnet20", len(images.class_names), {"width": 0.25})
    checkpoints.save(
        checkpoints.Checkpoint(
            model="resnet20",
            model_args={"width": 0.25},
            state_dict=network.state_dict(),
            preprocess=Preprocess((3, 16, 16), crop_pct=1.0),
            class_names=images.class_names,
            metrics={"top1": 50.0},
            lineage={
                "data": {
                    "val_spec": str(data),
                    "val_images": len(images),
                    "val_sha256": images.fingerprint(),
                },
                "versions": {"torch": "9.9"},
            },
        ),
        folder / "best.pth",
    )
    lines = [
        {"epoch": n, "val_top1_percent": 40.0 + n, "val_loss_nats": 1 / n, "train_task_loss": 1.5 / n}
        for n in range(1, epochs + 1)
    ]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"erf": []}])
    (folder / "control").mkdir()
    (folder / "metrics.jsonl").write_text(text)
    (folder / "control" / "metrics.jsonl").write_text(text)
    (folder / "args.yaml").write_text("student: resnet20\nepochs: 3\n")
    values = {"best": {"top1_percent": 43.0, "epoch": 3, "images": len(images)}} | (result or {})
    (folder / "result.json").write_text(json.dumps(values))
    return folder
