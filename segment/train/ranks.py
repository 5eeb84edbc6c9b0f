"""Many processes, one training: `mpiexec -n K python -m segment.train ...`.

Each rank computes its part of the very batches that one process would take, and all of them end
every step with the same numbers: gradients, statistics, losses are sums over the ranks. So nothing
needs a vote. NaN, the best epoch, the early stop are the same everywhere; rank 0 writes and speaks.

MPI (mpi4py) carries arrays of NumPy, NCCL (through CuPy) those on GPUs. The GPU part has never
run on hardware.
"""

import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from minicnn import set_num_threads
from minicnn.backend import Array, array_module
from minicnn.layers import Layer
from minicnn.ranks import Ranks
from segment.cli import ending
from segment.errors import InputError

# Where launchers say how many processes they started (or, the third, on this node at least).
LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS")
NODES = "AWS_BATCH_JOB_NUM_NODES"  # each of which starts the job's command, launcher or not
THREADS = "MINICNN_NUM_THREADS"
HANDED_OVER = "MINICNN_HANDED_OVER"  # set where one process has begun what ranks go on with
POLL = 0.01  # seconds between two looks at whether the others have come
GRACE = 5  # seconds after which a rank that fails is taken to be the only one

T = TypeVar("T")


def join() -> "World":
    """The ranks that this process was started with; InputError if they can't find each other.

    The wrong mpiexec for the MPI library that is loaded starts K processes which each take
    themselves for the only one, and would write the same run K times.
    """
    started = {name: int(os.environ.get(name) or 1) for name in (*LAUNCHERS, NODES)}
    name = max(started, key=lambda key: started[key])
    if started[name] == 1:
        return World()
    try:
        with warnings.catch_warnings():  # mpi4py's are about what is an error below
            warnings.simplefilter("ignore")
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"{name} is {started[name]}, and ranks need an MPI library: pip install "
            f"mpi4py mpich ({error})"
        ) from None
    if started[name] > MPI.COMM_WORLD.size:
        library = " ".join(MPI.Get_library_version().strip("\0").split("\n")[0].split())
        raise InputError(
            f"{name} is {started[name]}, but MPI knows of {MPI.COMM_WORLD.size} rank: start with "
            f"the mpiexec that belongs to its library, {library}"
        )
    return Mpi(MPI)


