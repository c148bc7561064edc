"""Random crops of random size and shape, on uint8 pixels.

In:  a PIL RGB image.
Out: a PIL RGB image of the input's size.
Elsewhere: what follows the crop (distill.data.augment).
"""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms.v2 import functional


class ResizedCrop(RandomResizedCropAndInterpolation):
    """timm's random crop, resized on uint8 by torch, which is faster than Pillow at it. The two differ by a
    level of 255 here and there.
    """

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left, height, width = self.get_params(image, self.scale, self.ratio)
        filters = self.interpolation
        chosen = random.choice(filters) if isinstance(filters, (tuple, list)) else filters
        crop = np.array(image.crop((left, top, left + width, top + height)))
        pixels = torch.from_numpy(crop).permute(2, 0, 1)
        found = functional.resize(pixels, list(self.size), chosen, antialias=True)
        return Image.fromarray(found.permute(1, 2, 0).contiguous().numpy())
