"""Scenes of 5000 px, as the benchmark has them, and a mosaic of 20,000 px: in bounded memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from segment.synthetic.scenes import write_scenes

ROOT = Path(__file__).parents[1]
# Not ru_maxrss: a process inherits that from the one that started it.
PEAK = """
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM")))
"""
CUT = f"""
import sys
from segment.data.reading import Reading
from segment.data.scenes import find_scenes
from segment.data.tiles import open_store
store = open_store(find_scenes([sys.argv[1]]), Reading(), cache=sys.argv[2])
assert len(store) == 4 * 19 * 19
{PEAK}
"""
PREDICT = f"""
import sys
from segment.predict.command import main
main(sys.argv[1:])
{PEAK}
"""

# A model whose mask is known: what is bright and red.
AREA = f"""
import sys
from types import SimpleNamespace
from segment.merge import command as merge
from segment.predict import command as predict
from segment.model import ModelInfo

class Red:
    net, info = SimpleNamespace(multiple=16), ModelInfo()

    def to(self, device):
        return self

    def reads(self, bands, value_range):
        return self

    def predict(self, pixels):
        return pixels[..., 0] / pixels.dtype.type(255)

predict.load_model = lambda path: Red()
{{"predict": predict, "merge": merge}}[sys.argv[1]].main(sys.argv[2:])
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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_mosaic_is_predicted_by_many_and_merged_in_bounded_memory(tmp_path, monkeypatch):
    """20,000 x 20,000 pixels: 1.2 GB of photograph and 0.4 GB of mask; 4,000 roofs, some of them
    as long as a street, at any place, which shapely unites by itself."""
    shapely, parquet = pytest.importorskip("shapely"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("GDAL_CACHEMAX", "64")  # MB, else a share of the machine's memory
    size, rng = 20_000, np.random.default_rng(0)
    corners = rng.integers(0, size - 40, (4000, 2))
    lengths = rng.integers(10, 40, (4000, 2))
    lengths[::100, 0] = np.minimum(9000, size - corners[::100, 0])
    roofs = [
        (top, left, top + h, left + w) for (top, left), (h, w) in zip(corners, lengths, strict=True)
    ]
    form = {"driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True, "compress": "deflate"}
    place = {"crs": "EPSG:32645", "transform": rasterio.Affine(0.3, 0, 500_000, 0, -0.3, 3_000_000)}
    scene, out, step = tmp_path / "country.tif", tmp_path / "out", 512
    with rasterio.open(scene, "w", width=size, height=size, **form, **place) as dataset:
        for row in range(0, size, step):
            band = np.zeros((3, min(step, size - row), size), np.uint8)
            for top, left, bottom, right in roofs:
                band[0, max(top - row, 0) : max(bottom - row, 0), left:right] = 255
            dataset.write(band, window=Window(0, row, size, band.shape[1]))

    for shard in range(4):
        predict = "predict", scene, "--out", out, "--shards", 4, "--shard", shard
        assert megabytes(AREA, *predict) < 500
    assert len(list((out / "masks").iterdir())) == 16  # four pieces each: equal work
    assert megabytes(AREA, "merge", out, "--cog", "--no-separate") < 500

    truth = shapely.get_parts(shapely.union_all([shapely.box(*roof) for roof in roofs]))
    found = parquet.read_table(out / "footprints.parquet", columns=["area_m2"])["area_m2"]
    expected = shapely.area(truth) * 0.09 / 0.9996**2  # the scale of the zone at its meridian
    np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-4)
    for name in ("mosaic.vrt", "mosaic.tif"):
        with rasterio.open(out / name) as mosaic:
            rows = (Window(0, row, size, min(step, size - row)) for row in range(0, size, step))
            assert (
                sum((mosaic.read(1, window=row) > 0).sum() for row in rows)
                == shapely.area(truth).sum()
            )
