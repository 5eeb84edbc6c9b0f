"""How many work at once: locks, a bounded queue over all workers, and a deadline.

Locks are flock(2) on files, so they hold across processes and vanish with a killed one.
"""

import fcntl
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from api.errors import Problem
from api.settings import Settings

LISTENERS = 8  # streams of events at once, over all workers: each holds a thread
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


def _turn(patience: float, since: float | None = None) -> str:
    return f"{int(1e9 * ((since or time.time()) + patience)):020}"


def _held(paths: list[Path]) -> int:
    """How many of the files somebody holds the lock of; each is tried for an instant."""
    count = len(paths)
    for path in paths:
        free = try_lock(path)
        if free is not None:
            os.close(free)
            count -= 1
    return count


class Gate:
    """At most `slots` predictions run and `queue` wait, over all workers; the next is refused."""

    def __init__(self, settings: Settings) -> None:
        folder = settings.folder("locks")
        self.tickets = settings.folder("tickets")
        self.slots = [folder / f"slot{n}" for n in range(settings.slots)]
        self.listeners = [folder / f"listener{n}" for n in range(LISTENERS)]
        self.seats = [folder / f"seat{n}" for n in range(settings.slots + settings.queue)]

    @contextmanager
    def seat(self) -> Iterator[None]:
        with lock(self.seats, self._refuse):
            yield

    def listener(self) -> ExitStack:
        """A place among those that are told of jobs as they go on; to be closed."""
        with ExitStack() as stack:
            stack.enter_context(lock(self.listeners, self._refuse))
            return stack.pop_all()

    @contextmanager
    def slot(
        self, check: Check, patience: float = 0.0, since: float | None = None
    ) -> Iterator[Check]:
        """Hold one of the slots: first come (`since`, or now), first served, in all workers.

        Who has `patience` queues as if it had come so many seconds later. It yields what is to be
        called between two steps of the work: where somebody waits who would go first, the slot
        is given up and waited for again.
        """
        taken: int | None = self._wait(check, _turn(patience, since))

        def give_way() -> None:
            nonlocal taken
            if patience and taken is not None and self._waiting(_turn(patience)):
                os.close(taken)
                taken = None
                taken = self._wait(check, _turn(patience))

        try:
            yield give_way
        finally:
            if taken is not None:
                os.close(taken)

    def _wait(self, check: Check, turn: str) -> int:
        """Who waits has a ticket, a locked file named by its turn; the first tries for a slot."""
        ticket = self.tickets / f"{turn}-{os.urandom(4).hex()}"
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
        """How many requests have a seat, but no slot."""
        return max(0, _held(self.seats) - self.taken())

    def taken(self) -> int:
        """How many slots are held."""
        return _held(self.slots)

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
