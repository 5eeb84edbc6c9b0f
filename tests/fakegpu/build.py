"""Builds a GPU out of a CPU, and runs a command on it: `python tests/fakegpu/build.py COMMAND...`.

The real, installed CuPy runs on it. Three libraries that CuPy looks for are ours (`device.cpp`,
`blas.cpp`: the driver, the runtime, cuBLAS), under their real names. CuPy's wheel has NVIDIA's
runtime linked in; so its binding of the runtime is built again, against ours, from CuPy's own
source distribution, which pip fetches. What is built lies in the user's cache, and none of it here.
"""

import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).parent
CUDA, BLAS = "libcuda.so.1", "libcublas.so.12"
LIBRARIES = {CUDA: ("device.cpp", "ptx.cpp", "lanes.cpp"), BLAS: ("blas.cpp", "unsupported.cpp")}
LINKS = {"libcudart.so.12": CUDA, "libcublasLt.so.12": BLAS}  # one library each, loaded once
NAMES = (*LIBRARIES, *LINKS)
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fPIC", "-fno-strict-aliasing"),
    *("-ffp-contract=off", "-fno-math-errno", "-Wall"),  # a * b + c rounds twice, as PTX says
)
BINDING = "cupy_backends/cuda/api/runtime"
VERSIONS = {"CUPY_CUDA_VERSION": 12090, "CUPY_HIP_VERSION": 0, "CUPY_USE_CUDA_PYTHON": False}
SITE = '''"""Has CuPy take its binding of the runtime from this folder."""
import importlib.machinery, importlib.util, pathlib, sys

NAME = "cupy_backends.cuda.api.runtime"

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != NAME:
            return None
        (file,) = pathlib.Path(__file__).parent.glob("runtime*.so")
        return importlib.util.spec_from_file_location(name, file)

sys.meta_path.insert(0, Finder)
'''


def environment() -> dict[str, str]:
    """The environment variables of a process that is to see the fake GPU; built, where need be."""
    folder = built()
    return {
        **os.environ,
        "LD_LIBRARY_PATH": _joined(str(folder), os.environ.get("LD_LIBRARY_PATH")),
        "PYTHONPATH": _joined(str(folder), os.environ.get("PYTHONPATH")),
        "CUPY_COMPILE_WITH_PTX": "1",  # PTX, where CuPy would have machine code made
        "CUPY_ACCELERATORS": "",  # no CUB: it is compiled in, with NVIDIA's runtime
        "CUPY_CACHE_DIR": str(folder / "kernels"),
        "MINICNN_FAKE_GPU": str(folder / CUDA),
    }


def _joined(first: str, rest: str | None) -> str:
    return f"{first}{os.pathsep}{rest}" if rest else first


def built() -> Path:
    """The folder that holds the fake GPU for this Python and CuPy, made unless it is there."""
    version = importlib.metadata.version("cupy-cuda12x")
    texts = b"".join(f.read_bytes() for f in sorted(HERE.iterdir()) if f.is_file())
    key = hashlib.sha256(f"{version} {sys.version}".encode() + texts).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minicnn" / "fakegpu"
    folder = cache / key
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as place:
            _build(Path(place), version)
            Path(place, "whole").mkdir()
            for name in (*NAMES, "sitecustomize.py"):
                os.replace(Path(place, name), Path(place, "whole", name))
            (binding,) = Path(place).glob("runtime*.so")
            os.replace(binding, Path(place, "whole", binding.name))
            with suppress(OSError):  # another process was quicker
                os.replace(Path(place, "whole"), folder)
    return folder


def _build(place: Path, version: str) -> None:
    (place / "unsupported.cpp").write_text(_unsupported())
    sources = {
        o: place / o if o == "unsupported.cpp" else HERE / o for o in sum(LIBRARIES.values(), ())
    }
    compiling = [
        subprocess.Popen(["g++", *FLAGS, "-c", str(source), "-o", str(place / f"{name}.o")])
        for name, source in sources.items()
    ]
    binding = _binding(place, version)  # meanwhile
    if any(process.wait() for process in compiling):
        raise SystemExit("the fake GPU does not compile")
    for library, parts in LIBRARIES.items():
        (place / "versions").write_text(f"{library} {{ global: *; }};\n")
        objects = [str(place / f"{name}.o") for name in parts]
        needed = [] if library == CUDA else [str(place / CUDA)]
        how = [f"-Wl,-soname,{library}", f"-Wl,--version-script={place / 'versions'}"]
        _run("g++", "-shared", *how, *objects, *needed, "-o", str(place / library))
    for name, target in LINKS.items():
        (place / name).symlink_to(target)
    _run(
        "g++", "-shared", str(binding), str(place / CUDA), "-o", str(place / f"runtime{_suffix()}")
    )
    (place / "sitecustomize.py").write_text(SITE)


def _unsupported() -> str:
    """What CuPy's binding of cuBLAS is linked to and blas.cpp lacks: each answers with an error."""
    import cupy_backends.cuda.libs as libs

    (path,) = Path(libs.__path__[0]).glob("cublas.*.so")
    done = subprocess.run(
        ["nm", "-D", "--undefined-only", str(path)], capture_output=True, text=True
    )
    wanted = set(re.findall(r" U (cublas\w+)", done.stdout))
    return "".join(
        f'extern "C" __attribute__((weak)) int {name}() {{ return 15; }}\n'
        for name in sorted(wanted)
    )


def _suffix() -> str:
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def _binding(place: Path, version: str) -> Path:
    """CuPy's binding, compiled against binding.h in place of NVIDIA's headers."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
    how = ["--no-deps", "--no-build-isolation", "--no-binary", "cupy", f"cupy=={version}"]
    stub = {**os.environ, "CUPY_INSTALL_USE_STUB": "1"}  # pip asks the source for its metadata
    _run(*pip, *how, "--dest", str(place), env=stub)
    (archive,) = place.glob("cupy-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(place, filter="data")
    source = place / f"cupy-{version}"
    for name in ("cupy_backend_runtime.h", "cupy_backend.h", "cupy_profiler.h"):
        (source / "cupy_backends" / name).write_text(f'#include "{HERE / "binding.h"}"\n')
    words = ",".join(f"{name}={value}" for name, value in VERSIONS.items())
    cython = ["-m", "cython", "--cplus", "-3", "-E", words, f"{BINDING}.pyx"]
    _run(sys.executable, "-W", "ignore", *cython, cwd=source)
    out = place / "binding.o"
    include = f"-I{sysconfig.get_paths()['include']}"
    text = str(source / f"{BINDING}.cpp")
    _run("g++", "-std=c++17", "-O1", "-fPIC", "-w", include, "-c", text, "-o", str(out))
    return out


def _run(*command: str, **options: object) -> None:
    done = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    if not sys.argv[1:]:
        raise SystemExit(f"usage: {sys.argv[0]} COMMAND...")
    os.execvpe(sys.argv[1], sys.argv[1:], environment())
