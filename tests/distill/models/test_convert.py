"""Published weights: older spellings, other forms than the architecture's, timm's converters; always with a
note.
"""

import pytest
import timm
import torch

from distill import models
from distill.models.convert import convert
from distill.models.merge import reparameterize
from runtime.errors import UsageError

SLAK = {"depths": (1, 1, 1, 1), "dims": (4, 6, 8, 12), "width_factor": 1.0}
REPLKNET = {"depths": (1, 1, 1, 1), "channels": (4, 6, 8, 12)}


def weights(name, **arguments):
    with torch.device("meta"):
        return models.build(name, 5, arguments).state_dict()


def older(state):
    """The names of 2022."""
    return {key.replace("LoRA", "Decom"): value for key, value in state.items()}


def test_weights_that_fit_come_back_untouched():
    state = weights("slak_tiny", **SLAK)
    assert convert("slak_tiny", SLAK, state) == (state, SLAK, [])
    # counters of batches are missing in older files, and classes are for others to judge
    part = {key: value for key, value in state.items() if "num_batches" not in key}
    assert convert("slak_tiny", SLAK, part) == (part, SLAK, [])


def test_older_spellings_of_strips_are_renamed():
    state = weights("slak_tiny", **SLAK)
    found, arguments, notes = convert("slak_tiny", SLAK, older(state))
    assert list(found) == list(state) and all(found[key] is state[key] for key in state) and arguments == SLAK
    old, new = ("stages.0.0.large_kernel.Decom1.conv.weight", "stages.0.0.large_kernel.LoRA1.conv.weight")
    assert notes == [f"renamed 48 names (first: {old} -> {new})"]  # 4 blocks, 2 strips, 6 names each


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"kernel_sizes": [31, 29, 27, 13]}, {"kernel_sizes": [31, 29, 27, 13]}),
        (
            {"kernel_sizes": [31, 29, 27, 13], "decomposed": False},
            {"kernel_sizes": [31, 29, 27, 13], "decomposed": False},
        ),
        ({"small_kernel": 3}, {"small_kernel": 3}),
        (
            {"kernel_sizes": 7, "small_kernel": 0, "decomposed": False},
            {"kernel_sizes": [7, 7, 7, 7], "small_kernel": 0, "decomposed": False},
        ),
        ({"bn": False}, {"bn": False}),
        ({"deploy": True}, {"deploy": True}),
        ({"deploy": True, "decomposed": False}, {"deploy": True, "decomposed": False}),
    ],
    ids=str,
)
def test_what_a_slak_file_shows_completes_the_arguments(form, expected):
    state = weights("slak_tiny", **SLAK, **form)
    found, arguments, (*renamed, note) = convert("slak_tiny", SLAK, older(state))
    assert arguments == SLAK | expected and list(found) == list(state)
    assert list(weights("slak_tiny", **arguments)) == list(state)
    assert note.startswith("arguments read from the weights: ") and all(f"{key}=" in note for key in expected)
    assert bool(renamed) == form.get("decomposed", True)


def test_arguments_of_the_user_stand():
    state = weights("slak_tiny", **SLAK, decomposed=False, kernel_sizes=31)
    _, arguments, notes = convert("slak_tiny", SLAK | {"decomposed": True}, state)
    assert arguments == SLAK | {"decomposed": True, "kernel_sizes": [31, 31, 31, 31]}
    assert notes == ["arguments read from the weights: kernel_sizes=[31, 31, 31, 31]"]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"kernel_sizes": 9}, {"kernel_sizes": [9, 9, 9, 9]}),
        ({"small_kernel": 0}, {"small_kernel": 0}),
        ({"deploy": True, "small_kernel": 0}, {"deploy": True}),
    ],
    ids=str,
)
def test_what_a_replknet_file_shows_completes_the_arguments(form, expected):
    state = weights("replknet_31b", **REPLKNET, **form)
    found, arguments, (note,) = convert("replknet_31b", REPLKNET, state)
    assert arguments == REPLKNET | expected and found == state
    assert weights("replknet_31b", **arguments).keys() == state.keys() and note.startswith(
        "arguments read from the weights: "
    )


