"""A stand-in for CuPy on NumPy arrays that refuses what CuPy refuses, for machines without a GPU.

The real CuPy, which imports without a driver, is the oracle: a name that it lacks raises here, and
so does a keyword that its function lacks. Arrays of host and device don't mix, nothing is copied
between them unasked, fresh memory holds NaNs, and kernels get their arguments as the driver would:
checked against the signature in the CUDA text, which then runs on the CPU (`cuda_on_cpu`).
Copies, bytes, launches and allocations are counted in `counts`.
"""

import inspect
import operator
import re
import sys
import types
import weakref
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import cuda_on_cpu
import cupy as real
import cupyx.linalg  # noqa: F401 (else loaded later, with the stand-in in CuPy's place)
import numpy as np
from cuda_on_cpu import LaunchError, Parameter

GRANULE = 512  # CuPy's memory pool rounds every allocation up to this
ALIGNMENT = 256
GUARD = 4096  # bytes on either side of an array that nobody may write to

counts: Counter[str] = Counter()
machine: Any = cuda_on_cpu.Machine(order=1)  # what runs the kernels
capacity = 1 << 34  # bytes of device memory
compute_capability = "80"
_forbidden = 0


class TransferError(AssertionError):
    """A copy between host and device where there must be none."""


@contextmanager
def forbid_transfers() -> Iterator[None]:
    """Inside, every copy between host and device raises."""
    global _forbidden
    _forbidden += 1
    try:
        yield
    finally:
        _forbidden -= 1


def _transfer(kind: str, nbytes: int) -> None:
    if _forbidden:
        raise TransferError(f"{kind} copy of {nbytes} bytes where nothing may be copied")
    counts[kind] += 1
    counts[f"{kind} bytes"] += nbytes


# ---------------------------------------------------------------------------- memory


def _track(memory: Any) -> None:
    """Account for an allocation, once, until it is collected."""
    if id(memory) in _known:
        return
    _known[id(memory)] = memory
    _use(memory)  # a pool gives out memory again that earlier kernels may still be using
    size = memory.inside.stop - memory.inside.start
    nbytes = -(-size // GRANULE) * GRANULE
    if counts["live bytes"] + nbytes > capacity:
        raise real.cuda.memory.OutOfMemoryError(nbytes, counts["live bytes"], capacity)
    counts["allocations"] += 1
    counts["allocated bytes"] += nbytes
    counts["live bytes"] += nbytes
    counts["peak bytes"] = max(counts["peak bytes"], counts["live bytes"])
    weakref.finalize(memory, counts.subtract, {"live bytes": nbytes})


_clock = 0  # counts uses of allocations on the main stream
_last_use: dict[int, int] = {}
_known: Any = weakref.WeakValueDictionary()  # the allocations in use


def _use(memory: Any) -> None:
    """Note that the main stream uses an allocation now."""
    global _clock
    _clock += 1
    _last_use[id(memory)] = _clock


class _Memory(np.ndarray):
    """The bytes of one allocation, with guards before and behind."""

    inside: slice


def _aligned(shape: Any, dtype: Any, order: str = "C") -> np.ndarray:
    """Uninitialised memory as a GPU's: aligned, and here full of NaNs (0xFF), as are its guards."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "biufcV":
        raise ValueError(f"Unsupported dtype {dtype}")
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = _Memory(size + 2 * GUARD, np.uint8)
    memory[:] = 0xFF
    start = GUARD - (memory.ctypes.data + GUARD) % ALIGNMENT
    memory.inside = slice(start, start + size)
    flat = memory[memory.inside].view(np.ndarray).view(dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _check_guards(kernel: str, array: np.ndarray) -> None:
    """LaunchError where a kernel has written beside an array."""
    memory = _root(array)
    before, behind = memory[: memory.inside.start], memory[memory.inside.stop :]
    if (before != 0xFF).any() or (behind != 0xFF).any():
        raise LaunchError(f"{kernel} wrote outside of its arrays")


def _root(array: np.ndarray) -> Any:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _fresh(values: Any) -> np.ndarray:
    """`values`, a result of NumPy's, in device memory of its own."""
    values = np.asarray(values)
    out = _aligned(values.shape, values.dtype)
    out[...] = values
    return out


_SCALARS = (
    bool,
    int,
    float,
    complex,
    np.generic,
    type(None),
    str,
    slice,
    type(...),
    np.dtype,
    type,
)


def _unwrap(x: Any) -> Any:
    """What NumPy may see of an argument; host arrays are refused, as CuPy does."""
    if isinstance(x, ndarray):
        return x._array
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, (list, tuple)):
        return type(x)(map(_unwrap, x))
    if isinstance(x, dict):
        return {key: _unwrap(value) for key, value in x.items()}
    if isinstance(x, _SCALARS):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


