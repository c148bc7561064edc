"""The language of everything that git holds: American spelling, and no words that only insiders know."""

import subprocess
from pathlib import Path

import pytest
import voice

ROOT = Path(__file__).parents[1]
FOREIGN = ("tests/golden/data/", "tests/helpers/voice.py", "tests/test_voice.py")
"""The words of others, and the lists themselves."""
ALLOWED = ("--flavour", "Twins, Hiera", "twins_svt_small", '"twins"')
"""What a test types as a British user would; a family of networks that is called so."""


def texts() -> dict[str, str]:
    """File -> content, of all text files that git holds. Skips where the tree came without git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this tree is not a clone of the repository")
    found = {}
    for name in listed.stdout.split("\0"):
        if name and not name.startswith(FOREIGN) and (ROOT / name).is_file():
            content = (ROOT / name).read_bytes()
            if b"\0" not in content:
                found[name] = f"{name}\n{content.decode('utf-8', 'replace')}"
    return found


def spoken(text: str) -> str:
    """The text without what is allowed in it."""
    for words in ALLOWED:
        text = text.replace(words, "")
    return text


def test_every_text_file_is_in_american_english_and_the_words_of_the_field():
    read = texts()
    assert len(read) > 300
    found = {
        f"{name}: {each}" for name, text in read.items() for each in voice.wrong(spoken(text), voice.WORDS)
    }
    assert sorted(found) == []


@pytest.mark.parametrize(
    "text",
    [
        "add_at_centre(kernel)",
        "COLOURS = 3",
        "def test_normalisation_of_images",
        "is normalised",
        "mislabelled",
        "it is no image",
        "The file lies in a folder",
        "the twin of it",
        "_has_twin(node)",
        "distils a teacher",
        "one after the other, in turns",
    ],
)
def test_a_wrong_word_is_found(text):
    assert len(voice.wrong(text, voice.WORDS)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "there is no image, and here are no labels",
        "it is no longer open",
        "aria-labelledby",
        "center, color, percent, precise, promise, realistic, emphasis, distilled, exercise",
        "the wise otherwise advise; a disguise; analysis",
    ],
)
def test_right_words_are_not_found(text):
    assert voice.wrong(text, voice.WORDS) == set()
