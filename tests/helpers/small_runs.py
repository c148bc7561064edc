"""Small trainings that several processes can share, and how far two of them are from each other."""

import json
from dataclasses import dataclass
from pathlib import Path

from distill import checkpoint as checkpoints

PLAIN = [
    *("--student", "vit_tiny_patch16_224", "--student-args", "patch_size=8", "embed_dim=24", "depth=1"),
    *("num_heads=3", "--img-size", "16", "--lr", "0.01", "--opt", "sgd", "--eval-batch", "8", "--no-report"),
    *("--device", "cpu", "--grad-accum", "2", "--mixup", "0.4", "--cutmix", "1", "--seed", "3"),
    *("--epochs", "2"),
]
"""Steps of 16 images of a network without batch norm."""
BATCH = 8
"""Images of all processes at once."""
NORMS = ["--student", "test_resnet", "--student-args", "act_layer=silu", "--lr", "0.003"]
"""A network with batch norms instead, and without kinks: where rounding puts a value on the other side
of one, its gradient changes by more than rounding."""


@dataclass(frozen=True)
class Place:
    """A folder with a small data set, and the runs and labels in it."""

    root: Path

    def train(self, name, size, *words, batch=BATCH):
        """The words of a training that goes into the folder NAME."""
        data = ["--data", f"npz:{self.root / 'set'}", *PLAIN, "--batch", str(batch // size)]
        return ["train", *data, *map(str, words), "--output", self.root / name]

    def label(self, teacher, output, size=1):
        """The words that store a teacher's answers for such a training."""
        known = [word for word in PLAIN if word != "--no-report"]
        words = ["label", "--data", f"npz:{self.root / 'set'}", *known, "--batch", str(BATCH // size)]
        return [*words, "--teacher-ckpt", self.root / teacher / "best.pth", "--output", self.root / output]

    def records(self, name) -> list[dict]:
        return [json.loads(line) for line in (self.root / name / "metrics.jsonl").read_text().splitlines()]

    def last(self, name) -> checkpoints.Checkpoint:
        return checkpoints.load(self.root / name / "last.pth")

    def distance(self, one, other) -> float:
        """The largest relative distance of two runs' weights, by tensor."""
        a, b = (self.last(name).state_dict for name in (one, other))
        found = [
            ((a[name].double() - b[name].double()).norm() / a[name].double().norm().clamp_min(1e-3)).item()
            for name in a
            if a[name].is_floating_point()
        ]
        return max(found)
