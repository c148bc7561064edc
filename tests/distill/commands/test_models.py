"""`distill models`: what the list says against networks that are built; its filters; a wrong name."""

import json

import pytest
import timm
import torch
from torch import nn

from distill import __main__ as cli
from distill.models import catalog


def listed(capsys, *words):
    assert cli.main(["models", *words, "--json"]) == 0
    return {each["name"]: each for each in json.loads(capsys.readouterr().out)["models"]}


def test_parameters_are_those_of_the_network(capsys):
    found = listed(capsys, "resnet2*")
    assert {"resnet20", "resnet26"} <= set(found)
    for name in (
        "resnet20",
        "resnet26",
    ):  # one of ours whose initialization needs real weights, one of timm's
        network = timm.create_model(name)
        assert found[name]["parameters"] == sum(each.numel() for each in network.parameters())
    assert found["resnet20"]["input_size"] == [3, 32, 32] and found["resnet20"]["ours"]
    assert found["resnet26"]["published"] and not found["resnet26"]["ours"]


def test_a_long_list_comes_without_building_a_network(capsys, monkeypatch):
    monkeypatch.setattr(timm, "create_model", None)
    found = listed(capsys)
    assert set(found) == set(timm.list_models()) and len(found) > 1000
    assert {each["parameters"] for each in found.values()} == {None}


SMALLEST = {
    "slak_tiny": 51,
    "slak_tiny_k7": 7,
    "replknet_31b": 31,
    "unireplknet_a": 13,
    "convnext_atto": 7,
    "inception_next_atto": 9,
    "inception_next_tiny": 11,
    "edgenext_xx_small": 9,
    "mambaout_femto": 7,
    "rdnet_tiny": 7,
    "starnet_s1": 7,
    "fastvit_t8": 7,
    "convformer_s18": 7,
    "convmixer_768_32": 7,
    "resnet18": 0,
    "mobilenetv2_100": 0,
}


@pytest.mark.parametrize("name", SMALLEST)
def test_the_large_kernel_is_the_largest_depthwise_one(name):
    with torch.device("meta"):
        network = timm.create_model(name)
    depthwise = [
        max(each.kernel_size)
        for each in network.modules()
        if isinstance(each, nn.Conv2d) and 3 < each.groups == each.in_channels
    ]
    largest = max(depthwise, default=0)
    said = catalog.kernel_of(name)
    assert said == (f"{largest} x {largest}" if largest >= 7 else "")
    assert SMALLEST[name] in (largest, 0)


def test_the_filters_leave_what_they_say(capsys, monkeypatch):
    monkeypatch.setattr(catalog, "MOST_COUNTED", 0)
    ours = listed(capsys, "--ours")
    assert {"slak_tiny", "replknet_31b", "unireplknet_a", "resnet20"} <= set(ours) and "resnet18" not in ours
    teachers = listed(capsys, "--teachers", "--ours")
    assert "slak_tiny" in teachers and "resnet20" not in teachers


def test_a_word_without_stars_is_looked_for_inside_the_names(capsys):
    assert "mobilenetv4_conv_small_035" in listed(capsys, "v4_conv_small_0")


def test_lines_have_tabs_where_there_is_no_terminal(capsys):
    assert cli.main(["models", "[r]esnet20"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split("\t")[0] == "name" and line.split("\t")[:3] == ["resnet20", "0.3M", "3 x 32 x 32"]


def test_a_name_that_is_not_there_gets_the_nearest(capsys):
    assert cli.main(["models", "resnet81"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no network matches resnet81; did you mean resnet" in err


ARGUMENTS = {
    "a file": {"checkpoint_path": "evil.pth"},
    "an address": {"pretrained": True, "pretrained_cfg": {"url": "http://HOST/evil/x/resolve/main/w.pth"}},
    "a word that is not known": {"nonsense": 1},
    "a value of another kind": {"stem_width": "wide"},
}


@pytest.mark.parametrize("source", ["hf-hub:me/mine", "local-dir:mine"])
@pytest.mark.parametrize("case", ARGUMENTS)
def test_a_config_cannot_make_the_list_open_anything(mine, tmp_path, monkeypatch, capsys, case, source):
    monkeypatch.chdir(tmp_path)
    opened = []
    monkeypatch.setattr(torch, "load", lambda *given, **more: opened.append(given))
    (tmp_path / "evil.pth").write_bytes(b"x")
    config = json.loads(mine.files["me/mine"]["config.json"])
    config["model_args"] = json.loads(json.dumps(ARGUMENTS[case]).replace("HOST", mine.host))
    mine.files["me/mine"]["config.json"] = json.dumps(config).encode()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
    assert cli.main(["models", source]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "test_resnet cannot be built with" in said
    assert opened == [] and not [each for each in mine.asked if "evil" in each]


def test_a_network_of_the_hub_costs_its_config_alone(mine, capsys):
    for name in ("hf-hub:me/mine", "hf_hub:me/mine"):
        (found,) = listed(capsys, name).values()
        network = timm.create_model("test_resnet", num_classes=3)
        assert found["parameters"] == sum(each.numel() for each in network.parameters())
        assert found["name"] == "hf-hub:me/mine" and found["input_size"] == [3, 96, 80]
        assert found["published"] and not found["ours"]
    assert not [each for each in mine.asked if "pytorch_model" in each or "safetensors" in each]
    (found,) = listed(capsys, "timm/resnet18.a1_in1k").values()
    assert found["name"] == "resnet18.a1_in1k" and found["input_size"] == [3, 224, 224]
    assert cli.main(["models", "me/mine"]) == 2 and "is hf-hub:me/mine" in capsys.readouterr().err
    assert cli.main(["models", "hf-hub:me/none"]) == 2
