"""Progress bars, which only a terminal shows."""

import os
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

TERMINAL = "MINICNN_TERMINAL"  # set where what a process writes goes to a terminal by way of others

T = TypeVar("T")


def progress(
    items: Iterable[T] | None = None, total: int | None = None, desc: str = "", unit: str = "it"
) -> tqdm:
    """A progress bar on a terminal; silent elsewhere, so that logs stay readable."""
    disable = False if TERMINAL in os.environ else None
    return tqdm(items, total=total, desc=desc, unit=unit, disable=disable, leave=False)


def terminal() -> dict[str, str]:
    """What a process that writes to our terminal must find in its environment, to know of it."""
    if not sys.stderr.isatty():
        return {}
    size = os.get_terminal_size(sys.stderr.fileno())
    return {TERMINAL: "1", "COLUMNS": str(size.columns), "LINES": str(size.lines)}
