"""Batches: the same for any number of workers, continued where they stopped, on runtime's pixels; broken
files are named.
"""

import io
import json
import pickle
import random
import tarfile

import numpy as np
import pytest
import torch
from augmented import augmented
from PIL import Image

from distill.data import TrainLoader, eval_loader, open_data, seeds
from distill.data.augment import training_transform
from distill.data.loaders import TrainSet
from runtime.errors import DataError, UsageError
from runtime.images import ArraySet, open_images
from runtime.preprocess import Preprocess

CPU = torch.device("cpu")
SPEC = Preprocess((3, 16, 16), "bilinear", 1.0)
HARD = {"aa": "rand-m9-mstd0.5-inc1", "reprob": 0.5, "scale": (0.3, 1.0), "train_interpolation": "random"}
"""Augmentation that draws from all three random generators."""


def loader(images, recipe, **settings):
    return TrainLoader(images, recipe(**HARD | settings), SPEC, CPU)


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) and x.bad == y.bad
        for x, y in zip(a, b, strict=True)
    )


def test_no_worker_and_two_workers_give_the_same_batches(images, recipe):
    alone, helped = (loader(images(24), recipe, workers=workers) for workers in (0, 2))
    for epoch in range(2):
        assert same(list(alone.epoch(epoch)), list(helped.epoch(epoch)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_skips_exactly_what_was_seen(images, recipe, workers):
    whole = list(loader(images(32), recipe).epoch(1))
    assert len(whole) == 4
    assert same(whole[3:], list(loader(images(32), recipe, workers=workers).epoch(1, start=3)))
    assert list(loader(images(32), recipe).epoch(1, start=4)) == []


def test_an_epoch_can_be_read_again_and_out_of_order(images, recipe):
    mine = loader(images(16), recipe)
    first, second = list(mine.epoch(0)), list(mine.epoch(1))
    assert same(first, list(mine.epoch(0)))
    assert not same(first, second)


def test_every_image_comes_once_an_epoch(images, recipe):
    import dataclasses

    recipe_ = dataclasses.replace(recipe(), scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
    mine = images(32)
    seen = torch.cat([batch.images for batch in TrainLoader(mine, recipe_, SPEC, CPU).epoch(0)])
    expected = torch.from_numpy(SPEC.batch(list(mine.x)))
    nearest = torch.cdist(seen.flatten(1), expected.flatten(1)).argmin(1)
    assert sorted(nearest.tolist()) == list(range(32))
    assert torch.allclose(seen, expected[nearest], atol=1e-5)


def test_labels_stay_with_their_images(images, recipe):
    for batch in TrainLoader(
        images(32), recipe(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0), SPEC, CPU
    ).epoch(0):
        stripes = (
            batch.images.mean((1, 2)).view(len(batch.labels), 4, 4).mean(2)
        )  # the bright stripe's place is the class
        assert stripes.argmax(1).tolist() == batch.labels.tolist()


def test_epochs_and_seeds_differ_in_order_and_augmentation(images, recipe):
    first = next(loader(images(32), recipe).epoch(0))
    for other in (
        next(loader(images(32), recipe).epoch(1)),
        next(loader(images(32), recipe, seed=1).epoch(0)),
    ):
        assert not torch.equal(first.labels, other.labels)
    assert (
        len({seeds.hash_seed(s, e, i) for s in range(5) for e in range(5) for i in range(-1, 20)})
        == 5 * 5 * 21
    )
    same_image = images(1)
    once, twice = (
        TrainSet(same_image, training_transform(recipe(**HARD), SPEC), 0, False)[(e, 0)][0] for e in (0, 1)
    )
    assert not torch.equal(once.pixels, twice.pixels)


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_draws_nothing_from_the_training_s_generators(images, recipe, workers):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    list(loader(images(16), recipe, workers=workers).epoch(0))
    list(eval_loader(images(16), SPEC, 8, workers, CPU))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_evaluation_reads_the_pixels_of_runtime_in_order(tree):
    images = open_images(str(tree(per_class=5, size=21)), "val")
    spec = Preprocess((3, 16, 16), "bicubic", 0.9)
    batches = list(eval_loader(images, spec, 4, 0, CPU))
    assert [len(batch.labels) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([b.images for b in batches]), torch.from_numpy(spec.batch(images.files)))
    assert torch.cat([b.labels for b in batches]).tolist() == images.labels.tolist()


def test_crop_padding_shifts_within_the_padding(images, recipe):
    mine = images(8)
    plain = torch.from_numpy(SPEC(mine.image(0)))
    padded = torch.nn.functional.pad(
        plain - torch.from_numpy(SPEC(np.zeros((16, 16, 3), np.uint8))), (3, 3, 3, 3)
    )
    windows = [padded[:, y : y + 16, x : x + 16] for y in range(7) for x in range(7)]
    black = torch.from_numpy(SPEC(np.zeros((16, 16, 3), np.uint8)))
    places = set()
    for number in range(200):
        found = augmented(mine.image(0), recipe(crop_padding=3, hflip=0.0), SPEC, (0, 0, number)) - black
        distances = [float((found - window).abs().max()) for window in windows]
        assert min(distances) < 1e-5
        places.add(distances.index(min(distances)))
    assert len(places) > 40  # of 49


# broken images


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named(broken, recipe, workers):
    root, file = broken
    batches = list(loader(open_data(str(root), "train"), recipe, workers=workers).epoch(0))
    bad = [name for batch in batches for name in batch.bad]
    assert len(bad) == 1
    assert bad[0].startswith(f"{file}: not a readable image")
    assert sum(len(batch.labels) for batch in batches) == 15


def test_a_skipped_image_is_replaced_so_that_the_batch_keeps_its_size(broken, recipe):
    root, _ = broken
    batches = list(loader(open_data(str(root), "train"), recipe, skip_bad_images=True).epoch(0))
    assert [len(batch.labels) for batch in batches] == [8, 8]
    assert [len(batch.bad) for batch in batches].count(1) == 1


def test_a_skipped_image_changes_no_other_image_of_its_batch(broken, recipe):
    root, _ = broken
    one = list(loader(open_data(str(root), "train"), recipe, skip_bad_images=True).epoch(0))
    two = list(loader(open_data(str(root), "train"), recipe).epoch(0))
    kept = [
        [any(torch.equal(image, other) for other in a.images) for image in b.images]
        for a, b in zip(one, two, strict=True)
    ]
    assert all(map(all, kept))


class Numbered(ArraySet):
    """Image i is the number i; those of `bad` cannot be read."""

    def __init__(self, count, bad):
        super().__init__("made", np.zeros((count, 1, 1, 3), np.uint8), np.arange(count) % 2, "ab")
        self.bad = bad

    def image(self, index):
        if index in self.bad:
            raise DataError(f"{index}.png: broken")
        return index


def drawn(images, index, epochs=range(60), seed=0):
    """What stands in the place of an image, epoch by epoch."""
    one = TrainSet(images, lambda image, _: image, seed, skip_bad=True)
    return [one[epoch, index] for epoch in epochs]


def test_a_substitute_is_drawn_at_random_by_seed_epoch_and_index_alone():
    images = Numbered(20, {3})
    found = [int(image) for image, _, _ in drawn(images, 3)]
    assert 3 not in found
    assert len(set(found)) > 12  # the next image alone would be one
    assert max(map(found.count, found)) < 15
    assert found[7:9] == [int(image) for image, _, _ in drawn(images, 3, range(7, 9))]
    assert found != [int(image) for image, _, _ in drawn(images, 3, seed=1)]
    assert [label for _, label, _ in drawn(images, 3)] == [number % 2 for number in found]


def test_substitutes_that_are_broken_as_well_are_named_once_each():
    images = Numbered(6, {0, 1, 2, 3, 4})
    for image, _, bad in drawn(images, 2, range(20)):
        assert int(image) == 5
        assert bad[0] == "2.png: broken" and len(bad) == len(set(bad))


def test_a_set_without_any_readable_image_comes_to_an_end(tree, recipe):
    root = tree(per_class=4)
    for file in (root / "train").rglob("*.png"):
        file.write_bytes(b"no image")
    batch = next(loader(open_data(str(root), "train"), recipe, skip_bad_images=True).epoch(0))
    assert len(batch.labels) == 0
    assert len(batch.bad) == 8 * 8  # every image was tried for each of the eight


def test_evaluation_leaves_an_unreadable_image_out_and_names_it(broken):
    root, file = broken
    batches = list(eval_loader(open_data(str(root), "train"), SPEC, 4, 0, CPU))
    assert sum(len(batch.labels) for batch in batches) == 15
    assert [str(file) in name for batch in batches for name in batch.bad] == [True]


# timm's readers


def add_file(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_tar_file_is_the_folder_it_packs(tree, tmp_path):
    root = tree(per_class=4, names=("ant", "bee", "cat"))
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for file in sorted((root / "train").rglob("*.png")):
            archive.add(file, file.relative_to(root / "train"))
    found, folder = open_data(str(tmp_path / "set.tar"), "train"), open_images(str(root), "train")
    assert found.class_names == folder.class_names == ["ant", "bee", "cat"]
    by_name = {folder.item_name(i).split("/")[-1]: i for i in range(len(folder))}
    assert len(found) == 12
    for i in range(12):
        same = by_name[found.item_name(i).split("/")[-1]]
        assert found.labels[i] == folder.labels[same]
        assert found.image(i).tobytes() == folder.image(same).tobytes()


def test_workers_may_share_a_tar_file(made, tmp_path, recipe):
    x, y = made(24, classes=2)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for i in range(24):
            add_file(archive, f"class{y[i]}/{i}.png", png(x[i]))
    alone, helped = (
        loader(open_data(str(tmp_path / "set.tar"), "train"), recipe, workers=workers) for workers in (0, 2)
    )
    for epoch in range(2):
        assert same(list(helped.epoch(epoch)), list(alone.epoch(epoch)))


def test_an_unreadable_image_in_a_tar_file_is_named(made, tmp_path):
    x, y = made(8, classes=2)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for i in range(8):
            content = png(x[i])
            add_file(archive, f"class{y[i]}/{i}.png", content[:50] if i == 5 else content)
    images = open_data(str(tmp_path / "set.tar"), "train")
    bad = []
    for i in range(8):
        try:
            assert np.array_equal(np.asarray(images.image(i)), x[int(images.item_name(i).split("/")[-1][0])])
        except DataError as error:
            bad.append(str(error))
    assert len(bad) == 1
    assert "5.png" in bad[0] and "not a readable image" in bad[0]


def test_torchvisions_folders_are_read(tree):
    root = tree(per_class=3)
    found, folder = open_data(f"torch/image_folder:{root}", "train"), open_images(str(root), "train")
    assert found.class_names == folder.class_names
    assert found.labels.tolist() == folder.labels.tolist()
    assert len(open_data(f"torch/image_folder:{root}", "val")) == 6


def test_torchvisions_cifar_is_read_where_it_lies(tmp_path, made, monkeypatch):
    from torchvision.datasets import CIFAR10

    x, y = made(12, size=32)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    batch = {"data": x[:2].transpose(0, 3, 1, 2).reshape(2, -1), "labels": y[:2].tolist()}
    for number in range(1, 6):
        part = slice(2 * number - 2, 2 * number)
        batch = {"data": x[part].transpose(0, 3, 1, 2).reshape(2, -1), "labels": y[part].tolist()}
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps(batch))
    (folder / "test_batch").write_bytes(
        pickle.dumps({"data": x[10:].transpose(0, 3, 1, 2).reshape(2, -1), "labels": [2, 3]})
    )
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["ant", "bee", "cat", "dog"]}))
    monkeypatch.setattr(
        CIFAR10, "_check_integrity", lambda self: True
    )  # its checksums are those of the real files
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    train, val = (open_data(f"torch/cifar10:{tmp_path}", split) for split in ("train", "val"))
    assert train.class_names == ["ant", "bee", "cat", "dog"]
    assert train.labels.tolist() == y[:10].tolist()
    assert np.array_equal(np.asarray(train.image(7)), x[7])
    assert (len(val), val.labels.tolist()) == (2, [2, 3])
    assert np.array_equal(np.asarray(val.image(1)), x[11])


