"""Unequal classes: what a balanced epoch draws, counted; and class weights against numbers worked out by hand
and scikit-learn's.
"""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from distill.data import TrainLoader, balance
from distill.data.sets import StreamSet
from runtime.errors import UsageError
from runtime.images import ArraySet
from runtime.images.sets import Subset
from runtime.preprocess import Preprocess

CPU = torch.device("cpu")
SPEC = Preprocess((3, 16, 16), "bilinear", 1.0)
PLAIN = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0, "sampler": "balanced"}


NAMES = ("ant", "bee", "cat")


def lopsided(counts=(20, 5, 7), names=NAMES):
    """Images whose pixels say which one they are."""
    labels = np.repeat(np.arange(len(counts)), counts)
    pixels = np.zeros((len(labels), 16, 16, 3), np.uint8)
    pixels[:] = np.arange(len(labels))[:, None, None, None] * 7
    return ArraySet("lopsided", pixels, labels, names)


def drawn(loader, epoch, start=0):
    batches = list(loader.epoch(epoch, start))
    return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches]).tolist()


def order(labels, seed=0):
    return balance.BalancedDraw(np.array(labels))(torch.Generator().manual_seed(seed))


def test_every_class_comes_equally_often_and_an_image_again_only_after_all_others_of_its_class():
    labels = np.repeat([0, 2, 5], [20, 5, 7])  # classes 1, 3 and 4 have no image
    seen = Counter()
    for seed in range(40):
        numbers = order(labels, seed)
        assert len(numbers) == 32 and len(set(numbers)) == 32
        images = Counter(number % 32 for number in numbers)
        classes = Counter(labels[number % 32] for number in numbers)
        assert sorted(classes.values()) == [10, 11, 11]
        seen.update(images)
        for each in (0, 2, 5):
            times = [images[i] for i in np.flatnonzero(labels == each)]
            assert max(times) - min(times) <= 1
    shares = [sum(seen[i] for i in np.flatnonzero(labels == each)) / (40 * 32) for each in (0, 2, 5)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.01)  # the odd image goes to each class alike
    assert all(seen.values()) and len(seen) == 32


def test_equal_classes_come_once_each():
    assert sorted(order(np.arange(24) % 4)) == list(range(24))


def test_another_epoch_and_another_seed_draw_other_images(recipe):
    mine = TrainLoader(lopsided(), recipe(**PLAIN), SPEC, CPU)
    other = TrainLoader(lopsided(), recipe(**PLAIN, seed=1), SPEC, CPU)
    first = drawn(mine, 0)[0]
    assert not torch.equal(first, drawn(mine, 1)[0]) and not torch.equal(first, drawn(other, 0)[0])
    assert torch.equal(first, drawn(mine, 0)[0])


def test_workers_and_a_resumed_epoch_give_the_same_batches(recipe):
    settings = {"sampler": "balanced", "aa": "rand-m9-mstd0.5-inc1", "reprob": 0.5}
    alone, helped = (TrainLoader(lopsided(), recipe(**settings, workers=n), SPEC, CPU) for n in (0, 2))
    whole, labels = drawn(alone, 3)
    assert torch.equal(whole, drawn(helped, 3)[0])
    rest, again = drawn(helped, 3, start=2)
    assert torch.equal(rest, whole[16:]) and again == labels[16:]


def test_labels_stay_with_their_images_of_a_subset_too(recipe):
    whole = lopsided()
    part = Subset(whole, np.arange(2, 32, 2))
    for images in (whole, part):
        pixels, labels = drawn(TrainLoader(images, recipe(**PLAIN), SPEC, CPU), 0)
        expected = torch.from_numpy(SPEC.batch([images.image(i) for i in range(len(images))]))
        nearest = torch.cdist(pixels.flatten(1), expected.flatten(1)).argmin(1)
        assert labels == images.labels[nearest].tolist()


