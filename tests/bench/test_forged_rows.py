"""Names of files and classes end no row of a table that is written, and are not formulas in a spreadsheet."""

import csv
import io

from bench import report


def test_no_cell_ends_its_row():
    text = report.markdown([["name", "top-1"], ["---", "---:"], ["a | b\n| forged | 99.99 |\x1b[2J", "10"]])
    assert text.splitlines()[2:] == ["| a \\| b\\n\\| forged \\| 99.99 \\|\\x1b[2J | 10 |"]


def test_no_text_is_a_formula_and_numbers_stay():
    values = {"a": "=cmd|' /C calc'!A0", "b": "@x", "c": "-x", "d": "+1", "e": -1.5, "f": None, "g": "a=b"}
    found = report.csv_values(values)
    assert found == {
        **{"a": "'=cmd|' /C calc'!A0", "b": "'@x", "c": "'-x", "d": "'+1"},
        **{"e": -1.5, "f": None, "g": "a=b"},
    }
    text = io.StringIO()
    csv.DictWriter(text, list(found)).writerow(found)
    assert not any(cell.startswith(("=", "@")) for cell in next(csv.reader([text.getvalue()])))
