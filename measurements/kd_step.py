"""What the trainer costs: one distillation step of `distill train` against a hand-written torch loop.

    python measurements/kd_step.py [--batch 128] [--rounds 15]

Same teacher (ResNet-56), student (ResNet-20), KL loss, SGD and batch; both step once per round, in turn, in
one process. Prints the median of each and the median of the ratios, which the noise of a busy machine moves
least.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from distill import models
from distill.data import Batch
from distill.recipe import Recipe
from distill.teacher import Teacher
from distill.training.task import Task
from distill.training.trainer import Trainer
from runtime.env import fingerprint
from runtime.images import ArraySet

WEIGHTS = {"temperature": 4.0, "distill": 0.9, "task": 0.1}


def hand_written(student: torch.nn.Module, teacher, batch: int, learn=None):
    """A plain loop as a tutorial would write it; returns step(images, labels). learn: computes the student's
    logits, where that is not the student alone.
    """
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        student.train()
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            teacher_logits = teacher(images)
        logits = (learn or student)(images)
        t = WEIGHTS["temperature"]
        kl = F.kl_div(
            F.log_softmax(logits / t, 1),
            F.log_softmax(teacher_logits / t, 1),
            log_target=True,
            reduction="sum",
        )
        loss = WEIGHTS["distill"] * t**2 * kl / batch + WEIGHTS["task"] * F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    teacher_net = models.build("resnet56", 10).to(device, memory_format=torch.channels_last).eval()
    student = models.build("resnet20", 10).to(device, memory_format=torch.channels_last)
    pixels = np.zeros((options.batch, 32, 32, 3), np.uint8)
    images = ArraySet("zeros", pixels, np.arange(options.batch) % 10, [str(i) for i in range(10)])
    recipe = Recipe(
        data="zeros",
        student="resnet20",
        batch=options.batch,
        opt="sgd",
        lr=0.01,
        weight_decay=5e-4,
        workers=0,
        kd_temperature=WEIGHTS["temperature"],
        distill_loss_weight=WEIGHTS["distill"],
        task_loss_weight=WEIGHTS["task"],
        epochs=1000,
    )
    spec = models.preprocess_of("resnet20")
    with tempfile.TemporaryDirectory() as folder:
        teacher = Teacher(teacher_net, spec, spec, device)
        trainer = Trainer(Task("student", recipe, Path(folder), images, images, spec, device, teacher))
        ours = trainer.step
        theirs = hand_written(student, teacher_net, options.batch)
        x = torch.randn(options.batch, 3, 32, 32)
        y = torch.arange(options.batch) % 10
        times: dict[str, list[float]] = {"large2small": [], "hand-written": []}
        for round_ in range(options.rounds + 2):
            steps = {
                "large2small": lambda: (ours([Batch(x, y, [])]), trainer.flush()),
                "hand-written": lambda: theirs(
                    x.to(device, non_blocking=True), y.to(device, non_blocking=True)
                ),
            }
            for name in sorted(steps, reverse=bool(round_ % 2)):
                began = time.perf_counter()
                steps[name]()
                if round_ >= 2:  # two rounds of warm-up
                    times[name].append(time.perf_counter() - began)
    for name, values in times.items():
        print(f"{name:13s}  median {statistics.median(values) * 1e3:8.1f} ms per step")
    ratios = [a / b for a, b in zip(times["large2small"], times["hand-written"], strict=True)]
    print(
        f"ratio  median {statistics.median(ratios):.4f}  (batch {options.batch}, n={options.rounds} rounds,"
        f" {device.type}, {torch.get_num_threads()} threads, torch {torch.__version__},"
        f" {fingerprint()['cpu']})"
    )


if __name__ == "__main__":
    main()
