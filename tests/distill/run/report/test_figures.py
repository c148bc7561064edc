"""distill.run.report.figures: drawings that are whole in themselves, of the page's color, and escaped."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from distill.run.report import figures
from distill.run.report.collect import Epoch

STRANGE = ["<script>alert(1)</script>", "$\\bad{$", 'quote"&', "日本", "long " * 30]


def curves(label="student"):
    epochs = [Epoch(1, 40.0, 1.0, None), Epoch(2, None, 0.5, 0.7)]
    return [
        figures.Curve(label, epochs, figures.COLORS[0]),
        figures.Curve("control", epochs[:1], figures.COLORS[1], "--"),
    ]


def drawings():
    return {
        "loss": figures.loss(curves(STRANGE[0])),
        "top1": figures.top1(curves(STRANGE[1]), [(STRANGE[2], 90.0)]),
        "confusion": figures.confusion(np.eye(5, dtype=int), STRANGE),
        "classes": figures.class_accuracy([10.0, None, 100.0, 0.0, 50.0], STRANGE),
    }


@pytest.mark.parametrize("name", ["loss", "top1", "confusion", "classes"])
def test_a_drawing_is_well_formed_and_needs_nothing_from_elsewhere(name):
    svg = drawings()[name]
    assert svg.startswith("<svg") and svg.endswith("</svg>") and "<script" not in svg
    assert "http" not in svg and "<style" not in svg and "font-family" not in svg
    found = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert float(found.get("width").removesuffix("pt")) < 1000
    assert "currentColor" in svg and figures.PAGE_COLOR not in svg and "#ffffff" not in svg


def test_names_are_there_as_text():
    assert "&lt;script&gt;" in figures.loss(curves(STRANGE[0]))
    shown = ElementTree.fromstring(drawings()["classes"].replace("xlink:href", "href"))
    texts = {each.text.strip() for each in shown.iter("text") if each.text}
    assert {"<script>alert(1)</scrip…", 'quote"&', "日本"} <= texts


def test_no_two_drawings_share_an_id():
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in drawings().values()]
    together = [each for some in ids for each in set(some)]
    assert len(together) == len(set(together)) > 4
    for svg in drawings().values():  # and what one refers to is in it
        assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg)) <= set(re.findall(r'\bid="([^"]+)"', svg))


@pytest.mark.parametrize("classes", [2, 12, 13, 40, 41, 1000])
def test_a_confusion_matrix_is_sensible_for_two_to_a_thousand_classes(classes):
    names = [f"class {i}" for i in range(classes)]
    counts = np.eye(classes, dtype=int) * 50
    counts[0, 1] = 7
    svg = figures.confusion(counts, names)
    assert len(svg) < 100_000
    assert (">7<" in re.sub(r"\s*(<[^>]*>)\s*", r"\1", svg)) == (classes <= figures.COUNTS_UP_TO)
    assert ("class 1<" in svg) == (classes <= figures.NAMES_UP_TO)
    assert len(figures.class_accuracy([50.0] * classes, names)) < 100_000


def test_a_cell_is_as_strong_as_its_share_of_the_row():
    shaded = figures._shaded(np.array([[1.0, 0.0], [0.5, 0.5]]))
    assert shaded[0, 1, 3] == 0 and shaded[0, 0, 3] == pytest.approx(2 * shaded[1, 0, 3], abs=1)


def test_a_run_of_no_or_one_epoch_can_be_drawn():
    for count in (0, 1):
        one = [figures.Curve("student", [Epoch(1, 50.0, 1.0, 1.0)][:count], figures.COLORS[0])]
        assert figures.loss(one).startswith("<svg") and figures.top1(one).startswith("<svg")
