"""How many work at once: locks, a bounded queue over all workers, and a deadline.

Locks are flock(2) on files, so they hold across processes and vanish with a killed one.
"""

import fcntl
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from api.errors import Problem
from api.settings import Settings

LISTENERS = 8  # streams of events at once, over all workers: each holds a thread
POLL = 0.01  # seconds between two tries for a lock


Check = Callable[[], None]  # may raise, to stop waiting or working


def try_lock(path: Path, how: int = os.O_RDWR | os.O_CREAT) -> int | None:
    """The descriptor that holds the lock of a file, or None where another one does."""
    descriptor = os.open(path, how, 0o600)
    if _locked(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def lock(path: Path, check: Check | None = None) -> Iterator[None]:
    """Hold the lock of a file; while waiting, `check` may raise to give up."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if check is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        while check and not _locked(descriptor):
            check()
            time.sleep(POLL)
        yield
    finally:
        os.close(descriptor)


class Places:
    """So many places, over all workers: each is a file, and who holds its lock has it.

    To look at a place is to try its lock, which a second one who looks takes for a place that is
    held. So they look in turn, and none is taken while somebody counts.
    """

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self.files = [folder / f"{name}{n}" for n in range(count)]
        self.turn = folder / f"{name}-turn"

    def take(self) -> int | None:
        """The descriptor that holds a free place until it is closed; None if there is none."""
        with lock(self.turn):
            return next((held for path in self.files if (held := try_lock(path)) is not None), None)

    def taken(self) -> int:
        """How many places are held."""
        with lock(self.turn):
            free = [held for path in self.files if (held := try_lock(path)) is not None]
            for descriptor in free:
                os.close(descriptor)
        return len(self.files) - len(free)


def _turn(patience: float, since: float | None = None) -> str:
    return f"{int(1e9 * ((since or time.time()) + patience)):020}"


class Gate:
    """At most `slots` predictions run and `queue` wait, over all workers; the next is refused."""

    def __init__(self, settings: Settings) -> None:
        folder = settings.folder("locks")
        self.tickets = settings.folder("tickets")
        self.slots = Places(folder, "slot", settings.slots)
        self.listeners = Places(folder, "listener", LISTENERS)
        self.seats = Places(folder, "seat", settings.slots + settings.queue)

    def seat(self) -> AbstractContextManager[None]:
        return self._admitted(self.seats)

    def listener(self) -> ExitStack:
        """A place among those that are told of jobs as they go on; to be closed."""
        with ExitStack() as stack:
            stack.enter_context(self._admitted(self.listeners))
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
        with lock(draft):
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
        return max(0, self.seats.taken() - self.slots.taken())

    def _taken(self, ticket: Path) -> int | None:
        oldest = min(path for path in self.tickets.iterdir() if not path.name.startswith("."))
        if oldest == ticket:
            return self.slots.take()
        with suppress(FileNotFoundError):
            left = try_lock(oldest, os.O_RDWR)
            if left is not None:  # by a killed process
                oldest.unlink(missing_ok=True)
                os.close(left)
        return None

    @contextmanager
    def _admitted(self, places: Places) -> Iterator[None]:
        descriptor = places.take()
        if descriptor is None:
            sentence = "The service is busy and its queue is full; try again in a few seconds."
            raise Problem(503, sentence, {"Retry-After": "5"})
        try:
            yield
        finally:
            os.close(descriptor)


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
