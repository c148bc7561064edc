"""The folder of labels: going on, refusing, damage."""

import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.data.labels.store import Header, Labels, Writer, read_header, rows_of
from runtime.errors import ArtifactError, DataError, MissingError, UsageError

HEADER = Header(
    class_names=["ant", "bee", "cat"],
    top=3,
    epochs=2,
    batches=3,
    batch=2,
    train_sha256="f" * 64,
    preprocess={"input_size": [3, 4, 4], "mean": [0.5, 0.5, 0.5]},
    settings={"seed": 0, "aa": "", "scale": [0.1, 1.0]},
    teacher={"model": "resnet56", "sha256": "a" * 64},
    teacher_top1_percent=90.0,
    versions={"timm": "1.0"},
)


def rows(number):
    """Of the batch of this number, counted over all epochs."""
    generator = torch.Generator().manual_seed(number)
    z, x = torch.randn(2, 3, generator=generator), torch.rand(2, 3, 4, 4, generator=generator)
    return HEADER.layout.pack(z, x), z, x


def write(folder, header=HEADER, stop=None):
    """Write what is missing, or stop before the batch of a number."""
    with Writer(folder, header) as writer:
        epoch, start = writer.start()
        while epoch < header.epochs:
            for batch in range(start, header.batches):
                number = epoch * header.batches + batch
                if number == stop:
                    return
                writer.append(epoch, rows(number)[0])
            writer.finish(epoch)
            epoch, start = writer.start()


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_rows_come_back_by_epoch_and_batch(tmp_path):
    write(tmp_path / "L")
    labels = Labels(tmp_path / "L")
    for epoch in range(2):
        for batch in range(3):
            _, z, x = rows(3 * epoch + batch)
            assert torch.allclose(labels.logits(epoch, batch), z, atol=2e-3)
            labels.require_replayed(epoch, batch, x)
            assert torch.equal(labels.logits(epoch + 4, batch), labels.logits(epoch, batch))  # seen again


def test_other_pixels_are_not_the_ones_that_were_labeled(tmp_path):
    write(tmp_path / "L")
    labels = Labels(tmp_path / "L")
    _, _, x = rows(1)
    x[1, 0, 0, 0] += 1e-6
    with pytest.raises(DataError, match=r"1 of 2 images of epoch 1, batch 2 .* bit for bit.*timm 1\.0"):
        labels.require_replayed(0, 1, x)
    labels.require_replayed(0, 1, x[:1])