def test_an_image_that_comes_again_is_augmented_in_another_way(recipe):
    images = ArraySet(
        "two", np.random.default_rng(0).integers(0, 255, (9, 16, 16, 3), np.uint8), [0] * 8 + [1], ["a", "b"]
    )
    mine = TrainLoader(images, recipe(**PLAIN | {"scale": (0.2, 0.9), "batch": 9}), SPEC, CPU)
    pixels, labels = drawn(mine, 0)
    rare = pixels[torch.tensor(labels) == 1]
    assert len(rare) in (4, 5)
    assert len({tuple(image.flatten().tolist()) for image in rare}) == len(rare)


@pytest.mark.parametrize("workers", [0, 2])
def test_another_image_of_its_class_stands_in_for_an_unreadable_one(tree, recipe, workers):
    from runtime.images import open_images

    root = tree(per_class=12)
    rare = sorted((root / "train" / "bee").iterdir())
    for file in rare[3:]:
        file.unlink()
    rare[1].write_bytes(b"no image")
    images = open_images(str(root), "train")
    mine = TrainLoader(images, recipe(**PLAIN, batch=5, skip_bad_images=True, workers=workers), SPEC, CPU)
    for epoch in range(3):
        batches = list(mine.epoch(epoch))
        labels = torch.cat([batch.labels for batch in batches]).tolist()
        assert sorted(Counter(labels).values()) == [7, 8]
        assert {name.split(":")[0] for batch in batches for name in batch.bad} == {str(rare[1])}


def test_uniform_is_what_it_was(recipe, images):
    """The order of every run so far: a permutation seeded by seed and epoch."""
    from distill.data.seeds import hash_seed

    mine = TrainLoader(images(32), recipe(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0), SPEC, CPU)
    expected = torch.randperm(32, generator=torch.Generator().manual_seed(hash_seed(0, 2, -1)))
    assert drawn(mine, 2)[1] == images(32).labels[expected].tolist()


class Stream(StreamSet):
    def __init__(self):
        self.size = 32
        super(StreamSet, self).__init__("wds/made:x", ["0", "1"], np.zeros(0, np.int64))


def test_streams_are_refused_by_name(recipe):
    with pytest.raises(UsageError, match=r"--sampler balanced: wds/made:x is a stream"):
        TrainLoader(Stream(), recipe(sampler="balanced"), SPEC, CPU)
    with pytest.raises(UsageError, match=r"--class-weights: wds/made:x is a stream"):
        balance.class_weights(("balanced",), Stream())


# class weights


def test_balanced_weights_are_scikit_learns():
    images = lopsided()
    found = balance.class_weights(("balanced",), images)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=images.labels)
    assert found == pytest.approx(expected)
    assert found[images.labels].mean() == pytest.approx(1)


def test_balanced_weights_are_those_of_the_classes_that_have_images():
    images = lopsided((20, 0, 7, 0, 5), "abcde")
    found = balance.class_weights(("balanced",), images)
    present = compute_class_weight("balanced", classes=np.array([0, 2, 4]), y=images.labels)
    assert found == pytest.approx([present[0], 0, present[1], 0, present[2]])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("2", "1", "1"), [64 / 52, 32 / 52, 32 / 52]),  # mean (2 * 20 + 5 + 7) / 32
        (("bee=4",), [32 / 47, 128 / 47, 32 / 47]),  # mean (20 + 4 * 5 + 7) / 32
        (("cat=0", "ant=3"), [96 / 65, 32 / 65, 0]),
        (("1e1", "10", "10.0"), [1, 1, 1]),
        (("1e308", "1e308", "1e308"), [1, 1, 1]),
    ],
)
def test_given_weights_are_scaled_to_a_mean_of_1(words, expected):
    assert balance.class_weights(words, lopsided()) == pytest.approx(expected)


@pytest.mark.parametrize("words", [(), ("none",)])
def test_no_weights(words):
    assert balance.class_weights(balance.settled(words, NAMES), lopsided()) is None


