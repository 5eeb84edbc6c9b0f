"""Many processes' masks as one map: what one would have found, no building cut or doubled."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rio_cogeo import cog_validate
from test_predict import PLACE, UTM, Redness, photograph, write
from test_shards import Edgy, predict_shards

from segment.data.rasters import shifted
from segment.errors import InputError
from segment.geo import buildings as buildings_of
from segment.geo import footprints
from segment.geo.separate import TOGETHER
from segment.merge import command as merge
from segment.merge import mosaic
from segment.predict import blending
from segment.predict import command as predict
from segment.predict.scene import predict_scene
from segment.predict.shards import Piece, Plan, Source

shapely = pytest.importorskip("shapely")
geopandas = pytest.importorskip("geopandas")
pyogrio = pytest.importorskip("pyogrio")

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture
def small(monkeypatch):
    """Small windows and blocks, so that small pictures have many."""
    monkeypatch.setattr(blending, "WINDOW", 128)
    monkeypatch.setattr(mosaic, "BLOCK", 96)
    monkeypatch.setattr(buildings_of, "BLOCK", 80)


@pytest.fixture
def model(monkeypatch, small):
    """A model whose masks are of the pixel alone, so that scenes may be cut at will."""
    monkeypatch.setattr(predict, "load_model", lambda path: Redness(pixel_size=None))


def buildings(path):
    """Outlines and areas of a GeoParquet file, by another reader than our own writer's."""
    table = geopandas.read_parquet(path)
    assert table.crs == "OGC:CRS84"
    return dict(zip(shapely.to_wkb(shapely.normalize(table.geometry)), table.area_m2, strict=True))


def outlined(mask, transform, crs, **how):
    found = footprints.polygons(mask, transform, crs, **how)
    return dict(zip(shapely.to_wkb(shapely.normalize(found.lonlat)), found.area_m2, strict=True))


# ---------------------------------------------------------------- sharded equals unsharded


@settings(max_examples=8)
@given(
    *[st.integers(1, 400)] * 2,
    st.integers(1, 9),
    st.sampled_from([0, 32, 64]),
    st.sampled_from([0.3, 0.2, 0.47]),
    st.sampled_from([0.0, 0.7]),
    st.integers(0, 2**32 - 1),
)
def test_many_processes_find_what_one_does(
    tmp_path_factory, small, height, width, count, overlap, own, simplify, seed
):
    """Masks and validity byte for byte, outlines to the last bit of each corner; resampled, too."""
    folder, rng = tmp_path_factory.mktemp("area"), np.random.default_rng(seed)
    valid = np.full((height, width), 255, np.uint8)
    row, col = rng.integers(0, height), rng.integers(0, width)
    valid[row : row + 90, col : col + 150] = 0
    place = rasterio.Affine(own, 0, 500_000, 0, -own, 3_000_000)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        pixels = photograph(height, width, seed)
        scene = write(folder / "town1.tif", pixels, mask=valid, transform=place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "load_model", lambda path: Edgy())
        options = ["--overlap", str(overlap)]
        predict.main([str(scene), "--out", str(folder / "one.tif"), *options])
        predict.main([str(scene), "--out", str(folder / "one.gpkg"), *options])
        predict_shards([scene], folder / "many", count, rng.permutation(count), *options)
    merge.main([str(folder / "many")])
    _, _, _, columns = pyogrio.raw.read(folder / "one.gpkg")
    table = geopandas.read_parquet(folder / "many/footprints.parquet")
    rows = zip(table.id, table.area_m2, table.confidence, table.model, strict=True)
    assert sorted(rows) == sorted(zip(*columns, strict=True))
    together = ["--cog", "--no-separate", "--simplify", str(simplify)]
    merge.main([str(folder / "many"), *together])

    with rasterio.open(folder / "one.tif") as one:
        expected, known = one.read(1), one.dataset_mask()
        for name in ("mosaic.vrt", "mosaic.tif"):
            with rasterio.open(folder / "many" / name) as many:
                assert (many.crs, many.transform) == (one.crs, one.transform)
                np.testing.assert_array_equal(many.read(1), expected)
                np.testing.assert_array_equal(many.dataset_mask(), known)
    whole = outlined(expected, place, UTM, simplify=simplify)
    assert buildings(folder / "many/footprints.parquet") == whole


