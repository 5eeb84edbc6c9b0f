"""What `pip install` gives: the built wheel, in an environment with nothing else, must work."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a fresh environment with the wheel, built from the tracked files only."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tree.mkdir()
    tracked = call("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    call(sys.executable, "-m", "build", "--wheel", "--outdir", folder, tree)
    call(sys.executable, "-m", "venv", folder / "env")
    python = folder / "env/bin/python"
    call(python, "-m", "pip", "install", "--quiet", *folder.glob("*.whl"))
    return python


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_finds_buildings_with_the_weights_it_brings(python, tmp_path):
    scenes = tmp_path / "scenes"
    synthetic = ("segment.synthetic", "--out", scenes, "--size", "256", "--scenes", "1")
    call(python, "-m", *synthetic, cwd=tmp_path)
    scene = scenes / "images/ashford1.tif"
    call(python, "-m", "segment.predict", scene, "--out", tmp_path / "mask.tif", cwd=tmp_path)
    assert (tmp_path / "mask.tif").stat().st_size > 0
    assert "3,842,241" in call(python, "-m", "segment.summary", cwd=tmp_path)


@pytest.mark.slow
def test_the_wheel_holds_no_tests_and_no_stray_files(python):
    listed = call(python, "-m", "pip", "show", "--files", "minicnn-roofs")
    files = [line.strip() for line in listed.splitlines() if line.startswith("  ")]
    tops = {name.split("/")[0] for name in files}
    assert {"minicnn", "segment"} <= tops
    assert not tops & {"tests", "docs", "benchmarks", "docker"}
