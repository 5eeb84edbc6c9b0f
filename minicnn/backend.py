"""Where arrays live: the array module and the kernels are read off the data, never off a global."""

import os
import platform
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray; the two share no base class

FULL = 2  # cudaErrorMemoryAllocation, which is CUDA_ERROR_OUT_OF_MEMORY
PRECISIONS = ("auto", "tf32", "float32")
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class DeviceError(RuntimeError):
    """The device that was asked for can't be used; the message says what is missing."""


def array_module(x: Array) -> ModuleType:
    """numpy or cupy, whichever `x` belongs to."""
    cupy = sys.modules.get("cupy")  # an array of CuPy's exists only once CuPy is imported
    return cupy if cupy is not None and isinstance(x, cupy.ndarray) else np


def kernels_for(x: Array) -> ModuleType:
    """The module of kernels that read `x`: `minicnn.kernels.cpu` or `minicnn.kernels.gpu`."""
    device = "cpu" if array_module(x) is np else "gpu"
    return import_module(f"minicnn.kernels.{device}")  # late: the kernels build on the ops


def check_float(*arrays: Array) -> None:
    """Raise TypeError unless all arrays are float32 or all are float64."""
    dtypes = {a.dtype for a in arrays}
    if len(dtypes) != 1 or dtypes.pop() not in FLOATS:
        names = ", ".join(str(a.dtype) for a in arrays)
        raise TypeError(f"expected arrays all of float32 or all of float64, not {names}")


def choose_device(device: str) -> str:
    """Turn "auto", "cpu" or "gpu" into "cpu" or "gpu"; DeviceError when a GPU can't be had."""
    if device not in ("auto", "cpu", "gpu"):
        raise DeviceError(f"device {device!r} is none of auto, cpu, gpu")
    if device == "cpu":
        return "cpu"
    missing = _missing_for_gpu()
    if missing and device == "gpu":
        raise DeviceError(missing)
    return "cpu" if missing else "gpu"


def _missing_for_gpu() -> str | None:
    try:
        import cupy
    except ImportError:
        return "device gpu needs CuPy: pip install 'cupy-cuda12x[ctk]'"
    if not cupy.is_available():
        return "device gpu needs an NVIDIA GPU with its driver, and CuPy finds none"
    return None


_wanted = os.environ.get("MINICNN_PRECISION") or "auto"


def set_precision(precision: str) -> None:
    """Choose what convolutions on GPUs multiply in, in this process and from now on.

    "float32"; "tf32": on tensor cores, which round every factor to 10 bits behind the point, so
    that results are off by some 1e-3 of the largest; "auto", as it is at first unless
    MINICNN_PRECISION says otherwise: tf32 where the GPU has such cores (sm_80 and later).
    """
    global _wanted
    _wanted = _checked(precision)


def precision(device: str) -> str:
    """What convolutions multiply in on the CPU or on the current GPU: "tf32" or "float32".

    DeviceError where tf32 was asked for and can't be had.
    """
    wanted = _checked(_wanted)
    if wanted == "float32" or (wanted == "auto" and device == "cpu"):
        return "float32"
    if device == "gpu" and import_module("minicnn.kernels.gpu").has_tensor_cores():
        return "tf32"
    if wanted == "tf32":
        raise DeviceError(f"precision tf32 needs a GPU of sm_80 or later, {_own(device)}")
    return "float32"


def _own(device: str) -> str:
    if device == "cpu":
        return "and this is the CPU"
    import cupy

    return f"and this is an sm_{cupy.cuda.Device().compute_capability}"


def _checked(precision: str) -> str:
    if precision not in PRECISIONS:
        raise DeviceError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    return precision


def where(device: str) -> str:
    """A device with what it multiplies in, for people to read: "cpu", or "gpu in tf32"."""
    return device if device == "cpu" else f"{device} in {precision(device)}"


def to_device(x: Array, device: str) -> Array:
    """`x` on "cpu" or "gpu"; the array itself when it is there already."""
    if device == "cpu":
        return to_host(x)
    import cupy

    return cupy.asarray(x)


def to_host(x: Array) -> np.ndarray:
    """`x` as a NumPy array; a copy only if it lives on a GPU."""
    xp = array_module(x)
    host: np.ndarray = x if xp is np else xp.asnumpy(x)
    return host


def describe_device(device: str) -> str:
    """The name of the GPU, or of the processor."""
    if device == "cpu":
        return f"CPU ({platform.machine()})"
    import cupy

    return str(cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode())


def synchronize(device: str) -> None:
    """Wait until a GPU has done all that it was told."""
    if device == "gpu":
        import cupy

        cupy.cuda.get_current_stream().synchronize()


def free_memory() -> int:
    """Bytes of the GPU's memory that nobody uses."""
    import cupy

    return int(cupy.cuda.runtime.memGetInfo()[0])


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that a GPU's memory is full: CuPy's pool's, or a call's of CUDA."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return False
    calls = cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError
    if isinstance(error, calls):
        return bool(error.status == FULL)
    return isinstance(error, cupy.cuda.memory.OutOfMemoryError)


# ---------------------------------------------------------------------------- batches


def staged(batches: Iterable[tuple[np.ndarray, ...]], device: str) -> Iterator[tuple[Array, ...]]:
    """Each batch of arrays on the device, the next one on its way while this one is used.

    On a GPU the arrays of a batch hold good only until the next one is asked for: two sets of them
    take turns, filled through page-locked memory by a second stream. On the CPU nothing is copied.
    """
    if device == "cpu":
        yield from batches
        return
    from minicnn.kernels.gpu.staging import staged as staged_on_gpu

    yield from staged_on_gpu(batches)
