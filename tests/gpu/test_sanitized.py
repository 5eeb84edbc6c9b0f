"""The kernels under AddressSanitizer: no read or write outside of an array, none misaligned."""

import os
import subprocess
import sys
from pathlib import Path

import kernel_cases
import pytest
from test_gpu_mutants import MEMORY

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


def run(*arguments):
    library = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "PYTHONPATH": f"{HERE}:{HERE.parents[1]}",
        "PYTHONMALLOC": "malloc",
    }
    command = [sys.executable, str(HERE / "sanitized.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_kernels_are_clean():
    ended = run()
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert ended.stdout.count("is clean") == len(kernel_cases.CASES)


@pytest.mark.parametrize(
    "name",
    [
        "image's edge not guarded",
        "weights' end not guarded",
        "odd filters not guarded",
        "one thread too many",
        "four at a time where channels are odd",
    ],
)
def test_a_fault_ends_the_process(name):
    module, old, new, case, _ = MEMORY[name]
    ended = run(case, module, old, new)
    assert ended.returncode != 0
    assert "AddressSanitizer" in ended.stderr or "misaligned" in ended.stderr
    assert "kernel.cu" in ended.stderr  # and names the line
