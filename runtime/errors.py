"""Every failure a user can cause, with the exit code a command ends with.

In:  nothing.
Out: exception classes; each carries `exit_code`, and its message is one line: what was wrong, what was
expected, how to fix it.
Elsewhere: turning an exception into that line on stderr (runtime.cli.flags).
"""


class Large2SmallError(Exception):
    """Base of all errors this project raises on purpose."""

    exit_code = 1


class GateError(Large2SmallError):
    """A check did not hold: parity, accuracy budget, a loss that became NaN. Exit code 1."""

    exit_code = 1


class UsageError(Large2SmallError):
    """What the user gave cannot be used: flags, recipe keys, folders, images. Exit code 2."""

    exit_code = 2


class DataError(UsageError):
    """A data set is missing, empty, unreadable or has too few classes. Exit code 2."""


class MissingError(Large2SmallError):
    """Something needed is not here: a package, a GPU, an execution provider, disk space. Exit code 3."""

    exit_code = 3


class ArtifactError(Large2SmallError):
    """A checkpoint or artifact cannot be used here: truncated, another architecture, another class order.
    Exit code 4.
    """

    exit_code = 4


class Interrupted(Large2SmallError):
    """Stopped by a signal after saving. Exit code 128 + its number: 130 for Ctrl-C, 143 for SIGTERM, 129 for
    SIGHUP.
    """

    exit_code = 130

    def __init__(self, message: str = "", number: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + number