@pytest.mark.parametrize(
    "content", ["class,weight\nbee,4\n", "bee,4", '"bee";4\n', "\ufeffbee\t4\n\n", "1\n4\n1\n"]
)
def test_a_file_gives_the_weights(tmp_path, content):
    (tmp_path / "w.csv").write_text(content, encoding="utf-8")
    found = balance.class_weights(balance.settled((str(tmp_path / "w.csv"),), NAMES), lopsided())
    assert found == pytest.approx([32 / 47, 128 / 47, 32 / 47])


def test_a_name_may_hold_an_equals_sign_and_a_comma():
    images = lopsided(names=("a=b", "c, d", "e"))
    assert balance.class_weights(("a=b=2", "c, d=2", "e=2"), images) == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("1", "2"), r"2 of 3 numbers for the classes \(ant, bee, cat\)"),
        (("1", "2", "-3"), "'-3': expected a finite number, 0 or more"),
        (("1", "nan", "2"), "'nan': expected a finite number"),
        (("1", "x", "2"), "'x': expected a finite number"),
        (("be=2",), r"no such class; did you mean bee\?"),
        (("bee=2", "3"), "'3' among CLASS=WEIGHT"),
        (("bee=2", "bee=3"), "'bee' has two weights"),
        (("0", "0", "0"), "0 for every class"),
        (("x" * 5000,), "no such file"),
        (("balance",), "balance: no such file. Expected none, balanced"),
        (("/dev/zero",), "no such file"),
    ],
)
def test_what_does_not_fit_is_one_line(words, message):
    with pytest.raises(UsageError, match=message) as caught:
        balance.class_weights(balance.settled(words, NAMES), lopsided())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("ant,2.O\nbee,1\n", "ant=2.O"),  # the letter O
        ("ant,two\nbee,1\n", "ant=two"),
        ("ant;1,5x\nbee;1\n", "ant;1=5x"),
        ("1.O\n4\n1\n", "1.O"),
        (",2\nbee,1\n", "=2"),
    ],
)
def test_a_typing_error_in_the_first_line_is_not_a_header(tmp_path, content, line):
    (tmp_path / "w.csv").write_text(content)
    with pytest.raises(UsageError, match=rf"w\.csv: a line is '{line}'"):
        balance.settled((str(tmp_path / "w.csv"),), NAMES)


def test_weights_with_decimal_commas_are_not_taken_for_classes(tmp_path):
    """One weight a line, of images whose classes are called 0, 1, 2 and of others."""
    file = tmp_path / "w.csv"
    for content in ("0,5\n1,5\n2,25\n", "weight\n0,5\n1,5\n2,25\n"):
        file.write_text(content)
        with pytest.raises(UsageError, match=r"'0,5', which may be .* Begin with a line `class,weight`"):
            balance.settled((str(file),), ("0", "1", "2"))
        with pytest.raises(UsageError, match=r"'0,5', and the data has no such class.* as 0\.5"):
            balance.settled((str(file),), NAMES)


@pytest.mark.parametrize(
    "content",
    ["class,weight\n0,5\n1,5\n2,25\n", "0;5\n1;5\n2;25\n", "0,5.0\n1,5\n2,25\n", '"0",5\n1,5\n2,25\n'],
)
def test_classes_that_are_numbers_are_said_by_a_header_or_by_the_form_of_a_line(tmp_path, content):
    (tmp_path / "w.csv").write_text(content)
    names = ("0", "1", "2")
    words = balance.settled((str(tmp_path / "w.csv"),), names)
    mean = (5 * 20 + 5 * 5 + 25 * 7) / 32
    assert balance.class_weights(words, lopsided(names=names)) == pytest.approx(
        [5 / mean, 5 / mean, 25 / mean]
    )


@pytest.mark.parametrize("content", [b"", b"bee,four\n", b"a\nb\n", b"\xff\xfe\x00"])
def test_a_file_without_weights_is_one_line(tmp_path, content):
    (tmp_path / "w.csv").write_bytes(content)
    with pytest.raises(UsageError, match=r"w\.csv: .* Expected lines `class,weight`") as caught:
        balance.settled((str(tmp_path / "w.csv"),), NAMES)
    assert "\n" not in str(caught.value)