@pytest.fixture
def shards(tmp_path, made):
    """wds/made:FOLDER with two training shards of 16 images and one validation shard of 8; and the training
    pixels.
    """
    pytest.importorskip("webdataset")
    root = tmp_path / "shards"
    root.mkdir()
    x, y = made(40)
    info = {}
    for name, ranges in (("train", [range(0, 16), range(16, 32)]), ("validation", [range(32, 40)])):
        files = []
        for number, chosen in enumerate(ranges):
            files.append(f"{name}-{number}.tar")
            with tarfile.open(root / files[-1], "w") as archive:
                for i in chosen:
                    add_file(archive, f"{i:05d}.png", png(x[i]))
                    add_file(archive, f"{i:05d}.cls", str(y[i]).encode())
        info[name] = {
            "name": name,
            "filenames": files,
            "shard_lengths": [len(r) for r in ranges],
            "num_samples": sum(map(len, ranges)),
        }
    (root / "_info.json").write_text(json.dumps({"splits": info}))
    return f"wds/made:{root}", x, y


def test_shards_give_a_training_epoch_and_continue_it(shards, recipe):
    spec, _, y = shards
    images = open_data(spec, "train", 4)
    assert len(images) == 32 and images.class_names == ["0", "1", "2", "3"]
    mine = loader(images, recipe, num_classes=4)
    first = list(mine.epoch(0))
    assert [len(batch.labels) for batch in first] == [8] * 4 and len(mine) == 4
    assert sorted(torch.cat([batch.labels for batch in first]).tolist()) == sorted(y[:32].tolist())
    again = loader(open_data(spec, "train", 4), recipe, num_classes=4)
    assert same(list(again.epoch(0, start=2)), first[2:])


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_give_the_same_later_epoch_in_a_new_process(shards, recipe, workers):
    """What a resumed run needs: epoch 2 does not depend on epochs 0 and 1 having been read."""
    spec, _, _ = shards
    through = loader(open_data(spec, "train", 4), recipe, num_classes=4, workers=workers)
    epochs = [list(through.epoch(epoch)) for epoch in range(3)]
    resumed = loader(open_data(spec, "train", 4), recipe, num_classes=4, workers=workers)
    assert same(list(resumed.epoch(2, start=1)), epochs[2][1:])
    orders = [torch.cat([batch.labels for batch in epoch]).tolist() for epoch in epochs]
    assert orders[0] != orders[1] != orders[2]


