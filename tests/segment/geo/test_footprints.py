"""Outlines against areas worked out by hand, shapely's validity and files read back."""

import json
import math
import resource

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import rasterize

from segment.errors import InputError
from segment.geo import footprints

pyogrio = pytest.importorskip("pyogrio")
shapely = pytest.importorskip("shapely")
pyproj = pytest.importorskip("pyproj")

UTM = CRS.from_epsg(32645)
MERCATOR = CRS.from_epsg(3857)
AT_UTM = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)


def random_mask(seed, shape=(40, 60)):
    rng = np.random.default_rng(seed)
    return (rng.random(shape) < rng.uniform(0.2, 0.8)).astype(np.uint8) * 255


def test_holes_and_sides_make_the_polygons():
    mask = np.zeros((8, 10), np.uint8)
    mask[1:6, 1:6] = 255
    mask[3, 3] = 0  # a courtyard
    mask[6, 6] = 255  # touches by a corner only: another building
    found = footprints.polygons(mask, AT_UTM, UTM)
    by_area = sorted(found.outlines, key=lambda polygon: polygon.area)
    assert [polygon.area for polygon in by_area] == [0.25, 24 * 0.25]
    assert [len(polygon.interiors) for polygon in by_area] == [0, 1]
    assert by_area[1].bounds == (500_000.5, 3_000_000 - 3, 500_003, 3_000_000 - 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_drawing_the_outlines_gives_the_mask_back(seed):
    mask = random_mask(seed)
    transform = Affine(0.8, 0.9, 500_000, 0.6, -1.2, 3_000_000)  # rotated, oblong pixels
    found = footprints.polygons(mask, transform, UTM)
    assert shapely.is_valid(found.outlines).all()
    drawn = rasterize(found.outlines, mask.shape, transform=transform, default_value=255)
    np.testing.assert_array_equal(drawn, mask)


def test_area_is_on_the_ground_whatever_the_crs():
    """At 60 degrees Mercator doubles lengths: 4000 m2 on the map are about 1000 on the ground."""
    x, y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(20, 60)
    mask = np.full((40, 100), 255, np.uint8)
    found = footprints.polygons(mask, Affine(1, 0, x, 0, -1, y), MERCATOR)
    assert found.outlines[0].area == 4000
    # the local scale of spherical Mercator on the WGS 84 ellipsoid, along and across the meridian
    flattening = 1 / 298.257223563
    e2 = flattening * (2 - flattening)
    w2 = 1 - e2 * math.sin(math.radians(60)) ** 2
    east, north = 1 / w2**0.5, (1 - e2) / w2**1.5  # radii of curvature over the equator's
    half = math.cos(math.radians(60))
    assert found.area_m2[0] == pytest.approx(4000 * half * east * half * north, rel=1e-4)
    assert found.area_m2[0] < 1010
    assert len(footprints.polygons(mask, Affine(1, 0, x, 0, -1, y), MERCATOR, 2000).area_m2) == 0

    degrees = Affine(1e-5, 0, 20, 0, -1e-5, 60)
    same = footprints.polygons(mask, degrees, CRS.from_epsg(4326))
    metres = 1e-5 * math.radians(1) * 6378137
    expected = 100 * metres * half * east * 40 * metres * north
    assert same.area_m2[0] == pytest.approx(expected, rel=1e-4)


def test_courtyards_are_no_area():
    mask = np.full((10, 10), 255, np.uint8)
    full = footprints.polygons(mask, AT_UTM, UTM).area_m2[0]
    mask[3:6, 3:6] = 0
    holed = footprints.polygons(mask, AT_UTM, UTM).area_m2[0]
    assert holed == pytest.approx(full * 91 / 100, rel=1e-6)


def test_min_area_drops_the_small():
    mask = np.zeros((20, 20), np.uint8)
    mask[0:2, 0:2] = mask[5:15, 5:15] = 255  # 1 m2 and 25 m2
    assert len(footprints.polygons(mask, AT_UTM, UTM, min_area=0.9).area_m2) == 2
    kept = footprints.polygons(mask, AT_UTM, UTM, min_area=1.1)
    assert kept.area_m2 == pytest.approx([25], rel=1e-3)
    assert len(kept.outlines) == len(kept.lonlat) == 1


@pytest.mark.parametrize(
    "crs, transform",
    [
        (UTM, AT_UTM),
        (MERCATOR, Affine(1, 0, 2_226_389, 0, -1, 8_399_737)),  # 0.5 m on the ground at 60 degrees
        (CRS.from_epsg(4326), Affine(9e-6, 0, 20, 0, -4.5e-6, 60)),
    ],
)
def test_simplify_is_in_metres_on_the_ground(crs, transform):
    """The staircase of a slanted edge goes; nothing moves further than the tolerance."""
    row, col = np.mgrid[:80, :80]
    mask = np.where((col > row / 2 + 5) & (col < 70) & (row > 4) & (row < 70), 255, 0)
    mask = mask.astype(np.uint8)
    exact = footprints.polygons(mask, transform, crs)
    simple = footprints.polygons(mask, transform, crs, simplify=1.0)
    corners = shapely.get_num_coordinates(exact.outlines)
    assert corners > 60 and shapely.get_num_coordinates(simple.outlines) <= 6
    scale = math.sqrt(exact.area_m2[0] / exact.outlines[0].area)  # metres a unit of the CRS
    if crs == UTM:
        assert shapely.hausdorff_distance(exact.outlines, simple.outlines) * scale <= 1.0
    finer = footprints.polygons(mask, transform, crs, simplify=0.1)  # below the steps' 0.22 m
    assert shapely.get_num_coordinates(finer.outlines) == corners


@pytest.mark.parametrize("seed", range(5))
def test_simplified_and_rounded_outlines_are_valid(seed):
    found = footprints.polygons(random_mask(seed), AT_UTM, UTM, simplify=0.6)
    assert shapely.is_valid(found.outlines).all()
    for feature in footprints.feature_collection(found)["features"]:
        assert shapely.geometry.shape(feature["geometry"]).is_valid


def test_geojson_is_rfc_7946(tmp_path):
    mask = np.zeros((10, 10), np.uint8)
    mask[2:8, 2:8] = 255
    mask[4:6, 4:6] = 0
    path = tmp_path / "a.geojson"
    footprints.write(footprints.polygons(mask, AT_UTM, UTM), path)
    collection = json.loads(path.read_text())
    assert collection["type"] == "FeatureCollection" and "crs" not in collection
    (feature,) = collection["features"]
    shell, hole = (shapely.LinearRing(ring) for ring in feature["geometry"]["coordinates"])
    assert shell.is_ccw and not hole.is_ccw
    to_degrees = pyproj.Transformer.from_crs(32645, 4326, always_xy=True)
    lon, lat = to_degrees.transform(500_001, 2_999_999)
    assert shell.bounds[0] == pytest.approx(lon, abs=1e-7)
    assert shell.bounds[3] == pytest.approx(lat, abs=1e-7)
    assert feature["properties"]["area_m2"] == pytest.approx(8, abs=0.02)
    assert list(tmp_path.iterdir()) == [path]


def test_geopackage_keeps_the_crs(tmp_path):
    wkt = (
        'PROJCRS["site grid",BASEGEOGCRS["WGS 84",DATUM["World Geodetic System 1984",'
        'ELLIPSOID["WGS 84",6378137,298.257223563]]],CONVERSION["c",METHOD["Transverse Mercator"],'
        'PARAMETER["Latitude of natural origin",27.1,ANGLEUNIT["degree",0.0174532925199433]],'
        'PARAMETER["Longitude of natural origin",85.3,ANGLEUNIT["degree",0.0174532925199433]],'
        'PARAMETER["Scale factor at natural origin",1,SCALEUNIT["unity",1]],'
        'PARAMETER["False easting",100,LENGTHUNIT["metre",1]],'
        'PARAMETER["False northing",200,LENGTHUNIT["metre",1]]],CS[Cartesian,2],AXIS["E",east],'
        'AXIS["N",north],LENGTHUNIT["metre",1]]'
    )
    crs = CRS.from_wkt(wkt)
    assert crs.to_epsg() is None
    found = footprints.polygons(random_mask(0), Affine(1, 0, 90, 0, -1, 210), crs)
    path = tmp_path / "a.gpkg"
    footprints.write(found, path)
    meta, _, geometry, (_, area, _, _) = pyogrio.raw.read(path, layer="buildings")
    assert pyproj.CRS(meta["crs"]).equals(pyproj.CRS(crs.to_wkt()), ignore_axis_order=True)
    np.testing.assert_array_equal(area, found.area_m2)
    assert shapely.equals(shapely.from_wkb(geometry), found.outlines).all()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("limit", [1, 5_000, 50_000, 90_000, 100_000, 110_000])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, limit):
    """A limit on file sizes fails writes as a full disk does, at the start or at the end."""
    found = footprints.polygons(random_mask(0), AT_UTM, UTM)
    path, (soft, hard) = tmp_path / "a.gpkg", resource.getrlimit(resource.RLIMIT_FSIZE)
    footprints.write(found, path)
    assert path.stat().st_size > limit
    path.unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(InputError, match=r"a\.gpkg could not be written"):
            footprints.write(found, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_no_building_is_an_empty_file(tmp_path):
    found = footprints.polygons(np.zeros((5, 5), np.uint8), AT_UTM, UTM, simplify=1)
    footprints.write(found, tmp_path / "a.geojson")
    assert json.loads((tmp_path / "a.geojson").read_text())["features"] == []
    footprints.write(found, tmp_path / "a.gpkg")
    assert len(pyogrio.raw.read(tmp_path / "a.gpkg")[2]) == 0


@pytest.mark.parametrize(
    "crs, transform",
    [
        (None, AT_UTM),
        (UTM, Affine.identity()),
        (CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]'), AT_UTM),
    ],
)
def test_a_scene_without_a_place_is_refused(crs, transform):
    with pytest.raises(InputError, match=r"a\.tif.*footprints need one"):
        footprints.require_place(crs, transform, "a.tif")
    with pytest.raises(InputError):
        footprints.polygons(np.ones((4, 4), np.uint8), transform, crs)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyogrio", None)
    with pytest.raises(InputError, match=r"pyogrio: pip install pyogrio"):
        footprints.polygons(np.ones((4, 4), np.uint8), AT_UTM, UTM)
