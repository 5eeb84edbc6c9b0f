"""What a fresh clone lacks (photographs, PyTorch, a GPU) is asked for in one place, and counted."""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
PYTORCH = r"^\s*(import torch|from torch)|importorskip\(.torch"


def sources():
    return {path: path.read_text() for path in TESTS.rglob("*.py") if path != Path(__file__)}


def test_photographs_are_found_by_one_variable_only():
    named = [path for path, text in sources().items() if "MINICNN_PHOTOGRAPHS" in text]
    assert named == [TESTS / "conftest.py"]


def test_nothing_beside_the_repository_is_named():
    """Not `ROOT.parent`, nor more `parents` than the file has within the repository."""
    for path, text in sources().items():
        depth = len(path.relative_to(TESTS.parent).parts)
        levels = re.findall(r"__file__\)\.parents\[(\d+)\]", text)
        assert all(int(level) < depth for level in levels), path
        assert not re.search(r"(ROOT|REPO|\.parents\[\d\])\.parent\b|[\"']\.\./[a-z]", text), path


def test_whoever_imports_pytorch_is_marked():
    for path, text in sources().items():
        if re.search(PYTORCH, text, re.M):
            assert "pytestmark = pytest.mark.torch\n" in text, path


STRANGERS = """
import pytest

def test_unmarked(cupy):
    pass

def test_photographs(photographs):
    pass

@pytest.mark.parametrize("n", range(2))
def test_skipped(n):
    pytest.skip("for want of a nail")
"""


def test_an_unmarked_test_fails_and_skips_are_counted(tmp_path):
    (tmp_path / "test_strangers.py").write_text(STRANGERS)
    environment = {k: v for k, v in os.environ.items() if k != "MINICNN_PHOTOGRAPHS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    options = ["-p", "conftest", "-p", "no:cacheprovider", "-c", str(TESTS.parent / "setup.cfg")]

    command = [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(tmp_path)]
    told = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "this test needs a GPU and is not marked so" in told.stdout
    assert "    1 no photographs: MINICNN_PHOTOGRAPHS names no folder\n" in told.stdout
    assert "    2 for want of a nail\n" in told.stdout
