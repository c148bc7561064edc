"""The front door: the table of commands, flags from dataclasses, errors as one line and an exit code."""