@pytest.mark.parametrize("stop", range(6))
@pytest.mark.parametrize("torn", [0, 1, 13])
def test_an_interrupted_folder_ends_with_the_same_bytes(tmp_path, stop, torn):
    """torn: bytes of the next batch that a killed process had written."""
    write(tmp_path / "whole")
    write(tmp_path / "L", stop=stop)
    part = rows_of(tmp_path / "L", stop // 3).with_suffix(".rows.part")
    with part.open("ab") as file:
        file.write(rows(stop)[0].tobytes()[:torn])
    with pytest.raises(ArtifactError, match=f"epoch {stop // 3 + 1} of 2 is missing"):
        Labels(tmp_path / "L")
    write(tmp_path / "L")
    assert content(tmp_path / "L") == content(tmp_path / "whole")


def test_more_epochs_are_added(tmp_path):
    write(tmp_path / "L", replace(HEADER, epochs=1))
    before = rows_of(tmp_path / "L", 0).read_bytes()
    write(tmp_path / "L")
    write(tmp_path / "whole")
    assert content(tmp_path / "L") == content(tmp_path / "whole")
    assert rows_of(tmp_path / "L", 0).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_sha256": "0" * 64}, "fingerprint of the training images"),
        ({"settings": HEADER.settings | {"seed": 1}}, "--seed: 0, and 1 here"),
        ({"settings": HEADER.settings | {"aa": "rand-m9"}}, "--aa: nothing, and rand-m9 here"),
        ({"settings": HEADER.settings | {"scale": [0.2, 1.0]}}, "--scale: 0.1, 1.0, and 0.2, 1.0 here"),
        ({"preprocess": HEADER.preprocess | {"input_size": [3, 8, 8]}}, "input size: 3, 4, 4, and 3, 8, 8"),
        ({"teacher": HEADER.teacher | {"sha256": "b" * 64}}, "teacher sha256: aaa"),
        ({"class_names": ["ant", "cat", "bee"]}, "classes: ant, bee, cat, and ant, cat, bee here"),
        ({"batch": 4}, "--batch: 2, and 4 here"),
        ({"top": 2}, "--top: 3, and 2 here"),
        ({"pixels": 2}, "version of the augmentation: 1, and 2 here"),
    ],
)
def test_labels_of_something_else_are_refused_with_the_first_difference(tmp_path, change, words):
    write(tmp_path / "L")
    before = content(tmp_path / "L")
    with pytest.raises(UsageError, match="something else") as caught:
        Writer(tmp_path / "L", replace(HEADER, **change))
    assert words in str(caught.value) and content(tmp_path / "L") == before
    assert words in HEADER.difference(replace(HEADER, **change))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no labels"):
        Writer(tmp_path, HEADER)
    with pytest.raises(ArtifactError, match=r"holds no labels\.json"):
        Labels(tmp_path)
    assert content(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("cut", [1, 11, -5])
def test_a_file_of_another_length_is_damaged(tmp_path, cut):
    write(tmp_path / "L")
    file = rows_of(tmp_path / "L", 1)
    file.write_bytes(file.read_bytes()[:-cut] if cut > 0 else file.read_bytes() + b"12345")
    with pytest.raises(ArtifactError, match="damaged: delete it"):
        Labels(tmp_path / "L")


def test_nan_in_a_row_is_damage(tmp_path):
    write(tmp_path / "L")
    file = rows_of(tmp_path / "L", 0)
    changed = np.frombuffer(bytearray(file.read_bytes()), HEADER.layout.dtype).copy()
    changed["log_p"][3, 1] = np.nan
    file.write_bytes(changed.tobytes())
    labels = Labels(tmp_path / "L")
    assert labels.logits(0, 0).isfinite().all()
    with pytest.raises(ArtifactError, match="batch 2 holds NaN"):
        labels.logits(0, 1)


@pytest.mark.parametrize("unknown", [3, 2**16 - 1])
def test_a_class_that_there_is_not_is_damage(tmp_path, unknown):
    header = replace(HEADER, top=2)
    with Writer(tmp_path / "L", header) as writer:
        for epoch in range(2):
            for batch in range(3):
                writer.append(epoch, header.layout.pack(*rows(3 * epoch + batch)[1:]))
            writer.finish(epoch)
    file = rows_of(tmp_path / "L", 0)
    changed = np.frombuffer(bytearray(file.read_bytes()), header.layout.dtype).copy()
    changed["ids"][3, 1] = unknown
    file.write_bytes(changed.tobytes())
    labels = Labels(tmp_path / "L")
    assert labels.logits(0, 0).isfinite().all() and labels.logits(1, 1).isfinite().all()
    with pytest.raises(ArtifactError, match=rf"batch 2 names class {unknown} of 3 .* damaged: delete it"):
        labels.logits(0, 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_said_once_and_as_such(tmp_path):
    """Leaving the writer after the error must not write the same rows again, whose failure would hide it."""
    with pytest.raises(MissingError, match="no space left"), Writer(tmp_path / "L", HEADER) as writer:
        rows_of(tmp_path / "L", 0).with_suffix(".rows.part").symlink_to("/dev/full")
        writer.append(0, rows(0)[0])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_found_full_on_closing_is_said_too(tmp_path, code):
    class Closing:
        def close(self):
            raise OSError(code, "full")

    with pytest.raises(MissingError, match="no space left"), Writer(tmp_path / "L", HEADER) as writer:
        writer.append(0, rows(0)[0])
        writer._file.close()
        writer._file = Closing()
        writer.finish(0)
    assert not rows_of(tmp_path / "L", 0).exists()


HOSTILE = [
    "",
    "[1]",
    "{",
    "[" * 100_000,
    '{"schema": 1}',
    '{"schema": 99}',
    *(
        json.dumps({"schema": 1} | vars(HEADER) | change)
        for change in (
            {"top": 0},
            {"top": 4},
            {"top": "3"},
            {"epochs": -1},
            {"epochs": True},
            {"batch": 1.5},
            {"class_names": 5},
            {"class_names": [1, 2, 3]},
            {"settings": []},
            {"preprocess": "x"},
            {"teacher": None},
            {"teacher_top1_percent": "x"},
            {"more": 1},
        )
    ),
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_header_that_no_writer_wrote_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ArtifactError) as caught:
        read_header(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_header_that_names_no_teacher_is_refused(tmp_path):
    write(tmp_path / "L", replace(HEADER, teacher={"model": 5}))
    with pytest.raises(ArtifactError, match="names no teacher"):
        _ = Labels(tmp_path / "L").origin
    write(tmp_path / "M", replace(HEADER, teacher={"model": "resnet56", "of_the_future": 1}))
    assert Labels(tmp_path / "M").origin.model == "resnet56"


def test_the_fingerprint_changes_with_any_byte(tmp_path):
    write(tmp_path / "L")
    before = Labels(tmp_path / "L").fingerprint()
    assert before == Labels(tmp_path / "L").fingerprint()
    file = rows_of(tmp_path / "L", 1)
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    assert Labels(tmp_path / "L").fingerprint() != before
