"""Whole batches: normalized and erased as timm does it to one image, and one ahead of the training."""

import random

import numpy as np
import pytest
import torch
from augmented import finished as finished_image
from PIL import Image
from timm.data import create_transform

from distill.data.augment import Erased, Patch, Picture, training_transform
from distill.data.batches import Batch, Finish, Pixels, collate_pictures, finished
from distill.data.crops import ResizedCrop
from distill.data.seeds import hash_seed, seed_all
from runtime.errors import DataError
from runtime.preprocess import Preprocess

CPU = torch.device("cpu")
SPEC = Preprocess((3, 24, 20), mean=(0.3, 0.4, 0.5), std=(0.2, 0.25, 0.3))


def noise(height=24, width=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_pixels_are_normalized_and_erased_as_timm_does_it(mode):
    *_, last = create_transform(
        SPEC.input_size,
        is_training=True,
        mean=SPEC.mean,
        std=SPEC.std,
        re_prob=1.0,
        re_mode=mode,
        separate=True,
    )
    *_, erase = last.transforms
    image = Image.fromarray(noise())
    for seed in range(20):
        seed_all(seed)
        expected = last(image)
        seed_all(seed)
        picture = Erased(erase)(image)
        assert picture.pixels.dtype == torch.uint8 and len(picture.erased) == 1
        assert torch.equal(finished_image(picture, SPEC), expected)


def test_each_image_of_a_batch_is_erased_where_its_own_patch_is():
    one = torch.arange(3 * 2 * 4, dtype=torch.float32).view(3, 2, 4)
    pictures = [
        Picture(torch.from_numpy(noise(seed=0)), ()),
        Picture(
            torch.from_numpy(noise(seed=1)), (Patch(5, 6, 2, 4, one), Patch(0, 0, 1, 1, torch.ones(3, 1, 1)))
        ),
    ]
    batch = Finish(SPEC, CPU)(collate_pictures([(picture, 7, []) for picture in pictures]))
    plain = [normalized(noise(seed=seed)) for seed in (0, 1)]
    plain[1][:, 5:7, 6:10], plain[1][:, :1, :1] = one, 1
    assert torch.equal(batch.images, torch.stack(plain)) and batch.labels.tolist() == [7, 7]


def normalized(pixels):
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (SPEC.mean, SPEC.std))
    return (torch.from_numpy(pixels).permute(2, 0, 1) / torch.tensor(255.0) - mean) / std


def test_reading_processes_give_bytes(recipe):
    transform = training_transform(recipe(aa="rand-m9", reprob=1.0), SPEC)
    sample = transform(Image.fromarray(noise(60, 50)), (0, 0, 0)), 1, []
    batch = collate_pictures([sample, (None, -1, ["broken.png: no"])])
    assert isinstance(batch, Pixels) and batch.pixels.shape == (1, 24, 20, 3)
    assert (
        batch.pixels.dtype == torch.uint8 and batch.bad == ["broken.png: no"] and batch.labels.tolist() == [1]
    )
    none = collate_pictures([(None, -1, ["broken.png: no"])])
    assert len(Finish(SPEC, CPU)(none).images) == 0


@pytest.mark.parametrize("filters", ["bilinear", "bicubic", "random"])
def test_a_crop_is_that_of_timm_but_for_rounding(filters):
    mine = ResizedCrop((24, 20), (0.1, 1.0), (0.75, 1.33), filters)
    timms = mine.__class__.__mro__[1]((24, 20), (0.1, 1.0), (0.75, 1.33), filters)
    smooth = Image.fromarray(noise(9, 12)).resize((64, 48), Image.Resampling.BICUBIC)
    for seed in range(30):
        random.seed(seed)
        found = mine(smooth)
        random.seed(seed)
        expected = timms(smooth)
        assert found.size == expected.size == (20, 24)
        apart = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
        assert apart.max() <= 2 and apart.mean() < 0.3


# one ahead


class Beside:
    """A side of its own; notes what is begun and joined."""

    def __init__(self):
        self.events = []

    def start(self, work):
        batch = work()
        self.events.append(("begun", batch.bad[0]))
        return batch, batch.bad[0]

    def join(self, batch, mark):
        assert batch.bad[0] == mark
        self.events.append(("joined", mark))
        return batch


def batches(count, error=None):
    for number in range(count):
        yield Batch(torch.zeros(0), torch.zeros(0), [number])
    if error:
        raise error


def test_the_next_batch_is_begun_before_one_is_given():
    side = Beside()
    given = [batch.bad[0] for batch in finished(batches(3), Finish(SPEC, CPU), side)]
    assert given == [0, 1, 2]
    begun = [("begun", number) for number in range(3)]
    joined = [("joined", number) for number in range(3)]
    assert side.events == [*begun[:2], joined[0], begun[2], *joined[1:]]
    assert list(finished(batches(0), Finish(SPEC, CPU), Beside())) == []


def test_an_error_comes_behind_the_batches_before_it():
    given = []
    with pytest.raises(DataError, match="broken"):
        for batch in finished(batches(2, DataError("broken")), Finish(SPEC, CPU), Beside()):
            given.append(batch.bad[0])
    assert given == [0, 1]


def test_what_is_drawn_depends_on_the_key_alone(recipe):
    transform = training_transform(recipe(aa="rand-m9-mstd0.5-inc1", reprob=0.5, color_jitter=0.4), SPEC)
    image = Image.fromarray(noise(60, 50))

    def draw(*key):
        return finished_image(transform(image, key), SPEC)

    first = draw(1, 2, 3)
    seed_all(hash_seed(9, 9, 9))
    assert torch.equal(first, draw(1, 2, 3))
    assert not any(torch.equal(first, draw(*other)) for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)))