def test_shards_are_evaluated_whole(shards):
    spec, x, y = shards
    images = open_data(spec, "val", 4)
    batches = list(eval_loader(images, SPEC, 3, 0, CPU))
    assert torch.equal(
        torch.cat([batch.images for batch in batches]), torch.from_numpy(SPEC.batch(list(x[32:])))
    )
    assert torch.cat([batch.labels for batch in batches]).tolist() == y[32:].tolist()


def test_shards_need_the_number_of_classes(shards):
    with pytest.raises(UsageError, match="--num-classes"):
        open_data(shards[0], "train")


# what cannot be used


def test_no_data_is_named():
    with pytest.raises(UsageError, match="--data DIR"):
        open_data("", "train")


@pytest.mark.parametrize(
    "spec", ["{0}/none", "npz:{0}/none.npz", "{0}/none.tar", "torch/image_folder:{0}/none"]
)
def test_a_missing_set_is_named(tmp_path, spec):
    with pytest.raises(DataError, match="none") as caught:
        open_data(spec.format(tmp_path), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "form", ["{0}", "torch/image_folder:{0}", "{0}/empty.tar", "{0}/text.tar", "wds/made:{0}"]
)
def test_an_empty_set_is_named(tmp_path, form):
    (tmp_path / "train").mkdir()
    tarfile.open(tmp_path / "empty.tar", "w").close()
    (tmp_path / "text.tar").write_text("no archive")
    with pytest.raises(DataError, match=str(tmp_path)) as caught:
        open_data(form.format(tmp_path), "train", 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["{0}", "torch/image_folder:{0}"])
