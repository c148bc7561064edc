"""distill.run.report.page: one file that is whole in itself, says what there is and what is not, and never
fails a run.
"""

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from finished_run import write_photos, write_run

from distill import __main__ as cli
from distill import models
from distill.run.report import collect, page
from runtime.errors import UsageError
from runtime.images import open_images


class Reader(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, text):
        if not self.open or self.open[-1] != "style":
            self.words.append(text)


def read(path):
    text = path.read_text(encoding="utf-8")
    found = Reader(text)
    assert found.open == []
    return found


def test_the_command_writes_one_page_with_everything(finished, capsys):
    assert cli.main(["report", str(finished)]) == 0
    assert capsys.readouterr().out == f"{finished / 'report.html'}\n"
    found = read(finished / "report.html")
    network = models.build("resnet20", 3, {"width": 0.25})
    parameters = sum(weights.numel() for weights in network.parameters())
    for words in (
        f"resnet20, {parameters:,} parameters",
        "15 of ",
        "3: blue, green, red",
        "43.00 % after epoch 3 (n=15)",
        "On 15 validation images",
        "always saying the commonest class would be right for 33.33 %",
        "The 15 worst validation images",
        "taken for",
        "torch 9.9",
        "student: resnet20",
        "distill report",
    ):
        assert words in found.text, words
    assert sum(tag == "img" for tag, _ in found.elements) == 30
    assert sum(tag == "svg" for tag, _ in found.elements) == 4


def test_nothing_is_fetched_and_nothing_runs(finished):
    page.write([finished], finished / "report.html")
    text = (finished / "report.html").read_text()
    found = Reader(text)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "data:").startswith(("data:image/", "data:", "#")), (tag, attributes)
    assert "http://" not in text and "https://" not in text and "@import" not in text


def test_what_files_say_is_escaped(tmp_path):
    names = ("<script>alert(1)</script>".replace("/", "∕"), "a&b", '"><img src=x onerror=alert(2)>')
    run = write_run(tmp_path / "run<b>", write_photos(tmp_path / "photos", names))
    (run / "args.yaml").write_text("student: </pre><script>alert(3)</script>\n")
    page.write([run], tmp_path / "out.html")
    found = read(tmp_path / "out.html")
    assert not {"script", "b>"} & {tag for tag, _ in found.elements}
    assert not [attributes for tag, attributes in found.elements if "onerror" in attributes]
    assert "<script>alert(1)" in found.text and "alert(3)" in found.text and "run<b>" in found.text


def test_without_the_data_the_page_has_the_rest_and_says_so(finished, photos):
    shutil.rmtree(photos)
    page.write([finished], finished / "report.html")
    found = read(finished / "report.html")
    assert "The validation images are not shown" in found.text and "no such folder" in found.text
    assert "43.00 %" in found.text and not [tag for tag, _ in found.elements if tag == "img"]
    assert sum(tag == "svg" for tag, _ in found.elements) == 2


def test_data_that_a_file_may_not_name_is_not_opened(finished, tmp_path):
    from distill import checkpoint as checkpoints

    changed = checkpoints.load(finished / "best.pth")
    changed.lineage["data"]["val_spec"] = f"wds/x:pipe:touch {tmp_path / 'PWNED'};#"
    checkpoints.save(changed, finished / "best.pth")
    page.write([finished], finished / "report.html")
    assert not (tmp_path / "PWNED").exists()
    assert "all else is only opened when typed" in read(finished / "report.html").text


def test_a_lineage_of_other_types_is_shown_as_far_as_it_goes_or_refused(finished, capsys):
    from distill import checkpoint as checkpoints

    changed = checkpoints.load(finished / "best.pth")
    strange = {"model": [1], "train_images": "many"}
    changed.lineage = dict.fromkeys(("data", "teacher", "recipe", "versions"), strange)
    checkpoints.save(changed, finished / "best.pth")
    page.write([finished], finished / "report.html")
    assert "does not say where they are" in read(finished / "report.html").text
    for strange in (5, [1], "x", {"file": 5, "train_spec": {}}):
        changed.lineage = dict.fromkeys(("data", "teacher", "recipe", "versions"), strange)
        checkpoints.save(changed, finished / "best.pth")
        assert cli.main(["report", str(finished)]) == 4
        assert "best.pth: damaged checkpoint (lineage." in capsys.readouterr().err


def test_data_may_be_named_and_is_said_to_be_other_data(finished, tmp_path):
    write_photos(tmp_path / "other", count=2)
    assert cli.main(["report", str(finished), "--data", str(tmp_path / "other")]) == 0
    text = read(finished / "report.html").text
    assert "On 6 validation images" in text and "are not those of the training" in text
    assert cli.main(["report", str(finished), "--data", str(tmp_path / "gone")]) == 2