def _wrap(x: Any, given: tuple[Any, ...] = ()) -> Any:
    """A result of NumPy's as device arrays; memory that it shares with `given` stays shared."""
    if isinstance(x, (np.ndarray, np.generic)):
        if not isinstance(x, np.ndarray) or not _shares(x, given):
            x = _fresh(x)
        return ndarray._around(x)
    if type(x) in (tuple, list):
        return type(x)(_wrap(value, given) for value in x)
    return x


def _shares(x: np.ndarray, given: Any) -> bool:
    if isinstance(given, ndarray):
        return _root(x) is _root(given._array)
    if isinstance(given, (tuple, list)):
        return any(_shares(x, value) for value in given)
    return isinstance(given, dict) and _shares(x, tuple(given.values()))


class _Pointer:
    def __init__(self, address: int) -> None:
        self.ptr = address


# ---------------------------------------------------------------------------- arrays


class ndarray:
    """cupy.ndarray, around a NumPy array that nobody else gets to see."""

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self, shape: Any, dtype: Any = float, memptr: Any = None, order: str = "C"
    ) -> None:
        if memptr is not None:
            raise NotImplementedError("the stand-in makes no arrays around given memory")
        self._held = _aligned(shape, dtype, order)
        _track(_root(self._held))

    @property
    def _array(self) -> np.ndarray:
        """The array, for a use on the main stream."""
        _use(_root(self._held))
        return self._held

    @classmethod
    def _around(cls, array: np.ndarray) -> "ndarray":
        self = object.__new__(cls)
        self._held = array
        _track(_root(array))
        return self

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use `.get()`.")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if kwargs.get("out"):
            (kwargs["out"],) = kwargs["out"]
        function = _lookup(ufunc.__name__)
        return (function if method == "__call__" else getattr(function, method))(*inputs, **kwargs)

    def __array_function__(self, function: Any, types_: Any, args: Any, kwargs: Any) -> Any:
        return _lookup(function.__name__)(*args, **kwargs)

    def get(
        self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> Any:
        _transfer("d2h", self._array.nbytes)
        if out is None:
            return self._array.copy()
        out[...] = self._array
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.shape != self.shape or arr.dtype != self._held.dtype:
            raise ValueError(
                f"{arr.shape} {arr.dtype} does not fit {self.shape} {self._held.dtype}"
            )
        if stream is None:
            _transfer("h2d", arr.nbytes)
            self._array[...] = arr
            return
        counts["async h2d"] += 1
        counts["async h2d bytes"] += arr.nbytes
        stream.copy(arr, self)

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator["ndarray"]:
        return (self[i] for i in range(len(self)))

    def _index(self, index: Any) -> Any:
        if isinstance(index, tuple):
            return tuple(map(self._index, index))
        if isinstance(index, (np.ndarray, list)):  # CuPy sends these to the device
            _transfer("h2d", np.asarray(index).nbytes)
            return index
        return _unwrap(index)

    def __getitem__(self, index: Any) -> "ndarray":
        index = self._index(index)
        value = self._array[index]
        if not isinstance(value, np.ndarray):  # one number: CuPy gives a 0-d view of it
            value = self._array[(*index, ...) if isinstance(index, tuple) else (index, ...)]
        return _wrap(value, (self,))

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            if value.ndim:
                _transfer("h2d", value.nbytes)
            self._array[self._index(index)] = value
        else:
            self._array[self._index(index)] = _unwrap(value)
        counts["launches"] += 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self._held.shape

    @property
    def data(self) -> _Pointer:
        return _Pointer(self._array.ctypes.data)

    @property
    def T(self) -> "ndarray":
        return _wrap(self._array.T, (self,))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(real.ndarray, name):
            raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")
        value = getattr(self._held, name)
        if not callable(value):
            return _wrap(value, (self,)) if isinstance(value, np.ndarray) else value
        known = _method_keywords(name)

        def method(*args: Any, **kwargs: Any) -> Any:
            value = getattr(self._array, name)
            if known and not kwargs.keys() <= known:
                raise TypeError(f"{name}() got unexpected keywords {sorted(kwargs.keys() - known)}")
            result = value(*map(_unwrap, args), **_unwrap(kwargs))
            if result is not None and not _shares(result, (self,)):
                counts["launches"] += 1  # a view costs nothing
            return _wrap(result, (self, *args))

        return method


@cache
def _method_keywords(name: str) -> frozenset[str]:
    """The words of a method's signature, which Cython puts in the first line of the docstring."""
    line = (getattr(real.ndarray, name).__doc__ or "").split("\n")[0]
    return frozenset(re.findall(r"\w+", line))


def _operator(name: str) -> Callable[..., Any]:
    def method(self: ndarray, *others: Any) -> Any:
        if not all(isinstance(o, (ndarray, np.ndarray, np.generic, int, float)) for o in others):
            return NotImplemented
        counts["launches"] += 1
        result = getattr(self._array, name)(*map(_unwrap, others))
        return self if result is self._array else _wrap(result)

    return method


_ARITHMETIC = [
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
]
for _name in (
    *(f"__{prefix}{op}__" for op in _ARITHMETIC for prefix in ("", "r", "i")),
    *(f"__{op}__" for op in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "pos", "abs", "invert")),
):
    if hasattr(real.ndarray, _name):
        setattr(ndarray, _name, _operator(_name))


