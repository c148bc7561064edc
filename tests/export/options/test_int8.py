"""export.options: settings of an int8 export that cannot be."""

import pytest

from export.options.int8 import Int8Options, check_int8
from runtime.errors import UsageError


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"calib_size": 0}, "calib-size 0: expected 1 or more"),
        ({"max_drop": -1.0}, "max-drop -1.0: expected 0 or more"),
        ({"max_drop": float("nan")}, "max-drop nan: expected a number, 0 or more"),
        ({"percentile": 50.0}, "percentile 50.0: expected above 50, at most 100"),
        ({"depthwise": "fp16"}, "Add --fp16"),
        ({"calib": "random", "calib_method": "auto"}, "no labels to choose a method"),
        ({"calib": "random", "calib_draws": 3}, "no labels to choose a method"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(UsageError, match=said):
        check_int8(Int8Options(**settings), fp16=False)