def test_the_model_of_that_test_does_see_where_its_windows_are(tmp_path, small, monkeypatch):
    """Cut into scenes of their own, without a margin, the masks differ: the test can fail."""
    monkeypatch.setattr(predict, "load_model", lambda path: Edgy())
    pixels = photograph(300, 300)
    whole = write(tmp_path / "whole1.tif", pixels)
    part = write(tmp_path / "part1.tif", pixels[:, :, :150])
    masks = [predict_scene(Edgy(), scene)[0] for scene in (whole, part)]
    assert (masks[0][:, :150] != masks[1]).any()


# ---------------------------------------------------------------- many scenes


def cut(folder, pixels, spans, crs=UTM, transform=PLACE, masks=None):
    """Scenes of one picture: town1, town2, ..., each a (rows, columns) of it."""
    folder.mkdir(exist_ok=True)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        for number, (rows, cols) in enumerate(spans, start=1):
            place = shifted(transform, rows.start, cols.start)
            mask = masks[number - 1] if masks else None
            name = folder / f"town{number}.tif"
            write(name, pixels[:, rows, cols], crs=crs, transform=place, mask=mask)


@pytest.mark.parametrize("epsg", [32645, 4326, 3857])
def test_scenes_side_by_side_are_one_map(tmp_path, model, epsg):
    """Roofs over four scenes, some of which overlap by 20 pixels, are found once."""
    place = {4326: rasterio.Affine(3e-6, 0, 85.3, 0, -3e-6, 27.1)}.get(epsg, PLACE)
    crs, pixels = CRS.from_epsg(epsg), photograph(300, 400)
    spans = [
        (slice(a, b), slice(c, d))
        for a, b in ((0, 150), (150, 300))
        for c, d in ((0, 220), (200, 400))
    ]
    cut(tmp_path / "in", pixels, spans, crs, place)
    predict_shards([tmp_path / "in"], tmp_path / "out", 3, range(3))
    merge.main([str(tmp_path / "out"), "--cog", "--min-area", "5", "--no-separate"])
    whole = np.where(pixels[0] >= 128, 255, 0).astype(np.uint8)
    for name in ("mosaic.vrt", "mosaic.tif"):
        with rasterio.open(tmp_path / "out" / name) as found:
            assert (found.crs, found.transform, found.shape) == (crs, place, (300, 400))
            np.testing.assert_array_equal(found.read(1), whole)
            assert (found.dataset_mask() == 255).all()
    assert cog_validate(tmp_path / "out/mosaic.tif", strict=True) == (True, [], [])
    with rasterio.open(tmp_path / "out/mosaic.tif") as found:
        tags = found.tags()
        assert tags["MINICNN_MODEL"].startswith("buildings-") and tags["MINICNN_THRESHOLD"] == "0.5"
        assert tags["TIFFTAG_SOFTWARE"].startswith("minicnn ") and "TIFFTAG_DATETIME" in tags
        assert found.colormap(1)[255] == (255, 70, 40, 255)
    assert geopandas.read_parquet(tmp_path / "out/footprints.parquet").geometry.is_valid.all()
    expected = outlined(whole, place, crs, min_area=5)
    found = buildings(tmp_path / "out/footprints.parquet")
    assert len(found) == len(expected) > 5
    assert sorted(found.values()) == pytest.approx(sorted(expected.values()), rel=1e-6)