# ---------------------------------------------------------------------------- streams


class Stream:
    """A second stream, as late as it may be: its copies happen only when somebody waits for them.

    It knows how far the main stream, the one that kernels run on, has come for certain.
    """

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.work: deque[Callable[[], None]] = deque()
        self.done = 0
        self.main_is_past = 0

    def copy(self, source: np.ndarray, target: ndarray) -> None:
        """Enqueue an asynchronous copy; what it must not race with is checked when it happens."""
        memory = id(_root(source))
        if memory not in _page_locked:
            raise TypeError("an asynchronous copy needs page-locked memory, or it is none")
        if memory in _in_flight:
            raise TransferError("page-locked memory filled again before its copy was done")
        _in_flight[memory] = self, self.done + len(self.work) + 1

        def work() -> None:
            if _last_use.get(id(_root(target._held)), 0) > self.main_is_past:
                raise TransferError("copy to an array that a kernel may still be using")
            target._held[...] = source

        self.work.append(work)

    def wait_event(self, event: "Event") -> None:
        """Later work of this stream comes after `event`."""
        if self is _main:
            event.happen()
        elif event.stream is _main:
            self.work.append(lambda: setattr(self, "main_is_past", event.position))

    def synchronize(self) -> None:
        self.run_to(self.done + len(self.work))

    def run_to(self, position: int) -> None:
        while self.done < position:
            self.done += 1
            self.work.popleft()()


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.stream: Stream | None = None

    def record(self, stream: Stream) -> None:
        self.stream = stream
        self.position = _clock if stream is _main else stream.done + len(stream.work)

    def happen(self) -> None:
        if self.stream is not None and self.stream is not _main:
            self.stream.run_to(self.position)

    def synchronize(self) -> None:
        """The host waits, and knows from now on."""
        self.happen()
        for memory, (stream, position) in list(_in_flight.items()):
            if stream is self.stream and position <= self.position:
                del _in_flight[memory]


_main = Stream()
_page_locked: set[int] = set()
_in_flight: dict[int, tuple[Stream, int]] = {}


def alloc_pinned_memory(size: int) -> np.ndarray:
    memory = np.empty(size, np.uint8)
    _page_locked.add(id(memory))
    _kept.append(memory)
    return memory


_kept: list[np.ndarray] = []


