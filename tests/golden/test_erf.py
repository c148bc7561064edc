"""Score matrices and area ratios of the published ERF code: from stored matrices, from formulas, and measured
anew.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from distill import models  # noqa: F401  (models registers the families)
from distill.erf import field


def matrix(entry, arrays):
    """The case's score matrix: stored, or made from the formula that its `kind` gives."""
    if "score" in arrays:
        return arrays["score"]
    if "value" in arrays:
        return np.full(arrays["shape"].astype(int), arrays["value"], dtype=np.float64)
    if "amplitude" in arrays:
        size = int(re.search(r"_r(\d+)", Path(entry["file"]).stem)[1])
        rows, columns = (int(re.search(rf"\({axis}-(\d+)\)", entry["kind"])[1]) for axis in "ij")
        i, j = np.mgrid[:size, :size]
        exponent = (i - rows) ** 2 / (2 * arrays["sigma_rows"] ** 2) + (j - columns) ** 2 / (
            2 * arrays["sigma_cols"] ** 2
        )
        return arrays["amplitude"] * np.exp(-exponent)
    pytest.skip(
        f"{entry['file']}: neither a matrix nor a formula that is known here ({entry.get('kind')};"
        f" {sorted(arrays)})"
    )


def check_ratios(score, arrays):
    found = field.from_score(score, thresholds=arrays["thresholds"].tolist()).reference
    stored = zip(
        found.sides,
        found.ratios,
        arrays["side"],
        arrays["area_ratio"],
        arrays["area_ratio_div1024"],
        strict=True,
    )
    for side, ratio, side_, ratio_, ratio1024 in stored:
        assert (side is None) == math.isnan(side_)
        assert side is None or abs(side - side_) <= 2  # the published sums are float32
        if side == side_:
            assert ratio == pytest.approx(ratio_, rel=1e-12)
            assert side**2 / 1024**2 == pytest.approx(ratio1024, rel=1e-12)


def constructor(entry, content):
    """(call of the original, number of classes) of the network that an ERF case names; the call stands with
    the forward cases.
    """
    words = entry["model"].partition(",")[0]
    name = re.sub(r"\W+", "_", re.sub(r"\(.*\)", "", words).strip()).lower()
    calls = [
        case["constructor"] for case in content.get("forward_cases", []) if case["model"].lower() == name
    ]
    if not calls:
        pytest.skip(f"{entry['file']}: no forward case says how {words!r} is built")
    classes = re.search(r"num_classes=(\d+)", entry["model"])
    return calls[0], {"num_classes": int(classes[1])} if classes else {}


def test_score_and_area_ratios(erf_case, golden_content, read, ours, fill, noise):
    arrays = read(erf_case)
    check_ratios(matrix(erf_case, arrays), arrays)
    if "model" not in erf_case:  # a matrix by itself
        return
    salt, size, count = erf_case["salt"], erf_case["resolution"], erf_case["images"]
    call, classes = constructor(erf_case, golden_content)
    name, arguments = ours(call)
    network = fill(timm.create_model(name, **arguments | classes), salt)
    images = (torch.from_numpy(noise((1, 3, size, size), salt, f"erf_input_{j}")) for j in range(count))
    found = field.measure(network, images, torch.device("cpu"))
    assert (found.images, found.skipped) == (count, 0)
    assert np.abs(found.score - arrays["score"]).max() <= 1e-4 * arrays["score"].max()
