"""From a template and values to one HTML file without scripts and network.

In:  a template (jinja2), values; what comes from files is escaped.
Out: HTML.
Elsewhere: the look of all pages (style.css beside this file), drawings (runtime.cli.page.drawing).
"""

from __future__ import annotations

import importlib.util
from importlib import resources
from typing import Any

from ...errors import MissingError

INSTALL = 'pip install "large2small[report]"'


def require_installed() -> None:
    """Raise MissingError with the command that installs what a report needs."""
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingError(f"a report needs {' and '.join(missing)}. Install it: {INSTALL}")


def render(package: str, name: str, values: dict[str, Any], functions: dict[str, Any] | None = None) -> str:
    """The page of the template `name` in a package. functions: more that the template may call."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = Markup  # drawings, in which names are escaped already
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    environment.globals |= {"style": Markup(style), **(functions or {})}
    source = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    return environment.from_string(source).render(values)
