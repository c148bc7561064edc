"""Words that no text of this repository uses, and what to write instead.

In:  a text.
Out: the wrong words in it, each with its replacement.
Elsewhere: which texts are read (tests/test_voice.py, tests/test_docs.py, tests/runtime/cli/test_help.py).
"""

from __future__ import annotations

import re

BRITISH = {
    r"licence": "license",
    r"colour": "color",
    r"behaviour": "behavior",
    r"favour": "favor",
    r"flavour": "flavor",
    r"honour": "honor",
    r"labell(?!edby)": "labeled",  # aria-labelledby is a name of HTML
    r"modell": "modeled",
    r"cancelled|cancelling": "canceled",
    r"travell": "traveled",
    r"neighbour": "neighbor",
    r"cent(re|ring)": "center",
    r"(?<![a-z])grey": "gray",
    r"artefact": "artifact",
    r"catalogue": "catalog",
    r"analys(e|ed|ing)(?![a-z])": "analyze",
    r"(?<![a-z])distil(s?)(?![a-z])": "distill",
    r"(?<![a-z])(fulfil|enrol)(s?)(?![a-z])": "fulfill",
    r"(normal|quant|optim|initial|regular|serial|recogn|organ|general|special|summar|minim|maxim"
    r"|random|standard|util|visual|synchron|token|vector|parallel|penal|stabil|equal|local|final"
    r"|factor|real|emphas|character|categor)is(e|ed|es|er|ers|ing|ation|ations)(?![a-z])": "-ize",
    r"(?<![a-z])(whilst|amongst|learnt|burnt|spelt)(?![a-z])": "while, among, learned",
}
"""Pattern, whatever the case -> what to write; parts of identifiers count."""

PRIVATE = {
    r"\b(is|are) no\s+(?!longer\b|more than\b)": "is not a",
    r"\b(lie|lies|lay) (in|beside|on|under|there|elsewhere)\b": "is in, is beside",
    r"(?-i:\bin turns\b)": "alternating",
    r"\bheld[- ]back\b": "calibration images, evaluation images",
    r"(?<![a-z])twins?(?![a-z])": "the same in the other language or form; a copy",
    r"\bthe whole way\b": "the whole pipeline",
}
"""The same for whole words that only insiders understand. "there is no" is fine."""

WORDS = BRITISH | PRIVATE


def wrong(text: str, words: dict[str, str]) -> set[str]:
    """What the text has of these words: {"colour: write color"}."""
    return {
        f"{match.group().strip()}: write {better}"
        for unwanted, better in words.items()
        for match in re.finditer(unwanted, text, re.IGNORECASE)
        if not re.search(r"\bt?here\s+$", text[max(0, match.start() - 8) : match.start()], re.IGNORECASE)
    }
