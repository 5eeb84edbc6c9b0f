"""The notebooks: stored as readers should find them, and (slow) right from top to bottom."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE = re.compile(r"/home/|/root/|/tmp/|/Users/|ipykernel_\d|[A-Z]:\\\\")


def cells(path, kind="code"):
    stored = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in stored["cells"] if cell["cell_type"] == kind]


def tagged(path, tag):
    return [cell for cell in cells(path) if tag in cell["metadata"].get("tags", [])]


def test_all_are_there():
    names = [path.stem.split("_")[0] for path in NOTEBOOKS]
    assert names == [f"{number:02}" for number in range(1, 12)] + ["A", "B"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs(path):
    """Run in order, without an error, a warning, or a trace of the machine that ran them."""
    assert [cell["execution_count"] for cell in cells(path)] == list(range(1, len(cells(path)) + 1))
    for cell in cells(path):
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", output["text"]
    assert not MACHINE.search(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_picture_has_a_text(path):
    for cell in cells(path):
        pictures = [o for o in cell["outputs"] if "image/png" in o.get("data", {})]
        assert len(pictures) <= 1  # a cell has room for one text
        for picture in pictures:
            assert len(picture["metadata"]["image/png"]["alt"]) > 40
            assert cell["metadata"]["mystnb"]["image"] == picture["metadata"]["image/png"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_have_stub_check_and_solution(path):
    exercises, checks, solutions = (tagged(path, t) for t in ("exercise", "check", "solution"))
    assert len(exercises) == len(checks) == len(solutions)
    for exercise, check, solution in zip(exercises, checks, solutions, strict=True):
        assert "raise NotImplementedError" in "".join(exercise["source"])
        assert "Your turn" in str(check["outputs"])
        assert "Right." in str(solution["outputs"])
        assert "hide-cell" in solution["metadata"]["tags"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, oracle):
    """Every assert holds, every solution passes its check, and it takes at most a minute."""
    oracle("nbclient")
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent.parent)}
    done = subprocess.run(
        [sys.executable, FOLDER / "run.py", path], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
