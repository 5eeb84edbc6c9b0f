"""Four scenes of 5000 px, the size of the benchmark's: cut, stored and predicted within bounds."""

import subprocess
import sys
from pathlib import Path

import pytest
import rasterio

from segment.synthetic import write_scenes

ROOT = Path(__file__).parents[1]
# Not ru_maxrss: a process inherits that from the one that started it.
PEAK = """
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM")))
"""
CUT = f"""
import sys
from segment.scenes import Reading, find_scenes
from segment.tiles import open_store
store = open_store(find_scenes([sys.argv[1]]), Reading(), cache=sys.argv[2])
assert len(store) == 4 * 19 * 19
{PEAK}
"""
PREDICT = f"""
import sys
from segment.predict import main
main(sys.argv[1:])
{PEAK}
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    return write_scenes(folder, cities=("ashford", "dornfeld"), scenes_per_city=2, size=5000)


def megabytes(code, *arguments):
    """The peak memory of a process that runs `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_large_scenes_are_cut_into_a_store(scenes, tmp_path):
    assert megabytes(CUT, scenes[0].parents[1], tmp_path) < 1000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_large_scene_is_predicted_in_bounded_memory(scenes, tmp_path):
    out = tmp_path / "mask.tif"
    assert megabytes(PREDICT, scenes[0], "--out", out) < 1500
    with rasterio.open(scenes[0]) as scene, rasterio.open(out) as mask:
        assert (mask.shape, mask.crs, mask.transform) == (scene.shape, scene.crs, scene.transform)
