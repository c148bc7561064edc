"""Numbers of the original implementations, and a walk over every case of the folder's cases.json.

The folder is `golden` in the data outside the repository (tests/helpers/outside.py); where that is not there,
the small copy in tests/golden/data, which has the same form. `GOLDEN_DIR` puts another folder of that form in
its place. A test that asks for `logit_case`, `feature_case`, `state_dict_case`, `forward_case` or `erf_case`
runs once for every entry of that section; a section that the folder does not have is skipped. `fill` and
`noise` are the deterministic weights and inputs that the golden README describes.
"""

from __future__ import annotations

import ast
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import outside
import pytest

HERE = Path(__file__).parent
SECTIONS = {
    "logit_case": "logit_cases",
    "feature_case": "feature_cases",
    "state_dict_case": "state_dicts",
    "forward_case": "forward_cases",
    "erf_case": "erf_cases",
    "stored_label_case": "stored_label_cases",
}


def folder() -> Path:
    if os.environ.get("GOLDEN_DIR"):
        return Path(os.environ["GOLDEN_DIR"])
    beside = outside.path("golden")
    return beside if beside.is_dir() else HERE / "data"


def content() -> dict[str, Any]:
    return json.loads((folder() / "cases.json").read_text(encoding="utf-8"))


def pytest_generate_tests(metafunc):
    for argument, section in SECTIONS.items():
        if argument in metafunc.fixturenames:
            entries = content().get(section) or []
            skipped = pytest.param(
                None, marks=pytest.mark.skip(reason=f"{folder()} has no {section}"), id="absent"
            )
            metafunc.parametrize(
                argument, [pytest.param(e, id=Path(e["file"]).stem) for e in entries] or [skipped]
            )


@pytest.fixture(scope="session")
def golden_folder():
    """The folder that is walked."""
    return folder()


@pytest.fixture(scope="session")
def golden_content():
    """Its cases.json."""
    return content()


@pytest.fixture(scope="session")
def read():
    """read(entry): the arrays of a case, or the JSON of a state dict."""

    def read_(entry):
        path = folder() / entry["file"]
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    return read_


def uniform(key: str, size: int, salt: int) -> np.ndarray:
    """`size` numbers in [0, 1), float64: splitmix64 seeded by the CRC-32 of `key` and by `salt`."""
    with np.errstate(over="ignore"):
        seed, index = (
            np.uint64(zlib.crc32(key.encode()) + salt * 2**32),
            np.arange(1, size + 1, dtype=np.uint64),
        )
        z = seed + index * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


@pytest.fixture(scope="session")
def noise():
    """noise(shape, salt, key="input"): the golden input of that shape, float32, mean 0 and variance 1."""

    def noise_(shape, salt, key="input"):
        return (
            ((2 * uniform(key, int(np.prod(shape)), salt) - 1) * np.sqrt(3)).reshape(shape).astype(np.float32)
        )

    return noise_


@pytest.fixture(scope="session")
def golden_uniform():
    """uniform(key, size, salt): numbers in [0, 1)."""
    return uniform


@pytest.fixture(scope="session")
def fill():
    """fill(model, salt): gives every weight and buffer of a torch model (train form) its golden value;
    returns the model.
    """

    def value(key, shape, salt):
        last, u = key.rpartition(".")[2], uniform(key, int(np.prod(shape, dtype=np.int64)), salt)
        if last == "num_batches_tracked":
            return np.zeros(shape)
        if last == "running_mean":
            return 0.2 * (u - 0.5)
        if last == "running_var":
            return 0.5 + u
        if len(shape) >= 2:
            return ((2 * u - 1) * np.sqrt(3 / np.prod(shape[1:]))).reshape(shape)
        if last == "weight":
            return 0.75 + 0.5 * u
        if last == "gamma":
            return 0.1 + 0.2 * u
        return 0.2 * (u - 0.5)

    def fill_(model, salt):
        import torch

        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                tensor.copy_(torch.from_numpy(np.asarray(value(key, tuple(tensor.shape), salt))))
        return model

    return fill_


NAMES = {
    "SLaK": "slak_tiny",
    "SLaK_tiny": "slak_tiny",
    "SLaK_small": "slak_small",
    "SLaK_base": "slak_base",
    "SLaK_large": "slak_large",
    "RepLKNet": "replknet_31b",
    "create_RepLKNet31B": "replknet_31b",
    "create_RepLKNet31L": "replknet_31l",
    "create_RepLKNetXL": "replknet_xl",
}
"""{constructor of an original: our name for it}; UniRepLKNet's and ConvNeXt's are called the same here."""
RENAMED = {
    "layers": "depths",
    "large_kernel_sizes": "kernel_sizes",
    "in_channels": "in_chans",
    "small_kernel_merged": "deploy",
    "Decom": "decomposed",
}
WITHOUT_EFFECT = {"use_checkpoint", "use_sync_bn", "attempt_use_lk_impl"}
"""Arguments of the originals about memory, processes and kernels: the numbers are the same."""


@pytest.fixture(scope="session")
def ours():
    """ours(constructor) -> (name for timm.create_model, its arguments), from the text of a call such as
    "SLaK_tiny(bn=False)".
    """

    def ours_(text):
        call = ast.parse(text.partition(" then ")[0].strip(), mode="eval").body
        while isinstance(call.func, ast.Attribute):  # "RepLKNet(...).structural_reparam()"
            call = call.func.value
        original = call.func.id
        name = NAMES.get(original, original)
        if name == original and not name.startswith(("unireplknet_", "convnext_")):
            pytest.skip(f"{text}: no network here is called {original}")
        assert not call.args, f"{text}: arguments without a name"
        given = {
            RENAMED.get(k.arg, k.arg): ast.literal_eval(k.value)
            for k in call.keywords
            if k.arg not in WITHOUT_EFFECT
        }
        if name.startswith("slak"):
            given = {
                "kernel_size": [51, 49, 47, 13, 5],
                "width_factor": 1.0,
                "decomposed": False,
            } | given  # the original's
            *given["kernel_sizes"], given["small_kernel"] = given.pop("kernel_size")
            given["decomposed"] = bool(given["decomposed"])
        if given.get("small_kernel", 0) is None:
            given["small_kernel"] = 0  # timm.create_model takes None for an argument that was not given
        return name, given

    return ours_
