"""Write large2small/flags.py: the keywords of the functions of `import large2small`, with their types.

In:  the Options of the commands.
Out: the text of large2small/flags.py; run as a script, the file.
Elsewhere: the test that the file is up to date (tests/large2small/test_flags.py), the functions
(large2small.functions).

    python tests/helpers/python_flags.py
"""

import importlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from large2small.calls import PRINTED  # noqa: E402
from runtime.cli.front_door import COMMANDS  # noqa: E402
from runtime.cli.settings import Setting, settings_of  # noqa: E402

CLASSES = {
    "TrainFlags": ("train", "train --qat"),
    "EvalFlags": ("eval",),
    "OnnxFlags": ("export onnx",),
    "TrtFlags": ("export trt",),
    "PredictFlags": ("predict",),
    "LatencyFlags": ("bench latency",),
    "AccuracyFlags": ("bench accuracy",),
}
"""Class -> the commands whose flags it has."""

HEADER = '''"""The keywords of `import large2small`, with their types: for type checkers and editors.

In:  nothing.
Out: one TypedDict for each function.
Elsewhere: the functions (large2small.functions), what the flags mean (`distill COMMAND --help-all`).

Written by `make flags` from the Options of the commands; edit those.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

Pathlike = str | os.PathLike[str]

'''


def text() -> str:
    """The content of the file."""
    return HEADER + "\n".join(_class(name, commands) for name, commands in CLASSES.items())


def _class(name: str, commands: tuple[str, ...]) -> str:
    settings = {}
    for command in commands:
        settings |= {
            each.name: each for each in settings_of(importlib.import_module(COMMANDS[command]).Options)
        }
    lines = [
        f"    {each.name}: {annotation(each)}"
        for each in settings.values()
        if each.words and each.name not in PRINTED and not (each.required and not each.flag.positional)
    ]
    about = f'    """Flags of `distill {commands[0]}`."""\n'
    return f"\nclass {name}(TypedDict, total=False):\n{about}\n" + "\n".join(lines) + "\n"


def annotation(setting: Setting) -> str:
    """What a keyword takes. A path may be text or a Path; the words of a table, which may grow, are text."""
    kinds = {bool: "bool", int: "int", float: "float", str: "str", Path: "Pathlike"}
    one = kinds[setting.kind]
    if setting.kind is str and re.search("DATA|DIR|FILE|CKPT", setting.metavar):
        one = "Pathlike"
    if "Literal[" in setting.owner.__annotations__[setting.name]:
        one = "Literal[" + ", ".join(f'"{word}"' for word in setting.choices) + "]"
    if setting.metavar == "WEIGHT ..." and setting.kind is str:
        return "Sequence[str | float] | Mapping[str, object]"
    if setting.count != 1:
        one = f"Sequence[{one}]" + (" | Mapping[str, object]" if setting.metavar.startswith("KEY=") else "")
    if setting.flag.alone is not None:
        one += " | bool"
    return f"{one} | None" if setting.optional else one


if __name__ == "__main__":
    (ROOT / "large2small" / "flags.py").write_text(text(), encoding="utf-8")
