"""Runs all kernel cases under AddressSanitizer and alignment checks: `test_sanitized.py` starts it.

In a process of its own, since the sanitizer must be there before Python is. The guards around every
array are poisoned, so that a single read beside one ends the process with the line that did it.
"""

import ctypes
import sys
from importlib import import_module

import cuda_on_cpu
import kernel_cases
import numpy as np
import strict_cupy

from minicnn.backend import set_precision

poison = getattr(ctypes.CDLL(None), "__asan_poison_memory_region")
poison.argtypes = ctypes.c_void_p, ctypes.c_size_t
aligned = strict_cupy._aligned


def guarded(*arguments):
    array = aligned(*arguments)
    memory = strict_cupy._root(array)
    start, stop = memory.inside.start, memory.inside.stop
    poison(memory.ctypes.data, start)
    poison(memory.ctypes.data + stop, memory.size - stop)
    return array


def main(only, module, old, new):
    """All cases, or case `only` with `old` in the text of `module` changed to `new`."""
    strict_cupy._aligned = guarded
    strict_cupy._check_guards = lambda *_: None
    strict_cupy.machine = cuda_on_cpu.Machine(order=1, sanitize=True)
    sys.modules["cupy"] = strict_cupy.module
    set_precision("float32")
    kernels = import_module("minicnn.kernels.gpu")
    good = kernels.launches.source
    kernels.launches.source = lambda name: (
        good(name).replace(old, new) if name == module else good(name)
    )
    for name, case in kernel_cases.CASES.items():
        if only in ("", name):
            case(kernels, strict_cupy.module, np.random.default_rng(0))
            print(name, "is clean", flush=True)


if __name__ == "__main__":
    main(*(sys.argv[1:] or [""] * 4))
