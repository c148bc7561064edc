"""Recipes from YAML and to YAML.

In:  the name of a shipped recipe (the .yaml files beside this one), a YAML file, or a dict.
Out: a `Recipe`, every value of the declared type; text.
Elsewhere: the settings and their ranges (distill.recipe.groups), the flags (runtime.cli.flags).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, replace
from importlib import resources
from typing import Any, TypeVar

from runtime import files
from runtime.cli.nearest import nearest
from runtime.cli.settings import Setting, settings_of
from runtime.errors import ArtifactError, UsageError
from runtime.recorded import known_network, local_data

from .whole import Recipe

DATA_FLAGS = {"data": ("--data", "--data-dir"), "val_data": ("--val-data",)}
"""Fields that hold a data spec, and their flags."""
NETWORK_FLAGS = {"student": ("--student",), "teacher": ("--teacher",)}
"""Fields that hold the name of a network, and their flags."""
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def named() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(
        file.name.removesuffix(".yaml")
        for file in resources.files("distill.recipe").iterdir()
        if file.name.endswith(".yaml")
    )


def load(name_or_file: str, base: Recipe | None = None) -> Recipe:
    """A shipped recipe by name, or a YAML file; keys it leaves out keep the value of `base`.

    Raises UsageError for an unknown name, an unknown key (nearest suggested) or a value of the wrong type.
    """
    return from_dict(read(name_or_file), name_or_file, base or Recipe())


def read(name_or_file: str) -> dict[str, Any]:
    """The keys and values of a shipped recipe or a YAML file, unchecked. Raises UsageError when there are
    none to read.
    """
    import yaml

    try:
        values = yaml.safe_load(text_of(name_or_file))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates that are none, lists without end
        raise UsageError(f"{name_or_file}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UsageError(f"{name_or_file}: expected lines of `key: value`")
    return values


def text_of(name_or_file: str) -> str:
    """The YAML of a shipped recipe or a file as it is written. Raises UsageError for an unknown name."""
    if name_or_file in named():
        shipped = resources.files("distill.recipe").joinpath(f"{name_or_file}.yaml")
        return shipped.read_text(encoding="utf-8")
    if os.path.isfile(name_or_file):
        try:
            return files.read_text(name_or_file)
        except ArtifactError as error:
            raise UsageError(f"{error}. Expected a YAML file") from error
    if os.path.isdir(name_or_file):
        raise UsageError(f"{name_or_file}: is a folder. Expected a YAML file, or one of {', '.join(named())}")
    raise UsageError(
        f"no recipe {name_or_file!r}{nearest(name_or_file, set(named()))} "
        f"Shipped: {', '.join(named())}; or give a YAML file"
    )


def from_dict(
    values: dict[str, Any],
    name: str,
    base: AnyRecipe,
    given: Mapping[str, str] | None = None,
    kept: Collection[str] = (),
) -> AnyRecipe:
    """`base` with `values` put in; types are checked, 1 is taken for 1.0 and 1e-3 (YAML: text) for
    a number.

    name: the file that says so. given: data specs and networks on the command line by field, which take the
    place of the file's. kept: networks that are never looked up by their names, because the run has them.
    Raises UsageError for data and networks that a file may not name (runtime.recorded).
    """
    checked, given = typed(values, Recipe, name), given or {}
    for field, flags in DATA_FLAGS.items():
        if field in given:
            checked.pop(field, None)
        elif checked.get(field) and checked[field] not in given.values():
            checked[field] = local_data(checked[field], name, flags[0])
    for field, flags in NETWORK_FLAGS.items():
        if field in given:
            checked.pop(field, None)
        elif checked.get(field) and field not in kept:
            checked[field] = known_network(checked[field], name, flags[0])
    return replace(base, **checked)


def typed(values: dict[str, Any], kind: type, name: str) -> dict[str, Any]:
    """`values` as the fields of the dataclass `kind` declare them. Raises UsageError naming the key."""
    known = {setting.name: setting for setting in settings_of(kind)}
    checked = {}
    for key, value in values.items():
        plain = str(key).replace("-", "_")
        if plain not in known:
            raise UsageError(f"{name}: unknown key {key!r}{nearest(plain, set(known))}")
        if plain == "losses" and isinstance(value, list):
            value = [_loss_as_text(entry, f"{name}: {key}") for entry in value]
        if plain == "class_weights":
            value = _weights_as_text(value, f"{name}: {key}")
        checked[plain] = _typed(value, known[plain], f"{name}: {key}")
    return checked


def to_yaml(recipe: Recipe) -> str:
    """All settings as YAML, in the order of the dataclass."""
    return yaml_lines({f.name: getattr(recipe, f.name) for f in fields(Recipe)})


def yaml_lines(values: dict[str, Any]) -> str:
    """`key: value` lines; tuples as lists."""
    import yaml

    return yaml.safe_dump(
        {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}, sort_keys=False
    )


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain values, tuples as lists."""
    names = {f.name for f in fields(Recipe)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items() if k in names}


