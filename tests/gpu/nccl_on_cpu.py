"""A stand-in for cupyx.distributed, to go with `strict_cupy`: NCCL's collectives through MPI.

The real `NCCLBackend` is the oracle: a method that it lacks or a call that its signature does not
take raises. So do arrays of the host, arrays with gaps, and types that NCCL does not know. What it
can't show: whether NCCL itself, its streams and its topology, behave.
"""

import inspect
import sys
import types
import warnings

import strict_cupy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of NCCL's absence
    import cupyx.distributed as real

DTYPES = "bBiIlLqQefdFD"  # of the real one's table, which is empty where NCCL is missing


class Backend:
    """One rank's end of the communicator."""

    def __init__(self, n_devices, rank, use_mpi):
        from mpi4py import MPI

        assert use_mpi and (n_devices, rank) == (MPI.COMM_WORLD.size, MPI.COMM_WORLD.rank)
        self._mpi, self._comm = MPI, MPI.COMM_WORLD.Dup()

    def all_reduce(self, in_array, out_array, op="sum", stream=None):
        assert op == "sum"
        self._comm.Allreduce(self._host(in_array).copy(), self._host(out_array))

    def broadcast(self, in_out_array, root=0, stream=None):
        self._comm.Bcast(self._host(in_out_array), root)

    @staticmethod
    def _host(array):
        if not isinstance(array, strict_cupy.ndarray):
            raise TypeError(f"NCCL moves arrays on GPUs, not {type(array)}")
        if array.dtype.char not in DTYPES:
            raise TypeError(f"Unknown dtype {array.dtype} for NCCL")
        if not array.flags.c_contiguous:
            raise RuntimeError("NCCL requires arrays to be either c- or f-contiguous")
        strict_cupy.counts["nccl"] += 1
        return array._array


for name in ("all_reduce", "broadcast"):
    own, theirs = (inspect.signature(getattr(c, name)) for c in (Backend, real.NCCLBackend))
    assert own == theirs, name


def init_process_group(n_devices, rank, *, backend="nccl", host=None, port=None, use_mpi=False):
    assert backend == "nccl"
    return Backend(n_devices, rank, use_mpi)


assert inspect.signature(init_process_group) == inspect.signature(real.init_process_group)


def install():
    """Put both stand-ins in the place of CuPy, on a machine with two GPUs."""
    import cupyx

    sys.modules["cupy"] = strict_cupy.module
    sys.modules["cupyx.distributed"] = cupyx.distributed = types.SimpleNamespace(
        init_process_group=init_process_group
    )
    cuda = strict_cupy.module.cuda
    cuda.runtime.getDeviceCount = lambda: 2
    device = cuda.Device()
    device.use = lambda: None
    cuda.Device = lambda number=0: device
    one = cuda.runtime.getDeviceProperties
    cuda.runtime.getDeviceProperties = lambda number: {**one(number), "pciBusID": number}
