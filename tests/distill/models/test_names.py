"""What names mean, as timm has it; and that a config from a hub can name nothing but a network and its
arguments.
"""

import json

import pytest
import timm

from distill import checkpoint as checkpoints
from distill import models
from distill.models import names
from runtime.errors import ArtifactError, MissingError, UsageError

OUT = "--student-ckpt FILE"
KNOWN = {
    "resnet18": "resnet18",
    "resnet18.a1_in1k": "resnet18.a1_in1k",
    "timm/resnet18.a1_in1k": "resnet18.a1_in1k",
    "timm/resnet18": "resnet18",
    "hf-hub:timm/resnet18.a1_in1k": "resnet18.a1_in1k",
    "hf_hub:timm/resnet18.a1_in1k": "resnet18.a1_in1k",
    "HF-HUB:timm/resnet18.a1_in1k": "resnet18.a1_in1k",
    "hf-hub:timm/resnet18.a1_in1k@v1": "hf-hub:timm/resnet18.a1_in1k@v1",  # another state of it
    "hf-hub:timm/resnet18": "hf-hub:timm/resnet18",  # a repository of its own, which need not be a1_in1k
    "hf_hub:me/mine": "hf-hub:me/mine",
    "local-dir:/a/../b": "local-dir:/b",
}


@pytest.mark.parametrize("typed", KNOWN)
def test_a_name_has_one_spelling(typed):
    assert names.canonical(typed) == KNOWN[typed]
    assert names.is_remote(KNOWN[typed]) == (":" in KNOWN[typed])
    assert names.says_weights(KNOWN[typed]) == (KNOWN[typed] != "resnet18")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("me/mine", "A repository of the Hugging Face hub is hf-hub:me/mine, a folder local-dir:me/mine"),
        ("https://example.com/x", r"expected hf-hub:OWNER/NAME, local-dir:FOLDER"),
        ("https://huggingface.co/timm/x", r"expected hf-hub:timm/x \(did you mean that\?\), local-dir:"),
        (__file__, "a file, not the name of a network. Give it as --student-ckpt or --teacher-ckpt"),
        ("hf-hub:", r"expected hf-hub:OWNER/NAME"),
        ("timm/resnet1", "no architecture called 'resnet1'"),
        ("timm/resnet18.tv_in1kk", r"did you mean resnet18\.tv_in1k\?"),
    ],
)
def test_another_source_or_none_is_refused(typed, words):
    with pytest.raises(UsageError, match=words):
        names.canonical(typed)


def test_a_network_of_the_hub_is_what_timm_makes_of_it(mine):
    network = names.resolve("hf-hub:me/mine", OUT)
    assert mine.asked[-1].endswith("config.json")  # no weights before they are asked for
    assert (network.architecture, network.classes) == ("test_resnet", 3)
    found = checkpoints.load_published(network, {}, OUT)
    theirs = timm.create_model("hf-hub:me/mine", pretrained=True)
    assert list(found.state_dict) == list(theirs.state_dict())
    assert all(value.equal(found.state_dict[key]) for key, value in theirs.state_dict().items())
    expected = timm.data.resolve_data_config({}, model=theirs)
    assert found.preprocess.mean == tuple(expected["mean"]) == (0.5, 0.4, 0.3)
    assert found.preprocess.input_size == tuple(expected["input_size"]) == (3, 96, 80)
    assert found.model == "test_resnet" and found.notes == ["published weights of hf-hub:me/mine"]


def test_a_folder_is_what_timm_makes_of_it(mine, tmp_path, monkeypatch):
    for name, content in mine.files["me/mine"].items():
        (tmp_path / name).write_bytes(content)
    mine.asked.clear()
    monkeypatch.chdir(tmp_path.parent)
    network = names.resolve(f"local-dir:{tmp_path.name}", OUT)
    assert network.name == f"local-dir:{tmp_path}"
    found = checkpoints.load_published(network, {}, OUT)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert all(value.equal(found.state_dict[key]) for key, value in theirs.state_dict().items())
    assert mine.asked == []
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "last.pth")
    assert names.weights_of(network, OUT).name == "last.pth"
    (tmp_path / "first.pth").write_bytes(b"")
    with pytest.raises(
        UsageError, match=r"one file of weights in the folder .* found several \(first.pth, last"
    ):
        names.weights_of(network, OUT)
    with pytest.raises(UsageError, match=r"no config\.json in the folder"):
        names.resolve(f"local-dir:{tmp_path}/none", OUT)


def changed(mine, **changes):
    config = json.loads(mine.files["me/mine"]["config.json"])
    inner = changes.pop("pretrained_cfg", {})
    config |= changes
    config["pretrained_cfg"] |= inner
    mine.files["me/mine"]["config.json"] = json.dumps(config).encode()