def _cuda() -> types.ModuleType:
    """cupy.cuda: what is written here, and the names of the real one's errors."""
    module = types.ModuleType("cupy.cuda")
    own = {
        "Stream": Stream,
        "Event": Event,
        "alloc_pinned_memory": alloc_pinned_memory,
        "get_current_stream": lambda: _main,
        "memory": real.cuda.memory,
        "runtime": types.SimpleNamespace(
            memGetInfo=lambda: (capacity - counts["live bytes"], capacity),
            getDeviceProperties=lambda device: {
                "name": b"stand-in for a T4",
                "multiProcessorCount": 40,
                **dict.fromkeys(("uuid", "pciDomainID", "pciBusID", "pciDeviceID"), 0),
            },
            CUDARuntimeError=real.cuda.runtime.CUDARuntimeError,
        ),
        "driver": real.cuda.driver,
        "Device": lambda device=0: types.SimpleNamespace(
            id=device, compute_capability=compute_capability
        ),
    }
    assert all(hasattr(real.cuda, name) for name in own)
    vars(module).update(own)
    return module


# ---------------------------------------------------------------------------- functions


def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None) -> ndarray:
    if isinstance(a, ndarray) and dtype in (None, a.dtype) and not copy:
        return a
    return array(a, dtype)


def array(
    obj: Any, dtype: Any = None, copy: Any = True, order: str = "K", ndmin: int = 0
) -> ndarray:
    if isinstance(obj, ndarray):
        return ndarray._around(_fresh(np.array(obj._array, dtype, ndmin=ndmin)))
    if isinstance(obj, (list, tuple)) and any(isinstance(v, ndarray) for v in obj):
        return ndarray._around(_fresh(np.array(_unwrap(list(obj)), dtype)))
    host = np.array(obj, dtype, ndmin=ndmin)
    if host.dtype.kind not in "biufcV":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    _transfer("h2d", host.nbytes)
    return ndarray._around(_fresh(host))


