"""What means: this can't be used, or can't be done here; one sentence says why."""

from importlib import import_module
from typing import Any


class InputError(ValueError):
    """Bad input: one sentence that names the file and what was expected.

    `advice` is for whoever types commands: which option helps. The text has both, `problem` the
    sentence alone.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(f"{problem}: {advice}" if advice else problem)
        self.problem, self.advice = problem, advice


class DiskFull(InputError):
    """A file could not be written whole."""


def needed(what: str, *packages: str) -> list[Any]:
    """The packages, which an extra installs; InputError, saying what needs them, without one."""
    try:
        return [import_module(name) for name in packages]
    except ImportError as error:
        raise InputError(f"{what} needs {error.name}: pip install {error.name}") from None
