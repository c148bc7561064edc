"""One image as training sees it."""

import torch

from distill.data.augment import training_transform
from distill.data.batches import Finish, collate_pictures


def augmented(image, recipe, spec, key=(0, 0, 0)):
    """(C, H, W) float32. key: seed, epoch and number of the image."""
    return finished(training_transform(recipe, spec)(image, key), spec)


def finished(picture, spec):
    """(C, H, W) float32 of what a reading process gives."""
    return Finish(spec, torch.device("cpu"))(collate_pictures([(picture, 0, [])])).images[0]
