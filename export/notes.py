"""Lines for a person that are not the result of a command.

In:  a sentence.
Out: one line on stderr, so that the result on stdout stays what --json promises.
Elsewhere: results (export.stages.report), errors (runtime.cli.outcome).
"""

from __future__ import annotations

from runtime.cli.terminal import say


def note(text: str) -> None:
    """A line that is not the result: stderr, so that --json stays one object."""
    say(f"note: {text}")
