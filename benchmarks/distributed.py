"""How training grows with ranks on one machine, and what their messages cost.

python -m benchmarks.distributed
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contender import PAUSE, ROOT, THREADS
from benchmarks.report import machine, table, write

BATCH, TILE = 8, 256
CASES = [(1, 1), (1, 2), (2, 1)]  # ranks, threads of each


class Ranks:
    """A training on some ranks that does one step whenever it is told to."""

    def __init__(self, ranks: int, threads: int) -> None:
        self.case = ranks, threads
        mpiexec = Path(sys.executable).with_name("mpiexec")
        launcher = [str(mpiexec), "-n", str(ranks)] if ranks > 1 else []
        command = [*launcher, sys.executable, "-m", "benchmarks.with_ranks"]
        self.process = subprocess.Popen(
            [*command, str(BATCH), str(TILE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **dict.fromkeys(THREADS, str(threads)), "PYTHONPATH": str(ROOT)},
        )
        self.gradients_alone: float = self._answer()
        self.times: list[list[float]] = []

    def step(self) -> list[float]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def row(self, one: "Ranks") -> dict[str, Any]:
        """What was measured, beside one thread alone."""
        ranks, threads = self.case
        seconds, merging, summing = (list(column) for column in zip(*self.times, strict=True))
        speedups = (a[0] / b[0] for a, b in zip(one.times, self.times, strict=True))
        row: dict[str, Any] = {"ranks": ranks, "threads of each": threads}
        row["s a tile"] = f"{median(seconds) / BATCH:.3f}"
        row["speed-up"] = median(speedups)
        if ranks > 1:
            shares = ([a / b for a, b in zip(x, seconds, strict=True)] for x in (merging, summing))
            row["gradients"], row["small sums"] = (f"{median(share):.1%}" for share in shares)
            row["gradients, ms without a wait"] = 1e3 * self.gradients_alone
        return row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    with ExitStack() as stack:
        contenders = [stack.enter_context(Ranks(*case)) for case in CASES]
        started = time.monotonic()
        while time.monotonic() - started < options.seconds:
            for contender in contenders:
                time.sleep(PAUSE)
                contender.times.append(contender.step())
    rows = [contender.row(contenders[0]) for contender in contenders]
    data = {"machine": machine(), "rounds": len(contenders[0].times), "rows": rows}
    print(table(rows))
    write("distributed", describe(data), data)


def describe(data: dict[str, Any]) -> str:
    return (
        "# Training on several ranks of one machine\n\n"
        "Written by `python -m benchmarks.distributed`. "
        + ", ".join(value for name, value in data["machine"].items() if name != "torch")
        + f". One training step of the U-Net on {BATCH} tiles of {TILE} pixels in all, float32; "
        "each row in processes of its own, taking turns step by step "
        f"({data['rounds']} rounds). Times are medians; the speed-up is that over one thread, the "
        "median over rounds. *Gradients* is the share of a step's time in the one message with "
        "all gradients (15 MB), *small sums* that in the messages of batch norm and the losses; "
        "both contain the wait for the rank that comes last. The last column is the first of the "
        "two when nobody waits: what sending while the backward pass still runs could save at "
        "most.\n\n" + table(data["rows"]) + "\n"
    )


if __name__ == "__main__":
    main()
