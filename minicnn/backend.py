"""Where arrays live: the array module and the kernels are read off the data, never off a global."""

import platform
import sys
from collections import deque
from collections.abc import Iterable, Iterator
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
        return "device gpu needs CuPy: pip install 'cupy-cuda12x[ctk]'"
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


def out_of_memory() -> tuple[type[BaseException], ...]:
    """The errors that say so of a GPU, to be caught."""
    cupy = sys.modules.get("cupy")
    return (cupy.cuda.memory.OutOfMemoryError,) if cupy is not None else ()


# ---------------------------------------------------------------------------- batches


def staged(batches: Iterable[tuple[np.ndarray, ...]], device: str) -> Iterator[tuple[Array, ...]]:
    """Each batch of arrays on the device, the next one on its way while this one is used.

    On a GPU the arrays of a batch hold good only until the next one is asked for: two sets of them
    take turns, filled through page-locked memory by a second stream. On the CPU nothing is copied.
    """
    if device == "cpu":
        yield from batches
        return
    import cupy

    copying, computing = cupy.cuda.Stream(non_blocking=True), cupy.cuda.get_current_stream()
    slots = deque([_Slot(cupy), _Slot(cupy)])
    ready: deque[_Slot] = deque()
    for batch in batches:
        slots[0].fill(batch, copying, computing)
        ready.append(slots[0])
        slots.rotate()
        if len(ready) == 2:
            yield from ready.popleft().lend(computing)
    for slot in ready:
        yield from slot.lend(computing)


class _Slot:
    """A batch's place on the device, and the page-locked memory through which it gets there."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self.copied, self.used = cupy.cuda.Event(), cupy.cuda.Event()
        self.locked: list[np.ndarray] = []
        self.arrays: list[Array] = []

    def fill(self, batch: tuple[np.ndarray, ...], copying: Any, computing: Any) -> None:
        """Start the copy. It waits on the GPU until the batch before has been used."""
        self.copied.synchronize()  # the copy before this one has left the page-locked memory
        if [a.shape for a in self.arrays] != [a.shape for a in batch]:
            self.locked = [self._page_locked(a) for a in batch]
            self.arrays = [self.cupy.empty(a.shape, a.dtype) for a in batch]
            self.used.record(computing)  # their memory may come from arrays that are still in use
        copying.wait_event(self.used)
        for source, locked, array in zip(batch, self.locked, self.arrays, strict=True):
            locked[...] = source
            array.set(locked, stream=copying)
        self.copied.record(copying)

    def lend(self, stream: Any) -> Iterator[tuple[Array, ...]]:
        """The batch, for as long as the caller's next kernels take."""
        stream.wait_event(self.copied)
        yield tuple(self.arrays)
        self.used.record(stream)

    def _page_locked(self, like: np.ndarray) -> np.ndarray:
        memory = self.cupy.cuda.alloc_pinned_memory(like.nbytes)
        return np.frombuffer(memory, like.dtype, like.size).reshape(like.shape)