def asnumpy(
    a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True
) -> Any:
    return a.get(out=out) if isinstance(a, ndarray) else np.asarray(a)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def empty_like(
    prototype: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    return ndarray(prototype.shape if shape is None else shape, dtype or prototype.dtype)


def is_available() -> bool:
    return True


def get_array_module(*args: Any) -> types.ModuleType:
    return sys.modules["cupy"] if any(isinstance(a, ndarray) for a in args) else np


def _lookup(name: str, theirs: Any = real, ours: Any = np) -> Any:
    """The stand-in for `cupy.name` (or for a submodule's); AttributeError if there is none."""
    if theirs is real and name in _OWN:
        return _OWN[name]
    found = getattr(theirs, name)
    if isinstance(found, types.ModuleType):
        return _submodule(name, found, getattr(ours, name, None))
    if isinstance(found, type) or not callable(found):
        return found
    function = getattr(ours, name, None)
    if function is None:
        raise NotImplementedError(f"the stand-in has no {theirs.__name__}.{name}")
    return _checked(found, function)


def _submodule(name: str, theirs: types.ModuleType, ours: Any) -> types.ModuleType:
    module = types.ModuleType(f"cupy.{name}")
    module.__getattr__ = lambda n: _lookup(n, theirs, ours)  # type: ignore[method-assign]
    return module


def _checked(found: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """NumPy's `function` for device arrays, with the signature that CuPy's `found` has."""
    signature = inspect.signature(found) if isinstance(found, types.FunctionType) else None

    def call(*args: Any, **kwargs: Any) -> Any:
        if signature:
            signature.bind(*args, **kwargs)
        result = function(*_unwrap(args), **_unwrap(kwargs))
        shared = isinstance(result, np.ndarray) and _shares(result, (*args, kwargs))
        counts["launches"] += not shared
        return _wrap(result, (*args, *kwargs.values()))

    if isinstance(function, np.ufunc):
        for method in ("reduce", "accumulate", "at", "outer"):
            setattr(call, method, _ufunc_method(function, method))
    return call


def _ufunc_method(function: np.ufunc, method: str) -> Callable[..., Any]:
    return lambda *a, **k: _wrap(getattr(function, method)(*_unwrap(a), **_unwrap(k)))


# ---------------------------------------------------------------------------- kernels

_SCALAR_TYPES = {"int": np.int32, "long long": np.int64, "float": np.float32, "double": np.float64}
_ELEMENTS = {"float": np.float32, "double": np.float64, "unsigned char": np.uint8, "int": np.int32}


def _argument(
    kernel: str, parameter: Parameter, value: Any, structs: dict[str, list[str]]
) -> bytes:
    """The bytes that go to the driver; TypeError where CuPy would send others than declared."""

    def wrong(why: str) -> TypeError:
        return TypeError(f"{kernel}: parameter {parameter.name} is {parameter.type}, {why}")

    if parameter.type.endswith("*"):
        if isinstance(value, np.intp) and value == 0:
            return value.tobytes()  # the null pointer
        if not isinstance(value, ndarray):
            raise wrong(f"not a {type(value).__name__}")
        if value.dtype != _ELEMENTS[parameter.type[:-1]]:
            raise wrong(f"and the array holds {value.dtype}")
        if not value.flags.c_contiguous:
            raise wrong("and CuPy would pass the start of an array with gaps in silence")
        return np.uint64(value._array.ctypes.data).tobytes()
    if parameter.type in structs:
        names = value.dtype.names if isinstance(value, np.ndarray) and value.size == 1 else None
        if names is None or list(names) != structs[parameter.type]:
            raise wrong("and the structure has other members")
        return value.tobytes()
    if type(value) is not _SCALAR_TYPES[parameter.type]:
        raise wrong(f"not a {type(value).__name__}")
    return value.tobytes()


def _structs(text: str) -> dict[str, list[str]]:
    """The plain structures declared in a CUDA text, each with its members."""
    found = re.findall(r"struct (\w+) \{([^{}()]*)\};", re.sub(r"//.*", "", text))
    return {name: re.findall(r"(\w+)(?:\[\w+\])?\s*[,;]", members) for name, members in found}


def _pointed_at(value: Any) -> list[np.ndarray]:
    """The allocations that an argument of a kernel leads to: its own, or those in its table."""
    if isinstance(value, ndarray):
        return [value._array]
    if not isinstance(value, np.ndarray):
        return []
    tables = [value[n] for n in value.dtype.names or () if value[n].dtype == np.uint64]
    addresses = {int(address) for table in tables for address in table.flat if address}
    return _allocations(addresses) if addresses else []


def _allocations(addresses: set[int]) -> list[np.ndarray]:
    live = [m[m.inside].view(np.ndarray) for m in list(_known.values())]
    live.sort(key=lambda a: a.ctypes.data)
    starts = [a.ctypes.data for a in live]
    found = []
    for address in addresses:
        which = bisect_right(starts, address) - 1
        if which < 0 or address >= starts[which] + live[which].nbytes:
            raise LaunchError(f"{address:#x} is no address in device memory")
        found.append(live[which])
    return found


class RawKernel:
    def __init__(self, code: str, name: str) -> None:
        self.code, self.name = code, name
        self.parameters = cuda_on_cpu.signatures(code)[name]
        self.structs = _structs(code)

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]
    ) -> None:
        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError("grid and block are tuples")
        if len(args) != len(self.parameters):
            raise LaunchError(f"{self.name} takes {len(self.parameters)} arguments")
        pairs = zip(self.parameters, args, strict=True)
        data = [_argument(self.name, p, a, self.structs) for p, a in pairs]
        arrays = [array for a in args for array in _pointed_at(a)]
        counts["launches"] += 1
        counts[f"launch {self.name}"] += 1
        sizes = tuple(max(1, operator.index(size)) for size in grid)  # as CuPy does
        machine.launch(self.code, self.name, sizes, block, data, arrays)
        for array in arrays:
            _check_guards(self.name, array)


class RawModule:
    def __init__(self, *, code: str) -> None:
        self.code = code

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(self.code, name)


_OWN = {
    function.__name__: function
    for function in (
        *(ndarray, asarray, array, asnumpy, empty, empty_like, is_available, get_array_module),
        *(RawModule, RawKernel),
    )
}


def _module() -> types.ModuleType:
    stand_in = types.ModuleType("cupy")
    stand_in.__getattr__ = _lookup  # type: ignore[method-assign]
    stand_in.__version__ = real.__version__  # type: ignore[attr-defined]
    vars(stand_in).update(_OWN, cuda=_cuda())
    return stand_in


module = _module()  # what goes to sys.modules["cupy"]


def reset() -> None:
    """Forget what was counted and is under way, but for the memory that is still in use."""
    for forgotten in (_in_flight, _last_use):
        forgotten.clear()
    live = counts["live bytes"]
    counts.clear()
    counts["live bytes"] = counts["peak bytes"] = live