def key_values(pairs: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE pairs as a dict; values are read as YAML (numbers, lists, true), and 1e-3 as the number it
    is.

    Raises UsageError without `=`.
    """
    import yaml

    result = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{pair!r}: expected KEY=VALUE, for example width=0.5")
        try:
            result[key] = _with_exponents(yaml.safe_load(value))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UsageError(
                f"{pair!r}: the value cannot be read ({' '.join(str(error).split())})"
            ) from error
    return result


def _with_exponents(value: Any) -> Any:
    """Numbers as 1e-3, which YAML 1.1 takes for words because they have no point, or no sign behind the e."""
    if isinstance(value, list):
        return [_with_exponents(item) for item in value]
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def _loss_as_text(entry: Any, where: str) -> Any:
    """{name: fd, weight: 0.5} -> fd:weight=0.5, the form that the flag has; text stays as it is."""
    if not isinstance(entry, dict):
        return entry
    if not isinstance(entry.get("name"), str):
        raise UsageError(
            f"{where} has an entry {entry!r}; expected a name in it, as in {{name: fd, weight: 0.5}}"
        )
    settings = ",".join(f"{key}={files.json_text(value)}" for key, value in entry.items() if key != "name")
    return entry["name"] + (f":{settings}" if settings else "")


def _weights_as_text(value: Any, where: str) -> list[str]:
    """balanced, [1, 2] or {cat: 2} in the form that the flag has. Raises UsageError for the name of a file: a
    recipe holds the weights themselves.
    """
    if isinstance(value, dict):
        return [f"{name}={weight}" for name, weight in value.items()]
    words = [str(each) for each in value] if isinstance(value, (list, tuple)) else [str(value or "none")]
    if words not in (["none"], ["balanced"]) and not all(map(is_weight, words)):
        raise UsageError(
            f"{where} is {value!r}; expected balanced, none, a number for each class, or the weights by"
            " class, as in {cat: 2}"
        )
    return words


def is_weight(word: str) -> bool:
    """Is it a number, or CLASS=NUMBER?"""
    try:
        float(word.rpartition("=")[2])
    except ValueError:
        return False
    return not word.startswith("=")


def _typed(value: Any, setting: Setting, where: str) -> Any:
    if value is None and setting.optional:
        return None
    if setting.count == 1:
        return _one(value, setting, where)
    if isinstance(value, (list, tuple)) and setting.count in (None, len(value)):
        return tuple(_one(item, setting, where) for item in value)
    raise UsageError(f"{where} is {value!r}; expected a list")


def _one(value: Any, setting: Setting, where: str) -> Any:
    if setting.choices:
        if value in setting.choices:
            return value
        raise UsageError(f"{where} is {value!r}; expected one of {', '.join(setting.choices)}")
    if setting.kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            raise UsageError(f"{where} is {value!r}; expected a number") from None
    if setting.kind is str and value is None:
        return ""
    if not isinstance(value, setting.kind) or (setting.kind is int and isinstance(value, bool)):
        expected = "true or false" if setting.kind is bool else setting.kind.__name__
        raise UsageError(f"{where} is {value!r}; expected {expected}")
    return value
