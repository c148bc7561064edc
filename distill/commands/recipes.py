"""`distill recipes`: which recipes ship with the program, and what each one changes.

In:  nothing, or the name of a recipe.
Out: name, purpose and changed settings of every recipe; or the YAML of one. With --json one object.
Elsewhere: reading recipes (distill.recipe.reader), the settings and their defaults (distill.recipe.groups).
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass
from typing import Annotated, Any

from runtime import files
from runtime.cli.help import terminal_width
from runtime.cli.settings import Flag

SUMMARY = "list the recipes that ship with it, or print one"
DESCRIPTION = """A printed recipe is a file to start from: change it, and give it to distill train --recipe.

examples:
  {prog}
  {prog} paper > mine.yaml
  distill train --recipe mine.yaml --data DIR"""


@dataclass(frozen=True)
class Options:
    """Flags of `distill recipes`."""

    name: Annotated[str, Flag("NAME", positional=True)] = ""
    """Recipe to print as YAML; without it all are listed."""
    json: bool = False
    """Print the result as one JSON object and nothing else."""


def run(options: Options) -> None:
    """Print the list, or one recipe."""
    from .. import recipe as recipes

    if options.name:
        text = recipes.text_of(options.name)
        if options.json:
            print(files.json_text({"name": options.name, "settings": recipes.read(options.name)}))
        else:
            print(text, end="")
        return
    found = [about(name) for name in recipes.named()]
    if options.json:
        print(files.json_text({"recipes": found}))
    else:
        print("\n\n".join(_shown(each) for each in found))


def about(name: str) -> dict[str, Any]:
    """Name, purpose and the settings that are not the defaults."""
    from .. import recipe as recipes

    values, default = recipes.read(name), recipes.to_dict(recipes.Recipe())
    differs = {key: value for key, value in values.items() if value != default.get(key.replace("-", "_"))}
    return {"name": name, "purpose": purpose(recipes.text_of(name)), "differs": differs}


def purpose(text: str) -> str:
    """The comment that a recipe begins with, on one line."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def _shown(each: dict[str, Any]) -> str:
    width = terminal_width() if sys.stdout.isatty() else 100
    changed = ", ".join(f"{key} {_value(value)}" for key, value in each["differs"].items())
    lines = [each["purpose"], f"Changes: {changed or 'nothing'}."]
    folded = [
        textwrap.fill(line, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        for line in lines
    ]
    return "\n".join([each["name"], *folded])


def _value(value: Any) -> str:
    return files.json_text(value) if isinstance(value, (bool, list, dict)) else str(value)