def test_one_class_is_refused(tree, form):
    with pytest.raises(DataError, match="two class"):
        open_data(form.format(tree(names=("ant",))), "train")


def test_one_class_in_a_tar_file_is_refused(made, tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for i, pixels in enumerate(made(4)[0]):
            add_file(archive, f"ant/{i}.png", png(pixels))
    with pytest.raises(DataError, match="1 classes"):
        open_data(str(tmp_path / "set.tar"), "train")


def test_a_name_torchvision_does_not_have_is_named():
    with pytest.raises(DataError, match="torch/cifar11"):
        open_data("torch/cifar11:x", "train")


def test_a_batch_larger_than_the_data_is_refused(images, recipe):
    with pytest.raises(UsageError, match=r"16 training images are fewer than one step of 8 x 3"):
        loader(images(16), recipe, grad_accum=3)


def test_a_set_of_torchvision_that_is_not_there_names_the_line_that_fetches_it(tmp_path):
    with pytest.raises(DataError, match=r"from torchvision\.datasets import CIFAR100; .*download=True"):
        open_data(f"torch/cifar100:{tmp_path}", "train")


def test_there_are_no_more_workers_than_batches(images):
    """Each is a process, and one without a batch only costs; none starts before the first batch."""
    assert eval_loader(images(16), SPEC, 8, 7, CPU).loader.num_workers == 2
