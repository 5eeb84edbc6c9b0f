"""One team of threads for the fast kernels, each with work arrays of its own.

NumPy lets go of Python's lock while it computes, so plain threads do share the work. Each is
given whole pieces of an image that fit in its core's cache, and BLAS is told to use one thread
while they run: two levels of threads would fight for the same cores.

The pieces a task is cut into do not depend on the number of threads, and sums over pieces are
made in the order of the pieces: the same numbers come out on one thread or on eight.
"""

import ctypes
import itertools
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from queue import SimpleQueue
from typing import Any

import numpy as np

# The C library's, called with Python's lock held: to hand that over takes longer.
_current_core = (
    getattr(ctypes.PyDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None
)

Job = Callable[[int], None]

PATIENCE = 1e-6  # seconds that a thread waits before it asks for Python's lock
BUFFER = 2048  # values: where a row is shorter than its buffer, NumPy copies what it adds to rows
MANY = 2000  # work arrays of different shapes that a thread remembers


class _Task:
    """Calls of `job(0)` ... `job(count - 1)`, taken one by one by whoever is free."""

    def __init__(self, count: int, job: Job) -> None:
        self.count, self.job = count, job
        self.numbers = itertools.count()
        self.error: BaseException | None = None
        self.finished: SimpleQueue[None] = SimpleQueue()

    def work(self) -> None:
        before = np.setbufsize(BUFFER)
        try:
            while (number := next(self.numbers)) < self.count:
                self.job(number)
        except BaseException as error:  # handed to the caller, whose task this is
            self.error = error
            self.numbers = itertools.count(self.count)
        finally:
            np.setbufsize(before)


class _Team:
    """Threads that wait for tasks; the caller of `run` is one of the team.

    A caller that comes out of a sleep may find itself on the core that a helper used last, and
    Linux likes to wake the helper there as well: both then share one core for a while (a 128-pixel
    tile takes 25 ms in place of 18). So helpers are kept off the core that the caller is on.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.busy = threading.Lock()
        self.tasks: list[SimpleQueue[_Task | None]] = []
        self.helpers: list[threading.Thread] = []
        self.avoided: int | None = None  # the core that helpers are kept off

    def hire(self) -> None:
        for _ in range(len(self.tasks), self.size - 1):
            inbox: SimpleQueue[_Task | None] = SimpleQueue()
            helper = threading.Thread(target=self._serve, args=(inbox,), daemon=True)
            try:
                helper.start()
            except RuntimeError:  # a browser has no threads, a container may have few
                self.size = len(self.tasks) + 1
                return
            self.tasks.append(inbox)
            self.helpers.append(helper)
            self.avoided = None

    def keep_clear(self) -> None:
        """Keep the helpers off the core that this thread is on, where that can be asked for."""
        if _current_core is None or (here := _current_core()) == self.avoided:
            return
        self.avoided = here
        others = os.sched_getaffinity(0) - {here}
        for helper in self.helpers:
            if others and helper.native_id:
                with suppress(OSError):  # not allowed here: it was for speed only
                    os.sched_setaffinity(helper.native_id, others)

    def dismiss(self) -> None:
        with self.busy:
            for inbox in self.tasks:
                inbox.put(None)
            self.tasks, self.helpers = [], []

    @staticmethod
    def _serve(inbox: "SimpleQueue[_Task | None]") -> None:
        while (task := inbox.get()) is not None:
            task.work()
            task.finished.put(None)

    def run(self, count: int, job: Job) -> None:
        task = _Task(count, job)
        hands = min(count, self.size, _own.most)
        # Whoever finds the team at work for another caller does the task alone.
        if hands > 1 and self.busy.acquire(blocking=False):
            try:
                self.hire()
                self.keep_clear()
                helpers = self.tasks[: hands - 1]
                for inbox in helpers:
                    inbox.put(task)
                task.work()
                for _ in helpers:
                    task.finished.get()
            finally:
                self.busy.release()
        else:
            task.work()
        if task.error is not None:
            raise task.error


def _blas() -> list[Any]:
    """What sets the number of BLAS's threads; nothing in a browser, where there is but one."""
    if sys.platform == "emscripten":
        return []
    from threadpoolctl import ThreadpoolController

    controllers: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    return controllers


class _Settings:
    """While anyone is inside, BLAS runs on one thread, and Python's lock changes hands at once.

    By default a thread sleeps until the lock is free or 5 ms have passed, and to be woken takes
    longer than most of what follows. The last to leave restores both.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.libraries: list[Any] | None = None
        self.before: list[int] = []
        self.interval = sys.getswitchinterval()

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                if self.libraries is None:
                    self.libraries = _blas()
                self.before = [library.num_threads for library in self.libraries]
                for library in self.libraries:
                    library.set_num_threads(1)
                self.interval = sys.getswitchinterval()
                sys.setswitchinterval(PATIENCE)
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                for library, count in zip(self.libraries or [], self.before, strict=True):
                    library.set_num_threads(count)
                sys.setswitchinterval(self.interval)


class _Own(threading.local):
    """A thread's work arrays, whatever else it knows of them, and how many may help it."""

    def __init__(self) -> None:
        self.known: dict[Any, Any] = {}
        self.most = sys.maxsize


def _cores() -> int:
    wanted = os.environ.get("MINICNN_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_team = _Team(_cores())
_settings = _Settings()
_own = _Own()


def num_threads() -> int:
    """How many threads the fast kernels use: MINICNN_NUM_THREADS, else one per core."""
    return _team.size


def set_num_threads(count: int) -> None:
    """Use `count` threads from now on."""
    global _team
    if count < 1:
        raise ValueError(f"expected at least one thread, not {count}")
    old, _team = _team, _Team(count)
    old.dismiss()


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """What this thread runs in the block is done by no more threads than these, itself included.

    A team shortens the wait but costs more in all: where others wait for the cores anyway, each
    caller does better on a part of them.
    """
    before, _own.most = _own.most, count
    try:
        yield
    finally:
        _own.most = before


def run(count: int, job: Job) -> None:
    """Call `job(0)` ... `job(count - 1)` on all threads, in any order; return when all are done."""
    with _settings:
        _team.run(count, job)


def _forget() -> None:
    """A forked child has none of the threads: it starts with a team of its own."""
    global _team, _settings
    if _settings.inside:
        sys.setswitchinterval(_settings.interval)
    _team, _settings = _Team(_team.size), _Settings()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@cache
def shares(count: int, parts: int) -> tuple[range, ...]:
    """0 ... count - 1 in so many runs, or fewer, of about the same length."""
    parts = min(count, parts)
    return tuple(range(i * count // parts, (i + 1) * count // parts) for i in range(parts))


def scratch(name: str, *shape: int) -> np.ndarray:
    """A float32 work array of this thread, its content undefined; the next call of that name
    gives the same memory. It grows as needed and stays: fresh pages cost more than arithmetic.
    """
    known = _own.known
    array: np.ndarray | None = known.get((name, shape))
    return _cut(known, name, shape) if array is None else array


def last_use(name: str, use: Any) -> bool:
    """Whether work array `name` served for this very `use` the last time; from now on it does."""
    known = _own.known
    before = known.get((name, "use"))
    known[name, "use"] = use
    return bool(before == use)


def _cut(known: dict[Any, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    size = math.prod(shape)
    if len(known) > MANY:
        known.clear()
    memory = known.get((name,))
    if memory is None or memory.size < size:
        for key in [key for key in known if key[0] == name]:
            del known[key]
        memory = known[(name,)] = np.empty(size, np.float32)
    array: np.ndarray = memory[:size].reshape(shape)
    known[name, shape] = array
    return array
