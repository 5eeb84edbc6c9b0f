"""Every building by itself: ids in a raster, in outlines, and masks with gaps."""

import json

import numpy as np
import pytest
import rasterio
from rasterio.features import rasterize
from test_predict import PLACE, UTM, Redness, write

from segment.errors import InputError
from segment.geo.separate import Separation
from segment.merge import command as merge
from segment.predict import command as predict

pyogrio = pytest.importorskip("pyogrio")
pyarrow = pytest.importorskip("pyarrow")


@pytest.fixture
def model(monkeypatch):
    model = Redness(separation=Separation(0.5, 1.0))
    monkeypatch.setattr(predict, "load_model", lambda path: model)
    return model


@pytest.fixture
def scene(tmp_path):
    """Two roofs that touch, a dip between them, and one alone; the last columns aren't valid."""
    pixels = np.zeros((3, 60, 90), np.uint8)
    pixels[0, 10:30, 10:50] = 240
    pixels[0, 10:30, 29:31] = 150
    pixels[0, 40:50, 60:90] = 250
    valid = np.full((60, 90), 255, np.uint8)
    valid[:, 80:] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        return write(tmp_path / "town1.tif", pixels, mask=valid)


def run(scene, out, *options):
    predict.main([str(scene), "--out", str(out), *options])


def test_ids_are_those_of_the_outlines(tmp_path, model, scene):
    run(scene, tmp_path / "ids.tif", "--format", "instances")
    run(scene, tmp_path / "a.gpkg")
    run(scene, tmp_path / "a.geojson")
    with rasterio.open(tmp_path / "ids.tif") as file:
        ids, known = file.read(1), file.dataset_mask()
        assert (file.dtypes, file.crs, file.transform) == (("uint32",), UTM, PLACE)
    assert (known[:, 80:] == 0).all() and (known[:, :80] == 255).all()
    _, _, shapes, (own, area, sure, name) = pyogrio.raw.read(tmp_path / "a.gpkg")
    assert own.tolist() == sorted(set(np.unique(ids)) - {0}) and len(own) == 3
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert [feature["properties"]["id"] for feature in features] == own.tolist()
    assert len({*name}) == 1 and name[0].startswith("buildings-")
    import shapely

    for identity, shape, metres, mean in zip(
        own, shapely.from_wkb(shapes), area, sure, strict=True
    ):
        here = ids == identity
        np.testing.assert_array_equal(rasterize([shape], ids.shape, transform=PLACE), here)
        assert metres == pytest.approx(here.sum() * 0.09, rel=0.01)
        with rasterio.open(scene) as file:
            assert mean == pytest.approx(file.read(1)[here].mean() / 255, abs=0.006)
        row, col = divmod(int(identity) - 1, 90)
        assert here[row, col]


def test_only_outlines_are_parted_unless_asked(tmp_path, model, scene):
    def count(*options):
        run(scene, tmp_path / "a.gpkg", *options)
        return len(pyogrio.raw.read(tmp_path / "a.gpkg")[2])

    assert (count(), count("--no-separate"), count("--separate")) == (3, 2, 3)
    run(scene, tmp_path / "mask.tif")
    run(scene, tmp_path / "gaps.tif", "--separate")
    masks = [rasterio.open(tmp_path / name).read(1) for name in ("mask.tif", "gaps.tif")]
    gap = (masks[0] == 255) & (masks[1] == 0)
    assert (masks[1] <= masks[0]).all() and set(np.unique(masks[1])) == {0, 255}
    rows, cols = np.nonzero(gap)
    assert set(rows) == set(range(10, 30)) and set(cols) <= {28, 29, 30} and len(cols) == 20


def test_outlines_have_a_threshold_of_their_own_and_masks_keep_theirs(tmp_path, monkeypatch, scene):
    """Red 240 is p = 0.94, 150 is 0.59: at 0.7 outlines lose the dip, which the mask has."""
    model = Redness(separation=Separation(np.inf, 0.0, threshold=0.7))
    monkeypatch.setattr(predict, "load_model", lambda path: model)

    def areas(name, *options):
        run(scene, tmp_path / name, *options)
        return pytest.approx(sorted(pyogrio.raw.read(tmp_path / name)[3][1] / 0.09), abs=2)

    assert areas("a.gpkg") == [200, 380, 380]  # 20 columns are not valid
    assert areas("b.gpkg", "--no-separate") == [200, 800]
    assert areas("c.gpkg", "--threshold", "0.5") == [200, 800]  # what is asked for holds
    run(scene, tmp_path / "mask.tif")
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert (file.read(1) == 255).sum() == 1000
    predict.main([str(scene), "--out", str(tmp_path / "many"), "--shards", "1", "--shard", "0"])
    merge.main([str(tmp_path / "many")])
    table = pyarrow.parquet.read_table(tmp_path / "many/footprints.parquet")
    assert sorted(np.array(table["area_m2"]) / 0.09) == pytest.approx([200, 380, 380], abs=2)


def test_crumbs_are_dropped_unless_a_least_area_is_asked_for(tmp_path, monkeypatch, scene):
    """The roof of 200 valid pixels, of 0.09 m2 each, is a crumb to this model."""
    model = Redness(separation=Separation(0.5, 1.0, smallest=201))
    monkeypatch.setattr(predict, "load_model", lambda path: model)

    def count(*options, name="a.gpkg"):
        run(scene, tmp_path / name, *options)
        return len(pyogrio.raw.read(tmp_path / name)[2])

    assert (count(), count("--min-area", "1"), count("--min-area", "20")) == (2, 3, 2)
    assert count("--no-separate") == 2  # without the model's ways every piece of the mask counts
    run(scene, tmp_path / "ids.tif", "--format", "instances")
    with rasterio.open(tmp_path / "ids.tif") as file:
        assert len(np.unique(file.read(1))) == 3
    predict.main([str(scene), "--out", str(tmp_path / "many"), "--shards", "1", "--shard", "0"])
    merge.main([str(tmp_path / "many")])
    assert len(pyarrow.parquet.read_table(tmp_path / "many/footprints.parquet")) == 2
    merge.main([str(tmp_path / "many"), "--min-area", "1"])
    assert len(pyarrow.parquet.read_table(tmp_path / "many/footprints.parquet")) == 3


def test_a_scene_of_finer_pixels_is_parted_by_the_same_ground(tmp_path, model, scene):
    """The separation is in pixels of the model: on pixels half as large it smooths over twice."""
    with rasterio.open(scene) as file:
        pixels = np.kron(file.read(), np.ones((1, 2, 2), np.uint8))
    fine = write(tmp_path / "fine1.tif", pixels, transform=PLACE @ PLACE.scale(0.5))
    run(fine, tmp_path / "fine.gpkg")
    run(scene, tmp_path / "a.gpkg")
    areas = [pyogrio.raw.read(tmp_path / name)[3][1] for name in ("fine.gpkg", "a.gpkg")]
    assert len(areas[0]) == len(areas[1]) == 3
    assert sorted(areas[0])[1:] == pytest.approx(sorted(areas[1])[1:], rel=0.15)


def test_ids_that_do_not_fit_are_refused(tmp_path, model):
    from types import SimpleNamespace

    from segment.predict.instances import write_buildings

    huge = SimpleNamespace(name="huge.tif", width=70_000, height=70_000)
    with pytest.raises(InputError, match=r"huge\.tif has 4,900,000,000 pixels"):
        write_buildings([], tmp_path / "a.tif", huge, 0.5, Separation(), {}, ids=True)
