"""Ctrl-C and SIGTERM: while a command still imports, each ends it in one line.

`python -m segment.train` imports the package before the module, and the package this one before
all else. Whoever imports `segment` as a library keeps the signals' handlers as they are.
"""

import os
import signal
import sys
from typing import NoReturn

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt it is no Exception: no handler of errors takes it."""


def _leave(number: int, frame: object) -> NoReturn:
    """Nothing has been begun yet, and an import is no place to raise in."""
    os.write(2, f"{WORDS[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)


if sys.argv[:1] == ["-m"]:  # what Python has there while it looks for the module to run
    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def imported() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, as ever."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
