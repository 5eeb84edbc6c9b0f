"""README and the practitioner's guide: the options they name exist, and their code runs."""

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from segment.synthetic.scenes import write_scenes

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "practice.md").read_text(encoding="utf-8")
OPTIONS = defaultdict(set)
for line in re.findall(
    r"^    python -m segment\.(.*)", GUIDE + (ROOT / "README.md").read_text("utf-8"), re.M
):
    # `batch train OPTIONS -- OPTIONS`: the latter are those of `train`.
    own, _, passed = line.split(" #")[0].partition(" -- ")
    words = own.split()
    command = " ".join(words[:2]) if words[0] == "batch" else words[0]
    OPTIONS[command] |= set(re.findall(r" (--[a-z-]+)", own))
    if passed:
        OPTIONS[words[1]] |= set(re.findall(r"(?:^| )(--[a-z-]+)", passed))


def run(*arguments, **options):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_are_there(command):
    told = run("-m", *f"segment.{command} --help".split(), cwd=ROOT)
    assert set(re.findall(r"--[a-z-]+", told)) >= OPTIONS[command]


def test_the_estimates_run(tmp_path):
    """Roof areas and buildings along a line, from the file that the guide's command writes."""
    pytest.importorskip("pyogrio")
    (scene,) = write_scenes(tmp_path, ["ashford"], scenes_per_city=1, size=256)
    (line,) = re.findall(r"^    python (-m segment.predict .*--out roofs.gpkg.*)", GUIDE, re.M)
    words = line.replace("oslo3.tif", str(scene)).replace(" --model runs/mine", "").split()
    run(*words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    solar, along = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    assert float(run("-c", solar, cwd=tmp_path).split(" kWh a year")[0]) > 1000
    x, y = 620000, 3350000  # where ashford's first scene begins
    along = re.sub(r"LineString\(.*\)", f"LineString([({x}, {y}), ({x + 77}, {y - 77})])", along)
    assert int(run("-c", along, cwd=tmp_path).split(" buildings within 30 m")[0]) > 0
