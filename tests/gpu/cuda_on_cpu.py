"""Compiles the text of a kernel with g++ and runs it on NumPy arrays, to see if it is right."""

import ctypes
import hashlib
import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
CACHE = Path(os.environ.get("CUDA_ON_CPU_CACHE", Path(tempfile.gettempdir()) / "cuda-on-cpu"))
FLAGS = ("-std=c++17", "-O2", "-march=native", "-fno-strict-aliasing", "-shared", "-fPIC")
WARNINGS = ("-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-const-variable")
SANITIZERS = ("-fsanitize=address,alignment", "-fno-sanitize-recover=alignment", "-g")
KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^{}]*?\)\s+)?(\w+)\s*\(([^)]*)\)'
)
SHARED = re.compile(r"__shared__\s+([\w<>, ]+?)\s+(\w+)((?:\[\w+\])*);")


class LaunchError(RuntimeError):
    """What a GPU would answer with an error, or with silence and wrong numbers."""


class Parameter(NamedTuple):
    """One parameter of a kernel: `float*`, `int`, `Conv`, without const and __restrict__."""

    type: str
    name: str


def compile_cached(command: list[str], text: str) -> Path:
    """The shared library g++ makes of `text`; kept for the next run of the tests."""
    key = hashlib.sha256("\n".join([*command, HEADER.read_text(), text]).encode()).hexdigest()[:24]
    library = CACHE / f"{key}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            source, built = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
            source.write_text(text)
            run = subprocess.run(
                [*command, str(source), "-o", str(built)], capture_output=True, text=True
            )
            if run.returncode:
                raise RuntimeError(run.stderr)
            built.replace(library)
    return library


@cache
def signatures(text: str) -> dict[str, tuple[Parameter, ...]]:
    """The kernels in a .cu text, after its macros, each with its parameters."""
    run = subprocess.run(
        ["g++", "-E", "-P", "-x", "c++", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    found = {}
    for name, parameters in KERNEL.findall(run.stdout):
        words = [re.sub(r"\bconst\b|__restrict__", "", p).split() for p in parameters.split(",")]
        found[name] = tuple(Parameter(" ".join(w[:-1]).replace(" *", "*"), w[-1]) for w in words)
    return found


def only(text: str, kernel: str) -> str:
    """A .cu text without the other variants of `kernel` that a macro makes: quicker to compile."""
    return re.sub(rf"^[A-Z_]+\((?!{kernel},)\w+, .*\)$", "", text, flags=re.M)


@cache
def _library(text: str, sanitize: bool) -> ctypes.CDLL:
    body = SHARED.sub(r"static \1 \2\3; cpu::clear_shared(&\2, sizeof \2);", text)
    body = body.replace('extern "C" __global__', "__global__")
    tail = "\n".join(
        f'extern "C" bool launch_{name}(const unsigned* g, const unsigned* b, void** a, int o)'
        f" {{ return cpu::launch([](void** p) {{ cpu::call({name}, p); }}, g, b, a, o); }}"
        for name in signatures(text)
    )
    full = f'#include "{HEADER}"\n#line 1 "kernel.cu"\n{body}\n{tail}\n'
    command = ["g++", *FLAGS, *WARNINGS, *(SANITIZERS if sanitize else ())]
    library = ctypes.CDLL(str(compile_cached(command, full)))
    library.last_error.restype = ctypes.c_char_p
    return library


class Machine:
    """Runs kernels on the CPU. `order` is that of the threads between two barriers: 0 forward,
    1 backward, from 2 on shuffled; with `sanitize` in a process that has AddressSanitizer loaded.
    """

    def __init__(self, order: int = 0, sanitize: bool = False) -> None:
        self.order, self.sanitize = order, sanitize

    def launch(
        self,
        text: str,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: list[bytes],
        arrays: list[np.ndarray],
    ) -> None:
        """Run kernel `name` of a .cu text with its arguments as the bytes the driver would get."""
        library = _library(only(text, name), self.sanitize)
        function = getattr(library, f"launch_{name}")
        function.restype = ctypes.c_bool
        buffers = [ctypes.create_string_buffer(a, len(a)) for a in arguments]
        addresses = (ctypes.c_void_p * len(buffers))(*map(ctypes.addressof, buffers))
        if not function(_triple(grid), _triple(block), addresses, ctypes.c_int(self.order)):
            raise LaunchError(f"{name}: {library.last_error().decode()}")


def _triple(sizes: tuple[int, ...]) -> ctypes.Array:
    return (ctypes.c_uint * 3)(*(*sizes, 1, 1)[:3])
