"""Train the student of the tests of `export`: ResNet-20 on scikit-learn's digits, in about half a
minute on one core.

    python tests/export/student/train.py FILE.npz

In:  the training digits.
Out: FILE.npz, the network's state dict. `weights.npz` beside this script was made so; it is kept because int8
     and fp16 agree with fp32 on nearly all images only for a student that is right on nearly all, and because
     the same network then meets every version of torch and of the engines.
Elsewhere: reading it (tests/export/conftest.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from distill import models
from runtime.images import open_images
from runtime.preprocess import Preprocess

PREPROCESS = Preprocess(
    input_size=(3, 32, 32), crop_pct=1.0, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
EPOCHS, BATCH, PEAK = 3, 32, 3e-3


def train() -> torch.nn.Module:
    """A network that is right on about 98 % of the 445 validation digits."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = models.build("resnet20", 10)
    digits = open_images("digits", "train")
    x = torch.from_numpy(PREPROCESS.batch(digits.image(i) for i in range(len(digits))))
    y = torch.from_numpy(digits.labels)
    steps = len(x) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), PEAK, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=EPOCHS * steps, pct_start=0.2)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x)).split(BATCH)[:steps]:
            loss = F.cross_entropy(network(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help=".npz file to write")
    options = parser.parse_args()
    np.savez(options.file, **{key: value.numpy() for key, value in train().state_dict().items()})
