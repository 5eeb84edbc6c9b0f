"""Where arrays live: the array module and the kernels are read off the data, never off a global."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray; the two share no base class

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
        return "device gpu needs CuPy: pip install 'minicnn[gpu]'"
    if not cupy.is_available():
        return "device gpu needs an NVIDIA GPU with its driver, and CuPy finds none"
    return None


def to_device(x: Array, device: str) -> Array:
    """`x` on "cpu" or "gpu"; the array itself when it is there already."""
    if device == "cpu":
        return to_host(x)
    import cupy

    return cupy.asarray(x)


def to_host(x: Array) -> np.ndarray:
    """`x` as a NumPy array; a copy only if it lives on a GPU."""
    xp = array_module(x)
    return x if xp is np else xp.asnumpy(x)
