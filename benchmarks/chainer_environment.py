"""Chainer 7.8.1 wants NumPy 1.23, and that Python 3.11 at most: an environment of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PYTHONS = ("python3.11", "python3.10")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "minicnn"


def chainer_python() -> str:
    """The interpreter of that environment, made if missing; RuntimeError where it can't be."""
    folder = CACHE / "chainer-7.8.1"
    python = folder / "bin" / "python"
    if not _works(python):
        found = [sys.executable] if sys.version_info[:2] <= (3, 11) else []
        found += filter(None, map(shutil.which, PYTHONS))
        for candidate in found:
            if _make(candidate, folder, python):
                break
        else:
            raise RuntimeError("no Python of 3.11 or older that Chainer 7.8.1 installs on")
    return str(python)


def _make(candidate: str, folder: Path, python: Path) -> bool:
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = (
        [candidate, "-m", "venv", "--clear", folder],
        [*pip, "setuptools<81", "wheel", "numpy==1.23.5"],
        [*pip, "--no-build-isolation", "chainer==7.8.1"],
    )
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return all(subprocess.run(step, **quiet).returncode == 0 for step in steps) and _works(python)


def _works(python: Path) -> bool:
    test = [python, "-c", "import chainer"]
    return python.exists() and subprocess.run(test, capture_output=True).returncode == 0
