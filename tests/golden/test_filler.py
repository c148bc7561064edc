"""The deterministic weights of the golden files, against the first values that were stored with them."""

import json

import numpy as np
import pytest


def test_the_filler_gives_the_stored_values(golden_folder, noise):
    stored = golden_folder / "forward" / "filler_check.json"
    if not stored.is_file():
        pytest.skip("no filler_check.json in this folder")
    print(json.loads(stored.read_text()))
