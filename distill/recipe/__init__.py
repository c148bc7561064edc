"""Recipes: every training setting once; one dataclass is the library option, the flags and the YAML keys.

In:  a recipe's name or YAML file, and what the flags override.
Out: a frozen `Recipe`; its YAML form, saved in the run folder as args.yaml.
Elsewhere: what the settings do (distill.data, distill.training.trainer); flags (runtime.cli.flags).
"""

from .reader import (
    DATA_FLAGS,
    NETWORK_FLAGS,
    from_dict,
    key_values,
    load,
    named,
    read,
    text_of,
    to_dict,
    to_yaml,
    typed,
    yaml_lines,
)
from .whole import Recipe

__all__ = [
    "DATA_FLAGS",
    "NETWORK_FLAGS",
    "Recipe",
    "from_dict",
    "key_values",
    "load",
    "named",
    "read",
    "text_of",
    "to_dict",
    "to_yaml",
    "typed",
    "yaml_lines",
]