def test_several_runs_are_side_by_side(tmp_path, photos, capsys):
    one = write_run(tmp_path / "a" / "run", photos, {"gain_points": 1.5})
    two = write_run(tmp_path / "b" / "run", photos, seed=1)
    assert cli.main(["report", str(one), str(two), "--output", str(tmp_path / "both.html")]) == 0
    found = read(tmp_path / "both.html")
    assert "Side by side" in found.text and "a/run" in found.text and "b/run" in found.text
    assert sum(tag == "section" for tag, _ in found.elements) == 2
    assert sum(tag == "svg" for tag, _ in found.elements) == 2 + 2 * 4


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"gain_points": 1.25}, "+1.25 points, measured with one seed"),
        (
            {"gain_points": 1.25, "gain_low_points": -0.5, "gain_high_points": 3.0},
            "+1.25 points (95 % interval -0.50 to +3.00); cannot tell",
        ),
        (
            {"gain_points": 1.25, "gain_low_points": 0.5, "gain_high_points": 2.0},
            "+1.25 points (95 % interval +0.50 to +2.00)",
        ),
        ({"gain_points": "much"}, None),
    ],
)
def test_what_the_teacher_added_comes_with_its_interval(tmp_path, photos, result, said):
    run = collect.read_run(write_run(tmp_path / "run", photos, result))
    assert page.result(run).get("what the teacher added") == said


def test_rows_and_confused_pairs_by_hand():
    import numpy as np

    counts = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    rows = page.class_rows(counts, ["a", "b", "c"])
    assert [(row.images, row.right, row.percent, row.taken_for) for row in rows] == [
        (4, 3, 75.0, "b (1)"),
        (0, 0, None, ""),
        (4, 2, 50.0, "a (2)"),
    ]
    assert page.confused(counts, ["a", "b", "c"]) == [("c", "a", 2), ("a", "b", 1)]


def test_a_run_that_is_over_is_never_failed_by_its_report(finished, photos, capsys, monkeypatch):
    images = open_images(str(photos), "val")
    page.after_training(finished, images, "cpu")
    assert capsys.readouterr().err.endswith(f"report: {finished / 'report.html'}\n")

    def broken(*_, **__):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(page, "html", broken)
    page.after_training(finished, images, "cpu")
    err = capsys.readouterr().err
    assert err == f"report: not made (two lines). Try again: distill report {finished}\n"


def test_without_the_extra_one_line_says_how_to_get_it(finished):
    code = "import sys; sys.modules['matplotlib'] = None\nfrom distill.__main__ import main\nsys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", str(finished)], capture_output=True, text=True
    )
    assert done.returncode == 3 and done.stdout == ""
    assert done.stderr == 'error: a report needs matplotlib. Install it: pip install "large2small[report]"\n'
    assert not (finished / "report.html").exists()


def test_bad_input_is_one_line(finished, tmp_path, capsys):
    for words, said in (
        ([], "no run given"),
        ([tmp_path / "none"], "no such folder"),
        ([tmp_path], "has no best.pth"),
        ([finished, finished], "given twice"),
        ([finished, "--output", finished / "best.pth"], "ends in .html"),
    ):
        assert cli.main(["report", *map(str, words)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and said in err
    with pytest.raises(UsageError):
        page.write([finished], finished / "best.pth" / "x.html")
    (finished / "result.json").write_text(json.dumps({"best": {"top1_percent": float("nan")}}))
    assert cli.main(["report", str(finished / "best.pth")]) == 0


def test_pictures_and_drawings_say_what_they_show(finished):
    assert cli.main(["report", str(finished)]) == 0
    found = read(finished / "report.html").elements
    drawings = [about for tag, about in found if tag == "svg"]
    assert len(drawings) == 4 and all(about["role"] == "img" for about in drawings)
    assert len({about["aria-label"] for about in drawings}) == 4
    shown = [about["alt"] for tag, about in found if tag == "img"]
    assert shown and all(any(f"labeled {name}" in alt for name in ("blue", "green", "red")) for alt in shown)


def test_runs_are_compared_only_in_what_one_of_them_says(tmp_path, photos):
    runs = [write_run(tmp_path / name, photos, seed=place) for place, name in enumerate("ab")]
    page.write(runs, tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    rows = text[text.index("Side by side") : text.index("</table>")]
    assert "student, top-1" in rows and "teacher, top-1" not in rows and "early end" not in rows
