"""The look and the drawings that all pages share."""

import re

import pytest

from runtime.cli.page import drawing, html
from runtime.errors import MissingError


def test_what_is_missing_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(html.importlib.util, "find_spec", lambda name: None if name == "jinja2" else name)
    with pytest.raises(MissingError, match=r'needs jinja2\. Install it: pip install "large2small\[report\]"'):
        html.require_installed()


def test_a_drawing_is_in_the_color_of_the_page_and_a_png_in_black():
    pytest.importorskip("matplotlib")

    def draw(axes):
        axes.plot([1, 2], [1, 2], color=drawing.COLORS[0])
        axes.set_title("<a & b>")

    svg = drawing.drawing(draw, (2, 2), "two points")
    assert 'aria-label="two points"' in svg and "currentColor" in svg and drawing.PAGE_COLOR not in svg
    assert "&lt;a &amp; b&gt;" in svg and not re.search(r"https?://", svg)
    assert drawing.png(draw, (2, 2)).startswith(b"\x89PNG\r\n")


def test_a_long_name_is_cut():
    assert drawing.cut("x" * 30) == "x" * 23 + "…" and drawing.cut("short") == "short"
