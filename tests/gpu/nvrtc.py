"""Compiles kernels for GPUs that aren't there: NVIDIA's own compiler, from its wheels, to PTX.

`ptx` is NVRTC, the compiler that CuPy calls on a user's machine; `resources` asks ptxas what the
code costs. Neither needs a driver. When a wheel is missing these functions raise: a check that
doesn't run must not look like one that passed.
"""

import ctypes
import importlib.metadata
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

# V100, T4, A100, A10G, L4, H100 and H200, B200, B300, RTX 50
ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 103, 120)
OPTIONS = (  # as CuPy compiles; and unused names are no fault
    *(b"-ftz=true", b"--device-as-default-execution-space", b"-std=c++17"),
    b"--diag-suppress=177",
)
OLD = "Architectures prior to '<compute/sm>_75' are deprecated"


class Resources(NamedTuple):
    """What one kernel takes: registers of a thread, bytes of a block's shared memory, ..."""

    registers: int
    shared: int
    stack: int
    spilled: int


def _wheel_file(package: str, pattern: str) -> Path:
    files = importlib.metadata.files(package) or []  # PackageNotFoundError without the wheel
    (path,) = {Path(str(f.locate())) for f in files if re.fullmatch(pattern, f.name)}
    return path


@cache
def _nvrtc() -> ctypes.CDLL:
    return ctypes.CDLL(str(_wheel_file("nvidia-cuda-nvrtc-cu12", r"libnvrtc\.so\.12")))


def version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


def _check(code: int, log: str = "") -> None:
    if code:
        raise RuntimeError(f"NVRTC failed with code {code}\n{log}")


@cache
def ptx(text: str, architecture: int) -> str:
    """The PTX that NVRTC makes of a CUDA text; RuntimeError with the compiler's log."""
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"k.cu", 0, None, None))
    try:
        options = (*OPTIONS, f"--gpu-architecture=compute_{architecture}".encode())
        code = nvrtc.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*options)
        )
        log = _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        _check(code, log)
        warnings = [line for line in log.splitlines() if line.strip() and OLD not in line]
        if warnings:
            raise RuntimeError("NVRTC warns:\n" + "\n".join(warnings))
        return _read(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _read(size_of: ctypes._CFuncPtr, get: ctypes._CFuncPtr, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(get(program, buffer))
    return buffer.value.decode()


def modules(kernels: ModuleType, architecture: int) -> list[str]:
    """Those modules of kernels that a GPU of this architecture can run."""
    old = architecture < kernels.TENSOR_CORES
    return [module for module in kernels.launches.FILES if not (old and "tf32" in module)]


@cache
def resources(text: str, architecture: int) -> dict[str, Resources]:
    """What each kernel of a CUDA text takes on an architecture, as ptxas tells."""
    ptxas = _wheel_file("nvidia-cuda-nvcc-cu12", "ptxas")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx(text, architecture))
        command = [ptxas, f"-arch=sm_{architecture}", "-v", source, "-o", Path(folder) / "out"]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr)
    found = {}
    for entry in run.stderr.split("Compiling entry function '")[1:]:
        spills = map(int, re.findall(r"(\d+) bytes spill", entry))
        numbers = (
            _number(entry, p)
            for p in (r"Used (\d+) reg", r"(\d+) bytes smem", r"(\d+) bytes stack")
        )
        found[entry.split("'")[0]] = Resources(*numbers, sum(spills))
    return found


def threads(text: str, architecture: int) -> dict[str, int]:
    """The largest block that each kernel is compiled for."""
    entry = re.compile(r"\.entry (\w+)\([^)]*\)\s*(?:\.maxntid (\d+))?")
    return {m[1]: int(m[2] or 1024) for m in entry.finditer(ptx(text, architecture))}


def _number(text: str, pattern: str) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else 0
