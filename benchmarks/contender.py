"""A contender: one library in a process of its own, that does one step whenever it is told to.

Processes keep the libraries' threads, allocators and peak memory apart; being told step by step,
they alternate, so that whatever else the machine does meets all of them alike. Commands and
answers are lines of JSON. Run as a module, this file is the process; `Contender` is its owner.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
LIBRARIES = ("minicnn", "torch", "chainer")
# An allocator that never gives pages back: the strict baseline, as fresh pages are dear.
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
AVX2 = {
    "OPENBLAS_CORETYPE": "Haswell",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
THREADS = ("MINICNN_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PAUSE = 0.03  # seconds in which a contender's idle threads go to sleep


class Contender:
    """`library` in a process; `subject` is "Net" or "Block" of benchmarks/with_<library>.py."""

    def __init__(
        self,
        name: str,
        subject: str,
        *args: Any,
        threads: int,
        python: str = sys.executable,
        environment: dict[str, str] | None = None,
        clock: str = "perf_counter",
    ) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.contender", name.split()[0], clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                **dict.fromkeys(THREADS, str(threads)),
                "PYTHONPATH": str(ROOT),
                **(environment or {}),
            },
        )
        self.ask(subject, *args)

    def ask(self, *command: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended at {command}, exit {self.process.wait()}")
        return json.loads(line)

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def alternate(
    contenders: Sequence[Contender], step: str, seconds: float, least: int = 3, most: int = 25
) -> dict[str, list[float]]:
    """Time `step` of each in turns, for about `seconds`, after one round that does not count."""
    times: dict[str, list[float]] = {c.name: [] for c in contenders}
    for contender in contenders:
        contender.ask(step)
    started = time.monotonic()
    for done in range(most):
        if done >= least and time.monotonic() - started > seconds:
            break
        for contender in contenders:
            time.sleep(PAUSE)
            times[contender.name].append(contender.ask(step))
    return times


def bursts(
    contenders: Sequence[Contender], step: str, seconds: float, rounds: int = 3
) -> dict[str, list[float]]:
    """The median time of `step` in each of some rounds, in which everyone has `seconds` on end.

    For short steps, the threads of which would fall asleep if they took turns one by one.
    """
    times: dict[str, list[float]] = {c.name: [] for c in contenders}
    for _ in range(rounds):
        for contender in contenders:
            time.sleep(PAUSE)
            times[contender.name].append(contender.ask(step, seconds))
    return times


def peak_memory() -> int:
    """The most bytes this process, and the largest child it waited for, ever had in memory."""
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    unit = 1 if sys.platform == "darwin" else 1024
    return sum(resource.getrusage(kind).ru_maxrss for kind in kinds) * unit


def timed(step: Callable[[], None], clock: Callable[[], float], seconds: float = 0) -> float:
    """The time of one step; or the median of as many as fit in `seconds`, after a first one."""
    taken: list[float] = []
    if seconds:
        step()
    while not taken or sum(taken) < seconds:
        started = clock()
        step()
        taken.append(clock() - started)
    return median(taken)


def serve(library: str, clock: str) -> None:
    """Obey commands from stdin: a subject, "Net" say, with its sizes, then the names of steps, each
    with the seconds to repeat it for, or without."""
    answers, sys.stdout = sys.stdout, sys.stderr
    module = import_module(f"benchmarks.with_{library}")
    subject: Any = None
    for line in sys.stdin:
        command, *args = json.loads(line)
        answer: Any = None
        if command == "peak_memory":
            answer = peak_memory()
        elif command.istitle():
            subject = getattr(module, command)(*args)
        else:
            answer = timed(getattr(subject, command), getattr(time, clock), *args)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(*sys.argv[1:])
