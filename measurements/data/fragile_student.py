"""Make a CIFAR ResNet that loses accuracy in int8 out of one that does not, without changing what it computes
in float.

    python measurements/data/fragile_student.py PUBLISHED MADE [FACTOR]

In:  PUBLISHED, a CIFAR ResNet (resnet20-12fca82f.th of github.com/akamaster/pytorch_resnet_cifar10); FACTOR,
     a power of two.
Out: MADE, the same network with one channel in sixteen FACTOR times as large as before (a plain state dict).

A ReLU passes positive factors on, so a channel may be scaled up where it is made and down where it is read.
Channels of the residual stream keep their factor from the first to the last layer, which is why no
layer-by-layer equalization can take it out: every block reads the stream and adds to it. Powers of two change
no bit of the float result.
"""

import argparse
from pathlib import Path

import torch

EVERY = 16


def outlier_factors(channels: int, factor: float) -> torch.Tensor:
    """(channels,): `factor` for one channel in EVERY, else 1."""
    factors = torch.ones(channels)
    factors[::EVERY] = factor
    return factors


def stretch(state: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    """Scale channels of the stream and inside of the blocks; state is the network's state dict, changed in a
    copy.
    """
    state = {key: value.clone() for key, value in state.items()}
    stream = outlier_factors(len(state["bn1.bias"]), factor)
    _scale_made(state, "bn1", stream)
    for block in sorted({".".join(key.split(".")[:2]) for key in state if key.startswith("layer")}):
        channels = len(state[f"{block}.bn2.bias"])
        state[f"{block}.conv1.weight"] /= stream[None, :, None, None]
        missing = channels - len(stream)  # a block that widens puts new channels, half of them on either side
        stream = torch.cat(
            [outlier_factors(missing // 2, factor), stream, outlier_factors(missing // 2, factor)]
        )
        inner = outlier_factors(len(state[f"{block}.bn1.bias"]), factor)
        _scale_made(state, f"{block}.bn1", inner)
        state[f"{block}.conv2.weight"] /= inner[None, :, None, None]
        _scale_made(state, f"{block}.bn2", stream)
    state["linear.weight"] /= stream[None, :]
    return state


def _scale_made(state: dict[str, torch.Tensor], norm: str, factors: torch.Tensor) -> None:
    """The batch norm puts out each channel `factors` times as large."""
    state[f"{norm}.weight"] *= factors
    state[f"{norm}.bias"] *= factors


def main(published: Path, made: Path, factor: float) -> None:
    state = torch.load(published, map_location="cpu", weights_only=True)["state_dict"]
    torch.save(stretch({key.removeprefix("module."): value for key, value in state.items()}, factor), made)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("published", type=Path, help="file of the published network")
    parser.add_argument("made", type=Path, help="file to write")
    parser.add_argument("factor", type=float, nargs="?", default=32.0, help="power of two (default: 32)")
    options = parser.parse_args()
    main(options.published, options.made, options.factor)
