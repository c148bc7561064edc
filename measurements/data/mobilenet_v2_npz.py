"""Turn the MobileNetV2 weights of a TensorFlow Lite file, stored as int8 and scale, into a checkpoint for
timm's mobilenetv2_100.

    python measurements/data/mobilenet_v2_npz.py SOURCE.npz OUTPUT.pth

In:  SOURCE.npz with NAME.weight_int8 (O, I, h, w), NAME.scale (O,) and NAME.bias (O,) of every layer, in the
     order of the forward pass, batch norm folded in.
Out: OUTPUT.pth, a checkpoint whose batch norms change nothing, with its preprocessing ((x / 127.5) - 1 at
     224 x 224), TensorFlow's padding ("same") and ImageNet's 1,000 class names.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from timm.data import ImageNetInfo

from distill import checkpoint, models
from runtime.preprocess import Preprocess

ARGUMENTS = {"pad_type": "same"}
PREPROCESS = Preprocess(
    input_size=(3, 224, 224),
    interpolation="bilinear",
    crop_pct=0.875,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


def main(source: Path, output: Path) -> None:
    """Fill timm's network layer by layer."""
    network = models.build("mobilenetv2_100", 1000, ARGUMENTS)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with np.load(source) as file, torch.no_grad():
        names = [name.removesuffix(".weight_int8") for name in file.files if name.endswith(".weight_int8")]
        for name, layer, norm in zip(names, [*convolutions, network.classifier], [*norms, None], strict=True):
            steps, scale = file[f"{name}.weight_int8"].astype(np.float32), file[f"{name}.scale"]
            weight = torch.from_numpy(steps * scale.reshape(-1, *[1] * (steps.ndim - 1)))
            layer.weight.copy_(weight.reshape(layer.weight.shape))
            if norm is not None:
                norm.weight.fill_((1 + norm.eps) ** 0.5)  # its running variance is 1
            (layer if norm is None else norm).bias.copy_(torch.from_numpy(file[f"{name}.bias"]))
    info = ImageNetInfo()
    checkpoint.save(
        checkpoint.Checkpoint(
            model="mobilenetv2_100",
            model_args=ARGUMENTS,
            state_dict=network.state_dict(),
            preprocess=PREPROCESS,
            class_names=[info.index_to_label_name(i) for i in range(1000)],
            role="plain",
            lineage={"converted": [f"from {source.name}"]},
        ),
        output,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help=".npz file with the int8 weights")
    parser.add_argument("output", type=Path, help="checkpoint to write")
    options = parser.parse_args()
    main(options.source, options.output)
