"""Launches of the kernels in minicnn/kernels/cuda: the text says what each takes, and gets no else.

CuPy hands a launch whatever it is given: a Python int goes as 8 bytes and a float as a double, an
array of bytes as an address like any other, and the kernel reads what lies there. So every argument
passes `_argument`, which makes of it what the CUDA text declares, or raises TypeError.
"""

import re
import time
from functools import cache
from pathlib import Path
from typing import Any

import cupy
import numpy as np

CUDA = Path(__file__).parents[1] / "cuda"
FILES = {  # what each module of kernels is made of
    "conv": ("quad", "tile", "windows", "convolve", "conv"),
    "conv_tf32": ("quad", "tile", "tensor_tile", "windows", "convolve", "conv_tf32"),
    "conv_dw": ("quad", "tile", "windows", "convolve_dw", "conv_dw"),
    "conv_dw_tf32": ("quad", "tile", "tensor_tile", "windows", "convolve_dw", "conv_dw_tf32"),
    "norm": ("quad", "norm"),
    "pool": ("quad", "pool"),
    "loss": ("loss",),
    "adam": ("table", "adam"),
    "muon": ("quad", "tile", "windows", "table", "muon"),
    "reduce": ("quad", "reduce"),
    "pointwise": ("pointwise",),
}
CONV = np.dtype(  # struct Conv of windows.cu
    [
        (name, np.int32)
        for name in (
            *("N", "H", "W", "C", "D", "K", "stride", "F", "OH", "OW"),
            *("phases", "ahead_y", "ahead_x", "back_y", "back_x", "relu", "share"),
        )
    ]
)
MOST = 96  # rows of the table of adam.cu
TABLE = np.dtype(  # struct Table of adam.cu
    [
        *((name, np.uint64, MOST) for name in "pgmv"),
        ("size", np.int32, MOST),
        ("first", np.int32, MOST),
        ("count", np.int32),
    ],
    align=True,
)
MOST_KERNELS = 32  # rows of the table of muon.cu
KERNELS = np.dtype(  # struct Kernels of muon.cu
    [
        *((name, np.uint64, MOST_KERNELS) for name in ("p", "g", "m", "length")),
        *((name, np.int32, MOST_KERNELS) for name in ("rows", "cols", "u", "small", "tile")),
        ("first", np.int32, MOST_KERNELS),
        ("count", np.int32),
    ],
    align=True,
)
STRUCTS = {"Conv": CONV, "Table": TABLE, "Kernels": KERNELS}
SCALARS = {"int": np.int32, "long long": np.int64, "float": np.float32}
ELEMENTS = {"float*": np.float32, "unsigned char*": np.uint8}
THREADS = 256
KERNEL = re.compile(  # alone, or in a macro that makes several of it
    r'(?:#define (\w+)\(.*?\)[\s\\]+)?extern "C" __global__ void __launch_bounds__\(.*?\)[\s\\]+'
    r"(\w+)\s*\(([^)]*)\)"
)

profile: dict[str, float] | None = None  # while it is a dict, it gathers the seconds of each kernel


def source(module: str) -> str:
    """The CUDA text of a module: one string, since NVRTC has no folder to include from."""
    return "\n".join((CUDA / f"{file}.cu").read_text() for file in FILES[module])


def signatures(text: str) -> dict[str, list[tuple[str, str]]]:
    """Each kernel of a CUDA text with its parameters: (type, name), without const."""
    found: dict[str, list[tuple[str, str]]] = {}
    for macro, name, parameters in KERNEL.findall(text):
        words = [re.sub(r"\bconst\b|__restrict__|\\", "", p).split() for p in parameters.split(",")]
        names = re.findall(rf"^{macro}\((\w+),", text, re.M) if macro else [name]
        found |= {each: [(" ".join(w[:-1]), w[-1]) for w in words] for each in names}
    return found


@cache
def _kernel(module: str, name: str, device: int) -> tuple[Any, list[tuple[str, str]]]:
    """A kernel, loaded on a device, and its parameters."""
    text = source(module)
    return cupy.RawModule(code=text).get_function(name), signatures(text)[name]


def _argument(parameter: str, kind: str, value: Any) -> Any:
    """`value` as a parameter of this type takes it; TypeError where it holds something else."""

    def wrong(what: str) -> TypeError:
        return TypeError(f"{parameter} is {kind}, not {what}")

    if kind in SCALARS:
        number = SCALARS[kind](value)
        if kind != "float" and number != value:
            raise wrong(f"{value!r}")
        return number
    if kind in STRUCTS:
        if not isinstance(value, np.ndarray) or value.dtype != STRUCTS[kind] or value.ndim:
            raise wrong(f"{value!r}")
        return value
    if value is None:
        return np.intp(0)
    if not isinstance(value, cupy.ndarray):
        raise wrong(type(value).__name__)
    if value.dtype != ELEMENTS[kind]:
        raise wrong(f"an array of {value.dtype}")
    if not value.flags.c_contiguous:
        raise wrong("an array with gaps")
    return value


def launch(
    module: str, name: str, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any
) -> None:
    """Launch a kernel with numbers, arrays (None is the null pointer) and structures."""
    kernel, parameters = _kernel(module, name, cupy.cuda.Device().id)
    converted = tuple(
        _argument(f"{name}: {parameter}", kind, value)
        for (kind, parameter), value in zip(parameters, arguments, strict=True)
    )
    if profile is None:
        kernel(grid, block, converted)
        return
    cupy.cuda.get_current_stream().synchronize()
    started = time.perf_counter()
    kernel(grid, block, converted)
    cupy.cuda.get_current_stream().synchronize()
    profile[name] = profile.get(name, 0.0) + time.perf_counter() - started
