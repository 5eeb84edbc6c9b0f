"""`python -m segment.train` as several ranks of this machine, where they are faster.

On two cores two ranks of one thread take 0.153 s a tile, one process of two threads 0.185 s. So a
training on the CPU that nobody started by mpiexec becomes mpiexec itself, once all is checked and
before anything is written. From there on it is what it would be if it had been started so: its
signals, exit codes and files. Only the command does this, never a call from Python.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from segment.progress import terminal
from segment.train import command
from segment.train.ranks import HANDED_OVER, LAUNCHERS, THREADS, cores

MOST = 4  # ranks of a batch of 8: with fewer than two crops each, weights are half of their work
WORTH = 500  # crops: of fewer, a training ends before what ranks save has paid for their start
PATIENCE = 60  # seconds for ranks to start and to add up a megabyte
TRIAL = """
import sys, numpy
from mpi4py import MPI
a = numpy.ones(1 << 17)
MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, a)
sys.exit(int(a[-1]) != int(sys.argv[1]))
"""
CPU_SHARE = Path("/sys/fs/cgroup/cpu.max")


class Wish(Exception):
    """This training is to go on as so many ranks."""


def main(argv: list[str]) -> None:
    """The command as a process of its own."""
    try:
        command.main(argv, may_hand_over)
    except Wish as wish:
        count = wish.args[0]
    else:
        return
    _become(count)  # when all that the training held has been given up


def may_hand_over(batch: int, crops: int, began: int | None) -> None:
    """Raise Wish where so many crops, `batch` a step, are trained faster by ranks that can be had.

    began: the number of ranks of the run that this one continues; None if it is a new one.
    """
    count = ranks_for(batch, crops, began, len(cores()), os.environ)
    if count == 1:
        return
    if why := _fails(count):
        print(f"one process trains, where {count} would be faster: {why}")
    else:
        raise Wish(count)


def ranks_for(
    batch: int, crops: int, began: int | None, cores: int, environment: Mapping[str, str]
) -> int:
    """How many ranks train this fastest; 1 where somebody has chosen otherwise."""
    chosen = any(name in environment for name in (*LAUNCHERS, THREADS))
    if chosen or began == 1 or _rationed(cores):
        return 1
    if began and began <= cores and batch % began == 0:
        return began
    if began is None and crops < WORTH:
        return 1
    return max(n for n in range(1, MOST + 1) if batch % n == 0 and cores % n == 0)


def _rationed(cores: int) -> bool:
    """Whether a container may use less than its cores: ranks that wait for others use them, too."""
    try:
        quota, period = CPU_SHARE.read_text().split()
    except (OSError, ValueError):
        return False
    return quota != "max" and int(quota) < cores * int(period)


def _mpiexec() -> str | None:
    """The launcher installed beside Python, as the extra `mpi` does, and not that of a system."""
    if not find_spec("mpi4py"):
        return None
    return shutil.which("mpiexec", path=str(Path(sys.executable).parent))


def _fails(count: int) -> str:
    """Why ranks can't be had here: no MPI, no sockets, no shared memory; or nothing."""
    mpiexec = _mpiexec()
    if not mpiexec:
        return "pip install mpi4py mpich"
    try:
        trial = subprocess.run(
            [mpiexec, "-n", str(count), sys.executable, "-c", TRIAL, str(count)],
            env=os.environ | _environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if trial.returncode == 0:
        return ""
    lines = [line for line in trial.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"mpiexec ended with code {trial.returncode}"


def _environment() -> dict[str, str]:
    """Ranks of this machine only, also where a cluster's scheduler would hand out others."""
    return {"HYDRA_LAUNCHER": "fork", "HYDRA_RMK": "user", "PYTHONUNBUFFERED": "1"}


def _become(count: int) -> None:
    mpiexec = _mpiexec()
    assert mpiexec
    environment = {**os.environ, **_environment(), **terminal(), HANDED_OVER: "1"}
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # who reads it in a shell's background is stopped
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    python = [sys.executable, *sys.orig_argv[1:]]
    os.execve(mpiexec, [mpiexec, "-n", str(count), *python], environment)
