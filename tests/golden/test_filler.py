"""The deterministic weights of the golden files, against the first values that were stored with them."""

import json
import re

import numpy as np
import pytest
import torch


def test_the_filler_gives_the_stored_values(golden_folder, golden_uniform, fill):
    stored = golden_folder / "forward" / "filler_check.json"
    if not stored.is_file():
        pytest.skip(f"{golden_folder} has no forward/filler_check.json")
    values = json.loads(stored.read_text(encoding="utf-8"))
    for name, first in values["unit"].items():
        key, salt = re.fullmatch(r"(.+)\|salt=(\d+)", name).groups()
        np.testing.assert_array_equal(golden_uniform(key, len(first), int(salt)), first)
    for name, expected in values["fill"].items():
        key, shape, salt = re.fullmatch(r"(.+)\|shape=(\[.*\])\|salt=(\d+)", name).groups()
        module = torch.nn.Module()
        for part in key.split(".")[:-1][::-1]:  # a module tree whose only tensor has that name
            parent, child = torch.nn.Module(), module
            parent.add_module(part, child)
            module = parent
        module.get_submodule(key.rpartition(".")[0]).register_buffer(
            key.rpartition(".")[2], torch.zeros(json.loads(shape))
        )
        filled = fill(module, int(salt)).state_dict()[key].double().flatten()
        np.testing.assert_array_equal(filled[: len(expected["first"])], expected["first"])
        assert filled.sum().item() == pytest.approx(expected["sum"], abs=1e-6)
