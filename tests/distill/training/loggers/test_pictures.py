"""Several images as one picture."""

import numpy as np
import torch
from PIL import Image

from distill.training.loggers import pictures
from runtime.preprocess import Preprocess


def test_a_batch_is_shown_in_the_colors_of_its_images():
    preprocess = Preprocess((3, 2, 2), mean=(0.5, 0.4, 0.3), std=(0.2, 0.1, 0.3))
    color = np.array([200, 100, 50])
    normalized = (color / 255 - preprocess.mean) / preprocess.std
    batch = torch.tensor(normalized, dtype=torch.float32)[None, :, None, None].expand(3, 3, 2, 2)
    shown = pictures.of_batch(batch, preprocess)
    assert len(shown) == 3 and shown[0].getpixel((1, 1)) == (200, 100, 50)


def test_at_most_so_many_are_shown_in_rows():
    images = [Image.new("RGB", (30, 10), "red")] * 40
    whole = pictures.sheet(images)
    rows, cell = pictures.MOST // pictures.COLUMNS, pictures.SIDE + pictures.GAP
    assert whole.shape == (rows * cell, pictures.COLUMNS * cell, 3) and whole.dtype == np.uint8
    middle = pictures.SIDE // 2
    assert tuple(whole[middle, middle]) == (255, 0, 0) and tuple(whole[2, middle]) == (255, 255, 255)


def test_words_stay_below_their_image():
    images = [Image.new("RGB", (8, 8), "white")] * 2
    whole = pictures.sheet(images, ["ω" + "w" * 500, ""])
    assert (whole[: pictures.SIDE] == 255).all()  # nothing is written on the image
    assert (whole[pictures.SIDE :, : pictures.SIDE] < 128).any()
    assert (whole[:, pictures.SIDE + pictures.GAP :] == 255).all()  # nor below the next one