def test_what_is_not_valid_hides_nothing_and_gaps_are_not_known(tmp_path, model):
    pixels = np.full((3, 100, 200), 255, np.uint8)
    spans = [
        (slice(0, 50), slice(0, 100)),
        (slice(0, 50), slice(0, 100)),
        (slice(60, 100), slice(150, 200)),
    ]
    masks = [
        np.full((50, 100), 255, np.uint8),
        np.zeros((50, 100), np.uint8),
        np.full((40, 50), 255, np.uint8),
    ]
    masks[0][:, 90:] = 0
    masks[1][:, 80:] = 255
    masks[1][:10, 80:] = 0
    cut(tmp_path / "in", pixels, spans, masks=masks)
    predict_shards([tmp_path / "in"], tmp_path / "out", 1, [0])
    merge.main([str(tmp_path / "out"), "--cog"])
    expected = np.zeros((100, 200), np.uint8)
    expected[:50, :90] = expected[10:50, 80:100] = expected[60:, 150:] = 255
    for name in ("mosaic.vrt", "mosaic.tif"):
        with rasterio.open(tmp_path / "out" / name) as found:
            np.testing.assert_array_equal(found.read(1), expected)
            np.testing.assert_array_equal(found.dataset_mask(), expected)
    assert len(buildings(tmp_path / "out/footprints.parquet")) == 2


SPELLINGS = {
    "EPSG": CRS.from_epsg(25832),
    "ESRI": CRS.from_wkt(CRS.from_epsg(25832).to_wkt(version="WKT1_ESRI")),
    "compound": CRS.from_user_input("EPSG:25832+7837"),
}


@pytest.mark.parametrize("aside", [0.0, 0.04])  # pixels, of every other scene
def test_neighbours_a_hair_off_the_grid_are_one_map(tmp_path, model, caplog, aside):
    """Eight scenes of 20 cm in a row, corners in whole millimetres, the CRS spelled in three ways.

    A building lies across each of the 7 borders, and one at either end: 9, each counted once.
    """
    pixels = np.zeros((3, 30, 40), np.uint8)
    pixels[0, 10:20, :8] = pixels[0, 10:20, -8:] = 200
    (tmp_path / "in").mkdir()
    for number, crs in zip(range(8), [*SPELLINGS.values()] * 3, strict=False):
        left = 500_000.037 + 0.2 * (40 * number + aside * (number % 2))
        place = rasterio.Affine(0.2, 0, left, 0, -0.2, 5_400_000)
        write(tmp_path / "in" / f"town{number + 1}.tif", pixels, crs=crs, transform=place)
    predict_shards([tmp_path / "in"], tmp_path / "out", 1, [0])
    merge.main([str(tmp_path / "out"), "--no-separate"])
    assert "grids" not in caplog.text
    areas = sorted(buildings(tmp_path / "out/footprints.parquet").values())
    assert len(areas) == 9
    # UTM's scale on its central meridian is 0.9996: 0.2 m of the map are 0.20008 m of ground
    assert areas == pytest.approx([80 * 0.04 / 0.9996**2] * 2 + [160 * 0.04 / 0.9996**2] * 7, 1e-3)
    with rasterio.open(tmp_path / "out/mosaic.vrt") as found:
        assert found.shape == (30, 320)
        np.testing.assert_array_equal(found.read(1)[15] == 255, np.tile(pixels[0, 15] > 0, 8))


def grids_of(*scenes):
    """How many mosaics come of scenes of 40 x 30 pixels, told by (CRS, transform)."""
    told = {"pixel_size": None} | asdict(TOGETHER)
    sources = tuple(
        Source(f"{i}.tif", None, 30, 40, crs.to_wkt(), tuple(place)[:6])
        for i, (crs, place) in enumerate(scenes)
    )
    pieces = tuple(Piece(f"{i}.tif", i, 0, 0, 30, 40) for i in range(len(scenes)))
    request = {"shards": 1, "separation": told}
    return len(mosaic.mosaics(Plan(request, sources, pieces)))


@given(
    st.integers(0, 199),
    st.sampled_from([0.2, 0.3, 0.075, 1 / 3]),
    st.lists(st.integers(-(10**5), 10**5), min_size=1, max_size=6),
    st.floats(-0.049, 0.049),
)
def test_one_grid_is_told_by_a_tolerance_and_not_by_bins(millimetres, side, steps, off):
    """Wherever the first corner lies: whole pixels away, give or take a twentieth, is one grid."""

    def place(step, off=0.0):
        left = 500_000 + millimetres / 1000 + side * (step + off)
        return rasterio.Affine(side, 0, left, 0, -side, 5_400_000 + millimetres / 1000)

    crs = SPELLINGS["EPSG"]
    first, others = (crs, place(0)), [(crs, place(step, off)) for step in steps]
    assert grids_of(first, *others) == 1
    assert grids_of(first, (crs, place(steps[0], 0.1 + off))) == 2


