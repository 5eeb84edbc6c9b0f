"""How many work at once: locks, a bounded queue over all workers, and a deadline.

Locks are flock(2) on files, so they hold across processes and vanish with a killed one.
"""

import fcntl
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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


Check = Callable[[], None]  # may raise, to stop waiting or working


def _turn(patience: float) -> str:
    return f"{time.time_ns() + int(patience * 1e9):020}"


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
    def slot(self, check: Check, patience: float = 0.0) -> Iterator[Check]:
        """Hold one of the slots: first come, first served, in all workers.

        Who has `patience` queues as if it had come so many seconds later. It yields what is to be
        called between two steps of the work: where somebody waits who would go first, the slot
        is given up and waited for again.
        """
        taken: int | None = self._wait(check, patience)

        def give_way() -> None:
            nonlocal taken
            if patience and taken is not None and self._waiting(_turn(patience)):
                os.close(taken)
                taken = None
                taken = self._wait(check, patience)

        try:
            yield give_way
        finally:
            if taken is not None:
                os.close(taken)

    def _wait(self, check: Check, patience: float) -> int:
        """Who waits has a ticket, a locked file named by its turn; the first tries for a slot."""
        ticket = self.tickets / f"{_turn(patience)}-{os.urandom(4).hex()}"
        draft = ticket.with_name(f".{ticket.name}")
        with lock([draft]):
            os.rename(draft, ticket)  # a ticket that is seen is locked already
            try:
                while (taken := self._taken(ticket)) is None:
                    check()
                    time.sleep(POLL)
            finally:
                ticket.unlink(missing_ok=True)
        return taken

    def _waiting(self, before: str) -> bool:
        return any(name < before for name in os.listdir(self.tickets) if name[0] != ".")

    def waiting(self) -> int:
        return sum(name[0] != "." for name in os.listdir(self.tickets))

    def taken(self) -> int:
        """How many slots are held."""
        free = [held for slot in self.slots if (held := try_lock(slot)) is not None]
        for held in free:
            os.close(held)
        return len(self.slots) - len(free)

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


class Connected:
    """Raises once the client has hung up; call it between two steps of the work."""

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self.socket = environ.get("gunicorn.socket")
        self.poll = select.poll()
        if self.socket:
            self.poll.register(self.socket, select.POLLIN)

    def __call__(self) -> None:
        if self.socket and self.poll.poll(0) and not self.socket.recv(1, socket.MSG_PEEK):
            raise Problem(503, "The client has hung up.")
