"""A .pth that was changed since it was written ends every command with exit code 4 and one line.

torch itself does not look at the checksums in its files: 512 changed bytes in a weight are used as they are.
"""

from __future__ import annotations

import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_training import TINY

from distill import checkpoint as checkpoints
from distill import models
from distill.checkpoint import Checkpoint
from runtime.cli.front_door import main
from runtime.errors import ArtifactError
from runtime.preprocess import Preprocess

pytestmark = pytest.mark.usefixtures("without_report")

CLASSES = ["ant", "bee", "cat", "dog"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Working folder: set/, good.pth, and damaged.pth with 512 bytes of its largest weight flipped."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    dice = np.random.default_rng(0)
    for split in ("train", "val"):
        x = dice.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
        np.savez(tmp_path / "set" / f"{split}.npz", x=x, y=np.arange(8) % 4, class_names=np.array(CLASSES))
    arguments = {"width": 0.25}
    weights = models.build("resnet20", 4, arguments).state_dict()
    spec = f"npz:{tmp_path / 'set'}"
    checkpoints.save(
        Checkpoint(
            "resnet20",
            arguments,
            weights,
            Preprocess((3, 16, 16), "bilinear", 1.0),
            CLASSES,
            lineage={"data": {"train_spec": spec, "val_spec": spec}, "recipe": {"student": "resnet20"}},
        ),
        tmp_path / "good.pth",
    )
    largest = max(weights.values(), key=torch.Tensor.numel).numpy().tobytes()
    content = bytearray((tmp_path / "good.pth").read_bytes())
    start = content.index(largest) + len(largest) // 2 - 256
    content[start : start + 512] = bytes(byte ^ 0x55 for byte in content[start : start + 512])
    (tmp_path / "damaged.pth").write_bytes(content)
    return tmp_path


TRAIN = ["train", "--data", "npz:set", "--student", "resnet20", *TINY]


def test_torch_reads_the_damaged_file(place):
    """Else the commands below would be refused by torch."""
    good, damaged = (torch.load(f"{name}.pth", weights_only=True) for name in ("good", "damaged"))
    differ = [
        key for key in good["state_dict"] if not good["state_dict"][key].equal(damaged["state_dict"][key])
    ]
    assert len(differ) == 1


COMMANDS = {
    "eval": ["eval", "{}"],
    "erf": ["erf", "{}", "--output", "erf", "--num-images", "1"],
    "inspect": ["inspect", "{}"],
    "export onnx": ["export", "onnx", "{}", "--output", "x.onnx"],
    "parity": ["parity", "{}", "x.onnx"],
    "--teacher-ckpt": [*TRAIN, "--teacher-ckpt", "{}"],
    "--student-ckpt": [*TRAIN, "--teacher", "none", "--student-ckpt", "{}"],
    "train --qat --resume": ["train", "--qat", "--resume", "{}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_it(command, place, capsys):
    assert main([word.format("damaged.pth") for word in COMMANDS[command]]) == 4
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "damaged.pth: part " in lines[0] and "its CRC-32 does not fit" in lines[0]
    assert not Path("x.onnx").exists()


def test_a_resumed_run_refuses_its_last_pth(place, capsys):
    assert main([*TRAIN, "--teacher", "none", "--output", "run", "--epochs", "2"]) == 0
    largest = max(
        checkpoints.load("run/last.pth").state_dict.values(), key=torch.Tensor.numel
    ).numpy().tobytes()  # fmt: skip
    content = bytearray(Path("run/last.pth").read_bytes())
    start = content.index(largest)
    content[start : start + 512] = bytes(byte ^ 0x55 for byte in content[start : start + 512])
    Path("run/last.pth").write_bytes(content)
    values = yaml.safe_load(Path("run/args.yaml").read_text())
    assert values["epochs"] == 2
    assert main(["train", "--resume", "run"]) == 4
    assert "run/last.pth: part " in capsys.readouterr().err


def test_a_good_file_is_read_by_the_same_commands(place):
    assert main(["eval", "good.pth"]) == 0
    assert main(["inspect", "good.pth"]) == 0


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_file_that_was_packed_again_is_read(packing, place):
    with zipfile.ZipFile("good.pth") as old, zipfile.ZipFile("packed.pth", "w", packing) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    assert checkpoints.load("packed.pth").model == "resnet20"


def test_what_unpacks_to_gigabytes_is_not_unpacked(place, capsys, monkeypatch):
    with zipfile.ZipFile("good.pth") as old, zipfile.ZipFile("bomb.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
        with new.open("good/data/9999", "w", force_zip64=True) as part:
            for _ in range(300):
                part.write(bytes(2**20))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpacked"))
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: pytest.fail("unpacked"))
    for command in ("eval", "inspect", "export onnx"):
        assert main([word.format("bomb.pth") for word in COMMANDS[command]]) == 4
        assert "bytes that unpack to 31" in capsys.readouterr().err


def test_files_without_checksums_are_read(place):
    """Old files of torch are not zip archives; and torch can be told to leave checksums out."""
    values = torch.load("good.pth", weights_only=True)
    torch.save(values, "legacy.pth", _use_new_zipfile_serialization=False)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(values, "without.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    for name in ("legacy.pth", "without.pth"):
        assert checkpoints.checksums(Path(name)) is None
        assert checkpoints.load(name).class_names == CLASSES


def test_every_flipped_byte_of_a_weight_is_found(place):
    good = checkpoints.load("good.pth").state_dict
    largest = max(good.values(), key=torch.Tensor.numel).numpy().tobytes()
    content = Path("good.pth").read_bytes()
    for place_in_weight in range(0, len(largest), len(largest) // 40):
        changed = bytearray(content)
        changed[content.index(largest) + place_in_weight] ^= 1
        Path("flipped.pth").write_bytes(changed)
        with pytest.raises(ArtifactError, match="its CRC-32 does not fit"):
            checkpoints.load("flipped.pth")


def contents(path: Path) -> list[range]:
    """Where the content of each part of a zip that is not packed is: behind a local header of 30 bytes, a
    name and padding. What else is in the file says where parts are, or is padding.
    """
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    found = []
    for part in parts:
        name, extra = struct.unpack_from("<HH", raw, part.header_offset + 26)
        start = part.header_offset + 30 + name + extra
        found.append(range(start, start + part.file_size))
    return found


def test_a_part_that_is_marked_as_a_folder_is_refused(place):
    """torch would read nothing of it, and use what was in memory as weights."""
    raw = bytearray(Path("good.pth").read_bytes())
    with zipfile.ZipFile("good.pth") as parts:
        place_of_list, names = parts.start_dir, [part.filename for part in parts.infolist()]
    name = next(name for name in names if "/data/" in name).encode()
    attributes = raw.index(name, place_of_list) - 8  # 4 bytes, then 4 of the part's place, then its name
    raw[attributes] ^= 0x10
    Path("folder.pth").write_bytes(raw)
    with pytest.raises(ArtifactError, match="is marked as a folder"):
        checkpoints.load("folder.pth")


def test_two_parts_of_one_name_are_refused(place):
    """torch would read one of them in place of the other."""
    raw = bytearray(Path("good.pth").read_bytes())
    with zipfile.ZipFile("good.pth") as parts:
        start, names = parts.start_dir, [part.filename.encode() for part in parts.infolist()]
    one, other = [name for name in names if b"/data/" in name and name[-2:-1] == b"/"][:2]
    for begin in (raw.index(one), raw.index(one, start)):  # before the part itself, and in the list
        raw[begin : begin + len(one)] = other
    Path("two.pth").write_bytes(raw)
    with pytest.raises(ArtifactError, match="two parts are called"):
        checkpoints.load("two.pth")


def test_a_flipped_bit_is_refused_or_in_bytes_that_say_nothing(place):
    """Padding, dates and the like are in no checksum; nothing of the content depends on them."""
    raw, inside = Path("good.pth").read_bytes(), contents(Path("good.pth"))
    good = checkpoints.load("good.pth")
    dice = random.Random(0)
    outside = sorted(set(range(len(raw))) - {place for part in inside for place in part})
    passed = 0
    for byte in dice.sample(range(len(raw)), 40) + dice.sample(outside, 80):
        changed = bytearray(raw)
        changed[byte] ^= 1 << dice.randrange(8)
        Path("flipped.pth").write_bytes(changed)
        try:
            found = checkpoints.load("flipped.pth")
        except ArtifactError:
            continue
        passed += 1
        assert not any(byte in part for part in inside)
        assert all(found.state_dict[key].equal(tensor) for key, tensor in good.state_dict.items())
        assert (found.model, found.model_args, found.class_names, found.preprocess, found.lineage) == (
            *(good.model, good.model_args, good.class_names, good.preprocess, good.lineage),
        )
    assert 0 < passed < 80