def test_crss_of_one_grid_compare_by_meaning():
    place = rasterio.Affine(0.2, 0, 500_000, 0, -0.2, 5_400_000)
    for one in SPELLINGS.values():
        for other in SPELLINGS.values():
            assert grids_of((one, place), (other, place)) == 1
        assert grids_of((one, place), (CRS.from_epsg(25833), place)) == 2
        assert grids_of((one, place), (CRS.from_epsg(32632), place)) == 2  # another datum


def test_other_grids_are_other_mosaics_and_said_to_be(tmp_path, model, caplog, capsys):
    """Another zone, another pixel size, half a pixel aside; what has no place has no outlines."""
    pixels = photograph(90, 120)
    (tmp_path / "in").mkdir()
    aside = shifted(PLACE, 0, 1000.5)
    grids = [
        (UTM, PLACE),
        (CRS.from_epsg(32644), PLACE),
        (UTM, rasterio.Affine(0.303, 0, 500_000, 0, -0.303, 3_000_000)),
    ]
    for number, (crs, place) in enumerate([*grids, (UTM, aside), (None, None)], start=1):
        write(tmp_path / "in" / f"town{number}.tif", pixels, crs=crs, transform=place)
    predict_shards([tmp_path / "in"], tmp_path / "out", 2, range(2))
    capsys.readouterr()
    merge.main([str(tmp_path / "out"), "--no-separate"])
    assert "the scenes lie on 5 grids (CRS, pixel size, alignment)" in caplog.text
    assert "town5.tif has no georeference" in caplog.text
    names = [f"mosaic-{number}.vrt" for number in range(1, 6)]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.vrt")) == names
    mask = np.where(pixels[0] >= 128, 255, 0).astype(np.uint8)
    for name in names:
        with rasterio.open(tmp_path / "out" / name) as found:
            np.testing.assert_array_equal(found.read(1), mask)
    count = sum(len(outlined(mask, place, crs)) for crs, place in [*grids, (UTM, aside)])
    assert len(geopandas.read_parquet(tmp_path / "out/footprints.parquet")) == count
    assert capsys.readouterr().out.endswith(f"footprints.parquet: {count} buildings\n")


def test_no_building_is_an_empty_table(tmp_path, model):
    cut(tmp_path / "in", np.zeros((3, 50, 50), np.uint8), [(slice(0, 50), slice(0, 50))])
    predict_shards([tmp_path / "in"], tmp_path / "out", 1, [0])
    merge.main([str(tmp_path / "out")])
    assert buildings(tmp_path / "out/footprints.parquet") == {}