# in the loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_by_hand(trainer, smoothing):
    """Image by image, a mixed one as two that count by their shares."""
    mine = trainer(
        train=lopsided((20, 5, 7, 8), ("ant", "bee", "cat", "dog")),
        class_weights=("1", "4", "2", "1"),
        smoothing=smoothing,
    )
    mean = (20 + 4 * 5 + 2 * 7 + 8) / 40
    weights = np.array([1, 4, 2, 1]) / mean
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = [0, 1, 2, 3, 1, 0]
    smoothed = np.full((4, 4), smoothing / 4) + np.eye(4) * (1 - smoothing)
    log_p = logits.double().log_softmax(1).numpy()

    def counted(image, label):
        return -weights[label] * sum(smoothed[label][k] * log_p[image][k] for k in range(4))

    by_hand = np.mean([counted(image, label) for image, label in enumerate(labels)])
    assert mine.task_loss(logits, torch.tensor(labels)).item() == pytest.approx(by_hand, rel=1e-5)
    other = labels[::-1]
    mixed = torch.from_numpy(0.3 * smoothed[labels] + 0.7 * smoothed[other]).float()
    by_hand = np.mean([0.3 * counted(n, labels[n]) + 0.7 * counted(n, other[n]) for n in range(6)])
    assert mine.task_loss(logits, mixed).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("label", [0, 1])
def test_the_best_answer_to_one_class_is_its_smoothed_label_however_rare_others_are(trainer, label):
    """The loss is flat at logits whose probabilities are the smoothed label, 0.95 and 0.05, of an image and
    of an image mixed with one of its own class.
    """
    images = lopsided((1000, 40), ("ant", "bee"))
    mine = trainer(train=images, class_weights=("balanced",), smoothing=0.1)
    smoothed = torch.tensor([[0.95, 0.05], [0.05, 0.95]])
    for target in (torch.tensor([label]), smoothed[[label]]):
        logits = smoothed[[label]].log().requires_grad_()
        (gradient,) = torch.autograd.grad(mine.task_loss(logits, target), logits)
        assert gradient.abs().max() < 1e-5


def test_equal_weights_change_nothing(trainer, same_weights):
    runs = [trainer(name, class_weights=words) for name, words in (("a", ()), ("b", ("3", "3", "3", "3")))]
    for run in runs:
        run.fit()
    first, second = (run.model.state_dict() for run in runs)
    assert all(torch.allclose(first[key].float(), second[key].float(), atol=1e-5) for key in first)


def test_a_balanced_weighted_run_resumes_to_the_same_bits(trainer, same_weights):
    from runtime.errors import Interrupted

    images = lopsided((20, 5, 7, 8), ("ant", "bee", "cat", "dog"))
    settings = {"train": images, "sampler": "balanced", "class_weights": ("balanced",), "epochs": 2}
    whole = trainer("whole", **settings)
    whole.fit()
    run, plain = trainer("run", **settings), None
    plain = run.step

    def step(batches):
        plain(batches)
        if run.updates == 7:
            run.stop.received = 2

    run.step = step
    with pytest.raises(Interrupted):
        run.fit()
    again = trainer("run", **settings)
    again.resume(run.task.folder / "last.pth")
    again.fit()
    same_weights(again.model.state_dict(), whole.model.state_dict())


def test_a_recipe_says_weights_in_each_form(recipe):
    from distill.recipe import from_dict

    base = recipe()
    for value, expected in (
        ("balanced", ("balanced",)),
        ([1, 2.5], ("1", "2.5")),
        ({"cat": 2}, ("cat=2",)),
        (None, ("none",)),
        ([], ()),
    ):
        found = from_dict({"class_weights": value}, "r.yaml", base)
        assert found == dataclasses.replace(base, class_weights=expected)
    with pytest.raises(UsageError, match=r"r\.yaml: class_weights is '/etc/passwd'; expected balanced"):
        from_dict({"class_weights": "/etc/passwd"}, "r.yaml", base)
