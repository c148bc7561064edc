"""What was probably meant by a word that is not known.

In:  the word; the words that are known.
Out: the end of a sentence: "; did you mean X?", or a full stop.
Elsewhere: the sentences themselves, in every message about an unknown word.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(word: str, known: Sequence[str] | set[str]) -> str:
    """'; did you mean X?' for the closest of `known`, or a full stop."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else "."