def test_the_table_is_written_group_by_group(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    from segment.geo import geoparquet

    monkeypatch.setattr(geoparquet, "GROUP", 10)
    mask = np.zeros((40, 40), np.uint8)
    mask[1::4, 1::4] = 255
    batch = footprints.polygons(mask, PLACE, UTM)
    assert geoparquet.write_geoparquet([batch] * 3, tmp_path / "a.parquet") == 300
    file = parquet.ParquetFile(tmp_path / "a.parquet")
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert max(sizes) == 10 and sum(sizes) == 300
    about = json.loads(file.schema_arrow.metadata[b"geo"])
    assert (about["version"], about["primary_column"]) == ("1.1.0", "geometry")
    some = geopandas.read_parquet(tmp_path / "a.parquet", bbox=tuple(batch.lonlat[7].bounds))
    assert len(some) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet"]


# ---------------------------------------------------------------- what is missing


def test_missing_masks_are_named_with_their_shards(tmp_path, model, capsys):
    scene = write(tmp_path / "town1.tif", photograph(300, 300))
    predict_shards([scene], tmp_path / "out", 4, [2])
    capsys.readouterr()
    with pytest.raises(InputError) as caught:
        merge.main([str(tmp_path / "out")])
    sentence = "3 of 4 masks are missing: run again shard 0 (town1_r0_c0.tif); shard 1 (town1_r0"
    assert str(caught.value).startswith(sentence) and "shard 2" not in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "masks"]

    merge.main([str(tmp_path / "out"), "--status"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "shard 0: 0 of 1 masks" and lines[-1] == "1 of 4 masks are done"
    assert len(lines) == 4
    predict_shards([scene], tmp_path / "out", 4, [0, 1, 3])
    capsys.readouterr()
    merge.main([str(tmp_path / "out"), "--status"])
    assert capsys.readouterr().out == "4 of 4 masks are done\n"


def test_many_missing_masks_are_still_one_line(tmp_path, model):
    scene = write(tmp_path / "town1.tif", photograph(600, 600))
    predict.main([str(scene), "--out", str(tmp_path / "out"), "--shards", "8"])
    with pytest.raises(InputError, match=r"^9 of 9 masks .* shard 4 \(\S+\); and 3 more$"):
        merge.main([str(tmp_path / "out")])


def test_a_mask_of_another_plan_is_refused(tmp_path, model):
    scene = write(tmp_path / "town1.tif", photograph(300, 300))
    predict_shards([scene], tmp_path / "out", 1, [0])
    predict_shards([scene], tmp_path / "other", 1, [0], "--threshold", "0.9")
    foreign = (tmp_path / "other/masks/town1.tif").read_bytes()
    (tmp_path / "out/masks/town1.tif").write_bytes(foreign)
    with pytest.raises(InputError, match=r"town1\.tif is no mask of this plan: run its shard"):
        merge.main([str(tmp_path / "out")])
    assert not (tmp_path / "out/footprints.parquet").exists()


@pytest.mark.parametrize(
    "text, sentence",
    [
        (None, r"manifest\.json: no such file; `segment.predict --shards N --out"),
        ("{", r"manifest\.json: expected JSON"),
        ('{"request": {}, "crs": [], "scenes": [{}]}', r"expected the plan of a sharded"),
    ],
)
def test_a_folder_without_a_plan_is_refused(tmp_path, text, sentence):
    if text:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        merge.main([str(tmp_path)])


# ---------------------------------------------------------------- in a bucket


def test_a_bucket_serves_as_a_folder(bucket, tmp_path, model, capsys):
    """Scenes, plan, masks and map: as on the disk, and nothing is written twice."""
    scene = write(tmp_path / "town1.tif", photograph(300, 400))
    (bucket / "in/town1.tif").upload(scene)
    predict_shards([scene], tmp_path / "here", 4, range(4))
    merge.main([str(tmp_path / "here")])

    out = bucket / "out"
    predict_shards([bucket / "in"], out, 4, [3, 1])
    capsys.readouterr()
    merge.main([str(out), "--status"])
    assert capsys.readouterr().out.endswith("2 of 4 masks are done\n")
    with pytest.raises(InputError, match="2 of 4 masks are missing: run again shard 0"):
        merge.main([str(out)])
    first = {path: path.etag for path in (out / "masks").iterdir()}
    damaged = min(first)
    damaged.write(damaged.read_bytes()[:-100])
    predict_shards([bucket / "in"], out, 4, range(4))
    assert {path: path.etag for path in (out / "masks").iterdir()}.items() >= first.items()
    merge.main([str(out), "--cog"])
    assert capsys.readouterr().out.splitlines()[-2] == f"{out}/mosaic.tif"

    for name in ("mosaic.vrt", "mosaic.tif", "footprints.parquet"):
        (out / name).download(tmp_path / "there" / name)
    for mask in (out / "masks").iterdir():
        mask.download(tmp_path / "there/masks" / mask.name)
    with rasterio.open(tmp_path / "here/mosaic.vrt") as expected:
        for name in ("mosaic.vrt", "mosaic.tif"):
            with rasterio.open(tmp_path / "there" / name) as found:
                np.testing.assert_array_equal(found.read(), expected.read())
    tables = [tmp_path / side / "footprints.parquet" for side in ("here", "there")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
