"""How many work at once: locks, a bounded queue over all workers, and a deadline.

Locks are flock(2) on files, so they hold across processes and vanish with a killed one.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from api.errors import Problem
from api.settings import Settings

POLL = 0.01  # seconds between two tries for a lock


def try_lock(path: Path, how: int = os.O_RDWR | os.O_CREAT) -> int | None:
    """The descriptor that holds the lock of a file, or None where another one does."""
    descriptor = os.open(path, how, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except BlockingIOError:
        os.close(descriptor)
        return None


@contextmanager
def lock(paths: list[Path], check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of one of the files; while waiting, `check` may raise to give up."""
    while True:
        for path in paths:
            descriptor = try_lock(path)
            if descriptor is not None:
                try:
                    yield
                    return
                finally:
                    os.close(descriptor)
        check()
        time.sleep(POLL)


class Gate:
    """At most `slots` predictions run and `queue` wait, over all workers; the next is refused."""

    def __init__(self, settings: Settings) -> None:
        folder = settings.folder("locks")
        self.tickets = settings.folder("tickets")
        self.slots = [folder / f"slot{n}" for n in range(settings.slots)]
        self.seats = [folder / f"seat{n}" for n in range(settings.slots + settings.queue)]

    @contextmanager
    def seat(self) -> Iterator[None]:
        with lock(self.seats, self._refuse):
            yield

    @contextmanager
    def slot(self, check: Callable[[], None]) -> Iterator[None]:
        """Hold one of the slots: first come, first served, in all workers.

        Who waits has a ticket, a locked file named by its time; the oldest one tries for a slot.
        """
        ticket = self.tickets / f"{time.time_ns():020}-{os.urandom(4).hex()}"
        draft = ticket.with_name(f".{ticket.name}")
        with lock([draft]):
            os.rename(draft, ticket)  # a ticket that is seen is locked already
            try:
                while (taken := self._taken(ticket)) is None:
                    check()
                    time.sleep(POLL)
            finally:
                ticket.unlink(missing_ok=True)
        try:
            yield
        finally:
            os.close(taken)

    def _taken(self, ticket: Path) -> int | None:
        oldest = min(path for path in self.tickets.iterdir() if not path.name.startswith("."))
        if oldest == ticket:
            return next((s for slot in self.slots if (s := try_lock(slot)) is not None), None)
        with suppress(FileNotFoundError):
            left = try_lock(oldest, os.O_RDWR)
            if left is not None:  # by a killed process
                oldest.unlink(missing_ok=True)
                os.close(left)
        return None

    @staticmethod
    def _refuse() -> None:
        sentence = "The service is busy and its queue is full; try again in a few seconds."
        raise Problem(503, sentence, {"Retry-After": "5"})


class Deadline:
    """Raises once a request has taken too long; call it between two steps of the work."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.end = seconds, time.monotonic() + seconds

    def __call__(self) -> None:
        if time.monotonic() > self.end:
            raise Problem(
                503,
                f"This took longer than {self.seconds:g} s; send large scenes with the header "
                "'Prefer: respond-async' and follow the job.",
                {"Retry-After": "60"},
            )