class World(Ranks):
    """The ranks of a training, as the training sees them. This one is alone, and does nothing."""

    def __enter__(self) -> "World":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        pass

    def use(self, device: str) -> None:
        """Settle on a device, before its memory is looked at."""

    def speak(self) -> None:
        """From here on, say what the process that handed over has not said."""

    def share(self, f: Callable[[], T]) -> T:
        """What `f` returns on rank 0, which alone calls it."""
        return f()

    def in_turn(self, f: Callable[[], T]) -> T:
        """What `f` returns, one rank of each node calling it before the others: what it leaves on
        the disk is there for them."""
        return f()

    def part(self, items: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """This rank's part of `items`, equally many on each rank. Where they do not come out even
        some come again; the second array is True for these."""
        size = -(-len(items) // self.count)
        places = np.arange(self.rank * size, (self.rank + 1) * size)
        return items[places % len(items)], places >= len(items)

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows of all ranks, in their order; equally many on each rank."""
        return rows

    def merge(self, net: Layer) -> None:
        """After a backward pass: gradients are added up over the ranks, all in one message."""

    def broadcast(self, arrays: Iterable[Array]) -> None:
        """Put rank 0's values in the place of each array."""

    def highest(self, number: int) -> int:
        """The highest of all ranks' numbers."""
        return number

    def wait(self) -> None:
        """Until all ranks have come here; asleep, so that those at work have the cores."""


class Mpi(World):
    """Ranks of MPI; on GPUs, each with one of its node's, NCCL carries the arrays."""

    def __init__(self, MPI: Any) -> None:
        self.mpi, self.comm = MPI, MPI.COMM_WORLD
        self.node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.exits = self.comm.Dup()
        self.rank, self.count = self.comm.rank, self.comm.size
        self.nccl: Any = None
        self.flat: Array = None

    def __enter__(self) -> "Mpi":
        if self.rank > 0 or HANDED_OVER in os.environ:
            sys.stdout = sys.stderr = open(os.devnull, "w")
        if THREADS not in os.environ:
            count = len(set().union(*self.node.allgather(cores())))  # Open MPI may share them out
            set_num_threads(max(1, count // self.node.size))
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """All ranks leave together; one that fails alone takes the others with it."""
        self.speak()
        if self._all_come(self.exits, None if error is None else GRACE) or error is None:
            return
        try:
            sentence, code = ending(error)
        except SystemExit as end:
            sentence, code = "", int(end.code or 0)
        except BaseException:
            sentence, code = traceback.format_exc(), 1
        print(f"rank {self.rank}: {sentence}", file=sys.__stderr__, flush=True)
        time.sleep(0.2)  # for the launcher to pass it on: to abort ends that, too
        self.comm.Abort(code)

    def use(self, device: str) -> None:
        if device == "cpu":
            return
        import cupy
        import cupyx.distributed

        runtime = cupy.cuda.runtime
        own = (
            self.node.rank % runtime.getDeviceCount()
        )  # a launcher may show each rank its own only
        properties = runtime.getDeviceProperties(own)
        identity = [properties[key] for key in ("uuid", "pciDomainID", "pciBusID", "pciDeviceID")]
        seen = set(map(tuple, self.node.allgather(identity)))
        if len(seen) < self.node.size:
            raise InputError(
                f"{self.node.size} ranks on a node share {len(seen)} GPUs: each needs one"
            )
        cupy.cuda.Device(own).use()
        try:
            start = cupyx.distributed.init_process_group
            self.nccl = start(self.count, self.rank, use_mpi=True)  # MPI hands out NCCL's key
        except RuntimeError as error:
            raise InputError(f"GPUs on several ranks need NCCL: {error}") from None

    def speak(self) -> None:
        if self.rank == 0:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__

    def share(self, f: Callable[[], T]) -> T:
        return self.comm.bcast(f() if self.rank == 0 else None)

    def in_turn(self, f: Callable[[], T]) -> T:
        if self.node.rank == 0:
            result = f()
        self._all_come(self.node)
        return result if self.node.rank == 0 else f()

    def sum(self, a: Array) -> Array:
        xp = array_module(a)
        total = xp.array(a, order="C")
        self._sum_in_place(total)
        return total

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        everyone = np.empty((self.count, *rows.shape), rows.dtype)
        self.comm.Allgather(np.ascontiguousarray(rows), everyone)
        return everyone.reshape(-1, *rows.shape[1:])

    def merge(self, net: Layer) -> None:
        arrays = list(net.gradients().values())
        xp, sizes = array_module(arrays[0]), [a.size for a in arrays]
        if self.flat is None or self.flat.size != sum(sizes):
            self.flat = xp.empty(sum(sizes), arrays[0].dtype)
        ends = np.cumsum(sizes).tolist()
        parts = [self.flat[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        for a, part in zip(arrays, parts, strict=True):
            part[...] = a.reshape(-1)
        self._sum_in_place(self.flat)
        for a, part in zip(arrays, parts, strict=True):
            a[...] = part.reshape(a.shape)

    def broadcast(self, arrays: Iterable[Array]) -> None:
        for a in arrays:
            self._send(a, 0)

    def hand_round(self, arrays: Sequence[Array], owners: Sequence[int]) -> None:
        for a, owner in zip(arrays, owners, strict=True):
            self._send(a, owner)

    def _send(self, a: Array, root: int) -> None:
        if array_module(a) is np:
            self.comm.Bcast(a, root)
        else:
            self.nccl.broadcast(a, root)

    def highest(self, number: int) -> int:
        return self.comm.allreduce(number, self.mpi.MAX)

    def wait(self) -> None:
        self._all_come(self.comm)

    def _sum_in_place(self, a: Array) -> None:
        if array_module(a) is np:
            self.comm.Allreduce(self.mpi.IN_PLACE, a)
        else:
            self.nccl.all_reduce(a, a)

    def _all_come(self, comm: Any, patience: float | None = None) -> bool:
        """Whether all ranks of `comm` come here in time."""
        until = None if patience is None else time.monotonic() + patience
        request = comm.Ibarrier()
        while not request.Test():
            if until is not None and time.monotonic() > until:
                return False
            time.sleep(POLL)
        return True


def cores() -> set[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
