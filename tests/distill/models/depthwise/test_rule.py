"""The rule as a table, written out by hand from its description."""

import pytest
import torch
from torch import nn

from distill.models.depthwise import Choice, network_format, rule
from distill.models.depthwise.rule import Case, choose

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
PLAIN, LAST = torch.contiguous_format, torch.channels_last
HAS, HAS_NOT = True, False

TABLE = [  # device, type, map, kernel, kernels of Triton there, frozen -> algorithm, memory format
    ("cpu", FP32, (56, 56), (51, 5), HAS_NOT, False, "auto", None),
    ("cpu", BF16, (56, 56), (5, 5), HAS_NOT, True, "auto", None),
    ("cpu", FP32, (56, 56), (3, 3), HAS_NOT, False, "conv2d", None),
    ("cpu", FP32, (56, 56), (8, 8), HAS_NOT, False, "conv2d", None),
    ("mps", FP32, (56, 56), (51, 5), HAS_NOT, False, "conv2d", None),
    ("cuda", BF16, (56, 56), (51, 5), HAS, False, "toeplitz", PLAIN),
    ("cuda", BF16, (56, 56), (5, 51), HAS, True, "toeplitz", PLAIN),
    ("cuda", FP16, (14, 14), (47, 5), HAS, True, "toeplitz", PLAIN),
    ("cuda", FP32, (7, 7), (13, 5), HAS, True, "toeplitz", PLAIN),
    ("cuda", BF16, (14, 14), (27, 27), HAS, True, "matrix", PLAIN),
    ("cuda", BF16, (14, 14), (27, 27), HAS, False, "toeplitz", PLAIN),  # trained
    ("cuda", FP32, (14, 14), (27, 27), HAS, True, "toeplitz", PLAIN),  # TF32 is asked for elsewhere
    ("cuda", BF16, (14, 14), (25, 27), HAS, True, "toeplitz", PLAIN),  # corners do not see each other
    ("cuda", BF16, (7, 7), (13, 13), HAS, True, "toeplitz", PLAIN),  # 49 places: rows are not aligned
    ("cuda", BF16, (16, 16), (31, 31), HAS, True, "toeplitz", PLAIN),  # a larger map
    ("cuda", BF16, (8, 4), (15, 7), HAS, True, "matrix", PLAIN),
    ("cuda", BF16, (0, 4), (15, 9), HAS, True, "toeplitz", PLAIN),
    ("cuda", BF16, (56, 56), (9, 9), HAS, False, "toeplitz", PLAIN),
    ("cuda", BF16, (56, 56), (7, 7), HAS, True, "conv2d", LAST),
    ("cuda", FP16, (56, 56), (5, 5), HAS, False, "conv2d", LAST),
    ("cuda", BF16, (56, 56), (3, 3), HAS, False, "conv2d", None),
    ("cuda", BF16, (56, 56), (3, 7), HAS, False, "conv2d", None),
    ("cuda", FP32, (56, 56), (7, 7), HAS, True, "conv2d", None),
    ("cuda", BF16, (56, 56), (50, 5), HAS, False, "conv2d", None),  # even
    ("cuda", BF16, (56, 56), (51, 5), HAS_NOT, False, "conv2d", PLAIN),  # no Triton, or an old GPU
    ("cuda", BF16, (56, 56), (7, 7), HAS_NOT, False, "conv2d", LAST),
    ("cuda", FP64, (56, 56), (51, 5), HAS, False, "conv2d", PLAIN),
]


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_the_rule_is_its_table(row):
    *case, algorithm, memory_format = row
    assert choose(Case(*case)) == Choice(algorithm, memory_format)


def test_the_rule_reads_nothing_but_its_case(monkeypatch):
    """Neither a clock nor a device: the same case is the same choice on every machine."""
    for name in ("is_available", "get_device_capability", "current_device"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("the rule asked a device"))
    assert not {"time", "os", "sys"} & set(vars(rule))
    assert choose(Case("cuda", BF16, (56, 56), (51, 5), True)).algorithm == "toeplitz"


def network(kernel, groups=8):
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, kernel, padding="same", groups=groups))


@pytest.mark.parametrize(
    ("device", "kernel", "groups", "asked", "expected"),
    [
        ("cuda", (51, 5), 8, True, PLAIN),
        ("cuda", 9, 8, True, PLAIN),
        ("cuda", 7, 8, True, LAST),
        ("cuda", (1, 11), 8, True, LAST),
        ("cuda", (5, 13), 8, True, PLAIN),
        ("cuda", 31, 1, True, LAST),  # not depthwise
        ("cuda", 7, 8, False, PLAIN),
        ("cpu", (51, 5), 8, True, LAST),
        ("cpu", (51, 5), 8, False, PLAIN),
    ],
)
def test_networks_with_large_kernels_are_contiguous_on_cuda(device, kernel, groups, asked, expected):
    assert network_format(network(kernel, groups), torch.device(device), asked) == expected