@pytest.mark.parametrize("name", ["slak_tiny", "replknet_31b", "unireplknet_a"])
def test_a_merged_file_is_built_merged_and_computes_the_same(name, stirred, noise, share):
    small = {"unireplknet_a": {"depths": (1, 1, 1, 1), "dims": (8, 8, 12, 16), "kernel_sizes": (3, 7, 7, 9)}}
    arguments = {"slak_tiny": SLAK, "replknet_31b": REPLKNET, **small}[name]
    network, x = stirred(models.build(name, 5, arguments)), noise(2, 3, 32, 32)
    found, completed, notes = convert(
        name, arguments, reparameterize(network, fold_batch_norm=False).state_dict()
    )
    assert completed == arguments | {"deploy": True} and notes == [
        "arguments read from the weights: deploy=true"
    ]
    merged = models.build(name, 5, completed).eval()
    merged.load_state_dict(found)
    with torch.no_grad():
        assert share(merged(x), network(x)) < 1e-5


def facebook(state):
    """timm's ConvNeXt under the names of the authors."""
    names = {}
    for key in state:
        new = (
            key.replace("stem.", "downsample_layers.0.")
            .replace("head.fc", "head")
            .replace("head.norm", "norm")
        )
        new = new.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv").replace("blocks.", "")
        if ".downsample." in new:
            _, stage, _, rest = new.split(".", 3)
            new = f"downsample_layers.{stage}.{rest}"
        names[new] = state[key]
    return names


def test_converters_of_timm_are_used_for_its_families(stirred):
    arguments = {"depths": (1, 1, 2, 1), "dims": (4, 6, 8, 12)}
    network = stirred(timm.create_model("convnext_tiny", num_classes=5, **arguments))
    found, same, (note,) = convert("convnext_tiny", arguments, facebook(network.state_dict()))
    assert same == arguments
    other = timm.create_model("convnext_tiny", num_classes=5, **arguments)
    other.load_state_dict(found)
    assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in other.state_dict().items())
    assert note == f"renamed {len(found)} names (first: downsample_layers.0.0.weight -> stem.0.weight)"


def test_a_converter_that_drops_weights_says_how_many_are_left():
    with torch.device("meta"):
        state = timm.create_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(4, 6, 8, 12)).state_dict()
    published = facebook(state) | {"norms.3.weight": torch.zeros(12)}  # of an optional distillation head
    found, _, (note,) = convert("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (4, 6, 8, 12)}, published)
    assert set(found) == set(state) and note.startswith(
        f"converted {len(state) + 1} names to {len(state)} (first: downsample"
    )


def test_a_file_of_another_family_keeps_its_names():
    state = models.build("resnet20", 5).state_dict()
    for name in ("convnext_tiny", "vit_tiny_patch16_224"):
        assert convert(name, {}, state) == (state, {}, [])
    assert convert("slak_tiny", SLAK, state) == (state, SLAK, [])
    assert convert("resnet20", {}, state) == (state, {}, [])


def test_wrong_arguments_are_named():
    with pytest.raises(UsageError, match="slak_tiny cannot be built with"):
        convert("slak_tiny", {"kernels": 7}, weights("slak_tiny", **SLAK))


@pytest.mark.parametrize(("name", "arguments"), [("slak_tiny", SLAK), ("replknet_31b", REPLKNET)])
def test_weights_without_the_dimensions_of_a_kernel_show_nothing(name, arguments):
    state = weights(name, **arguments)
    for flat in ("large_kernel", "small_conv", "LoRA1"):
        broken = {key: value.flatten() if flat in key else value for key, value in state.items()}
        found, shown, _ = convert(name, arguments, broken | {"more": torch.ones(1)})
        assert found["more"].shape == (1,) and shown.get("kernel_sizes", ()) != []


def test_a_converter_that_adds_names_behind_the_others_says_how_many(monkeypatch):
    state = weights("slak_tiny", **SLAK)
    first = dict(list(state.items())[:5])
    monkeypatch.setattr("distill.models.slak.checkpoint_filter_fn", lambda found, network: state)
    _, _, notes = convert("slak_tiny", SLAK, first)
    assert notes[0] == f"converted 5 names to {len(state)}"