def test_places_of_files_in_a_config_are_not_followed(mine, tmp_path):
    (tmp_path / "evil.pth").write_bytes(b"x")
    places = {"file": str(tmp_path / "evil.pth"), "url": "http://127.0.0.1:9/evil.pth", "hf_hub_id": "e/vil"}
    changed(
        mine, pretrained_cfg=places | {"source": "local-dir", "custom_load": True, "state_dict": {"a": 1}}
    )
    network = names.resolve("hf-hub:me/mine", OUT)
    assert names.weights_of(network, OUT).name == "pytorch_model.bin"
    assert network.config.url is None and network.config.file is None and not network.config.custom_load
    # huggingface_hub itself asks its hub for /api/agent-harnesses
    assert all("me/mine" in each or "agent-harnesses" in each for each in mine.asked)


REFUSED = {
    "not a network of timm": ({"architecture": "resnt18"}, UsageError, "did you mean"),
    "no architecture": ({"architecture": None}, ArtifactError, "names no architecture"),
    "a size of text": ({"pretrained_cfg": {"input_size": "big"}}, ArtifactError, "input_size"),
    "a size without end": (
        {"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}},
        ArtifactError,
        "input_size",
    ),
    "two means": ({"pretrained_cfg": {"mean": [0.5, 0.5]}}, ArtifactError, "mean"),
    "a mean of text": ({"pretrained_cfg": {"mean": ["a", "b", "c"]}}, ArtifactError, "mean"),
    "a mean without end": ({"pretrained_cfg": {"mean": [10**400, 0.5, 0.5]}}, ArtifactError, "mean"),
    "a mean that is NaN": ({"pretrained_cfg": {"mean": [float("nan"), 0.5, 0.5]}}, ArtifactError, "mean"),
    "a std of 0": ({"pretrained_cfg": {"std": [0, 0.5, 0.5]}}, ArtifactError, "std"),
    "a pool without end": ({"pretrained_cfg": {"pool_size": [10**400, 1]}}, ArtifactError, "pool_size"),
    "classes below 0": ({"num_classes": -3}, ArtifactError, "num_classes"),
    "a path as a file's name": (
        {"pretrained_cfg": {"hf_hub_filename": "../../etc/passwd"}},
        ArtifactError,
        "hf_hub_filename",
    ),
    "arguments that are a list": ({"model_args": [1]}, ArtifactError, "model_args"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_strange_config_is_refused_in_one_line(case, mine):
    changes, error, words = REFUSED[case]
    changed(mine, **changes)
    with pytest.raises(error, match=words) as caught:
        names.resolve("hf-hub:me/mine", OUT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "names no architecture"),
        (b'{"architecture": "test_resnet", "pretrained_cfg": 3}', "a pretrained_cfg that is not an object"),
        (b" " * 2**21, "config.json: larger than 1,048,576 bytes"),
    ],
)
def test_a_config_that_is_not_one_is_refused(content, words, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        names.resolve(f"local-dir:{tmp_path}", OUT)


def test_arguments_in_a_config_must_be_the_networks_own(mine, tmp_path):
    changed(mine, model_args={"checkpoint_path": str(tmp_path / "evil.pth")})
    network = names.resolve("hf-hub:me/mine", OUT)
    with pytest.raises(UsageError, match="cannot be built with the argument 'checkpoint_path'"):
        checkpoints.load_published(network, network.model_args, OUT)


def test_a_damaged_download_is_refused(mine):
    whole = bytearray(mine.files["me/mine"]["pytorch_model.bin"])
    whole[len(whole) // 2] ^= 255
    mine.files["me/mine"]["pytorch_model.bin"] = bytes(whole)
    network = names.resolve("hf-hub:me/mine", OUT)
    with pytest.raises(ArtifactError, match=r"does not fit.*or remove it to fetch it again"):
        checkpoints.load_published(network, {}, OUT)


def test_weights_that_do_not_fit_are_refused(mine):
    network = names.resolve("hf-hub:me/mine", OUT)
    with pytest.raises(ArtifactError, match="the weights of hf-hub:me/mine do not fit test_resnet with"):
        checkpoints.load_published(network, {"stem_width": 8}, OUT)


def test_what_is_not_published_asks_for_a_file():
    with pytest.raises(
        MissingError, match=r"slak_tiny has no published weights .* --student-ckpt FILE, from http"
    ):
        names.weights_of(names.resolve("slak_tiny", OUT), OUT)


def test_parameters_are_counted_with_the_classes_of_the_weights(mine):
    network = names.resolve("hf-hub:me/mine", OUT)
    expected = sum(value.numel() for value in models.build("test_resnet", 3).parameters())
    assert names.count_parameters(network) == expected


def test_a_file_that_is_called_as_a_network_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("resnet18", "resnet18.a1_in1k"):
        (tmp_path / name).write_text("x")
        assert names.canonical(name) == name
