"""Lines for a person that are not the result of a command.

In:  a sentence.
Out: one line on stderr, so that the result on stdout stays what --json promises.
Elsewhere: results (export.stages.report), errors (runtime.cli.outcome).
"""

from __future__ import annotations

import sys


def note(text: str) -> None:
    """A line that is not the result: stderr, so that --json stays one object."""
    print(f"note: {text}", file=sys.stderr)
