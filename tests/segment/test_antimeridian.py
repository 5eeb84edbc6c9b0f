"""Buildings about 180 degrees of longitude: all there, with their area, cut where RFC 7946 says."""

import json

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from segment.geo import footprints
from segment.geo.geoparquet import write_geoparquet

pyogrio = pytest.importorskip("pyogrio")
shapely = pytest.importorskip("shapely")
pyproj = pytest.importorskip("pyproj")
pq = pytest.importorskip("pyarrow.parquet")

GEOD = pyproj.Geod(ellps="WGS84")


def town(longitude, latitude, epsg, side):
    """A mask of three buildings west of, across and east of a place, with the mask's transform."""
    to = pyproj.Transformer.from_crs("OGC:CRS84", epsg, always_xy=True)
    x, y = to.transform(longitude, latitude)
    mask = np.zeros((512, 512), np.uint8)
    mask[60:100, 80:130] = mask[220:280, 230:290] = mask[400:450, 400:450] = 255
    mask[240:260, 240:250] = 0  # a courtyard on the western side
    return mask, Affine(side, 0, x - 256 * side, 0, -side, y + 256 * side)


def area_of(transform, epsg, col, row, width, height):
    """The oracle: the area on the ellipsoid of a rectangle of pixels, unwrapped by hand."""
    corners = ((col, row), (col, row + height), (col + width, row + height), (col + width, row))
    to = pyproj.Transformer.from_crs(epsg, "OGC:CRS84", always_xy=True)
    lon, lat = to.transform(*zip(*(transform @ corner for corner in corners), strict=True))
    lon = [value + 360 if value < 0 else value for value in lon]
    return abs(GEOD.polygon_area_perimeter(lon, lat)[0])


PLACES = [
    pytest.param(180, -16.8, "EPSG:32760", 0.3, id="Taveuni, UTM 60 S"),
    pytest.param(-180, 66.0, "EPSG:32601", 0.3, id="Chukotka, UTM 1 N"),
    pytest.param(180, -16.8, "EPSG:3832", 0.3, id="Pacific Mercator"),
    pytest.param(180, 51.9, "EPSG:4326", 3e-6, id="degrees beyond 180"),
]


@pytest.mark.parametrize(("longitude", "latitude", "epsg", "side"), PLACES)
def test_no_building_is_lost_and_areas_are_of_the_ellipsoid(
    tmp_path, longitude, latitude, epsg, side
):
    mask, transform = town(longitude, latitude, epsg, side)
    found = footprints.polygons(mask, transform, CRS.from_string(epsg), min_area=1.0)
    place = transform, epsg
    want = [
        area_of(*place, 80, 60, 50, 40),
        area_of(*place, 230, 220, 60, 60) - area_of(*place, 240, 240, 10, 20),
        area_of(*place, 400, 400, 50, 50),
    ]
    np.testing.assert_allclose(sorted(found.area_m2), sorted(want), rtol=1e-6)

    features = footprints.feature_collection(found)["features"]
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in features]
    assert sorted(shape.geom_type for shape in shapes) == ["MultiPolygon", "Polygon", "Polygon"]
    for shape, area in zip(shapes, found.area_m2, strict=True):
        parts = shapely.get_parts(shape)
        assert all(-180 <= lon <= 180 for lon in shapely.get_coordinates(shape)[:, 0])
        assert all(part.exterior.is_ccw and part.is_valid for part in parts)
        assert not any(hole.is_ccw for part in parts for hole in part.interiors)
        whole = sum(abs(GEOD.geometry_area_perimeter(part)[0]) for part in parts)
        assert whole == pytest.approx(area, rel=2e-3)  # coordinates are rounded to a centimetre
        sides = {bool(shapely.bounds(part)[2] > 0) for part in parts}
        assert len(sides) == len(parts)  # one part each side of 180

    footprints.write(found, tmp_path / "a.gpkg")
    assert pyogrio.read_info(tmp_path / "a.gpkg", layer="buildings")["features"] == 3
    assert write_geoparquet([found], tmp_path / "a.parquet") == 3
    table = pq.read_table(tmp_path / "a.parquet")
    np.testing.assert_allclose(sorted(table["area_m2"].to_pylist()), sorted(want), rtol=1e-6)
    types = {shapely.from_wkb(wkb).geom_type for wkb in table["geometry"].to_pylist()}
    told = json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]["geometry_types"]
    assert types <= set(told)
    for box in table["bbox"].to_pylist():  # a filter by it loses nothing
        assert -180 <= box["xmin"] < box["xmax"] <= 180


@pytest.mark.parametrize("turns", [-1, 0, 1, 2])
def test_longitudes_of_any_turn_are_those_of_the_globe(turns):
    """A grid of 0 to 360 degrees is in the same place as one of -180 to 180."""
    mask = np.zeros((60, 60), np.uint8)
    mask[10:30, 10:40] = 255
    crs = CRS.from_epsg(4326)
    there = footprints.polygons(mask, Affine(3e-6, 0, -70.5, 0, -3e-6, -33.4), crs)
    turned = footprints.polygons(mask, Affine(3e-6, 0, -70.5 + 360 * turns, 0, -3e-6, -33.4), crs)
    np.testing.assert_allclose(turned.lonlat[0].bounds, there.lonlat[0].bounds, atol=1e-9)
    assert turned.area_m2[0] == pytest.approx(there.area_m2[0], rel=1e-6)


def test_a_polygon_that_ends_on_180_is_not_cut():
    edge = np.array([shapely.box(179.9999, 10, 180, 10.0001), shapely.box(-180, 0, -179, 1)])
    assert shapely.equals(footprints.on_the_globe(footprints.unwrapped(edge)), edge).all()


def test_a_concave_outline_may_have_many_parts():
    teeth = [
        point for y in (1, 3, 5) for point in ((181, y - 1), (181, y), (179.5, y), (179.5, y + 1))
    ]
    comb = shapely.Polygon([(179, 0), *teeth[:-2], (179, 5)])
    wrapped = shapely.transform(
        comb, lambda xy: np.column_stack([(xy[:, 0] + 180) % 360 - 180, xy[:, 1]])
    )
    (whole,) = footprints.unwrapped(np.array([wrapped]))
    assert whole.equals(comb)
    (cut,) = footprints.on_the_globe(np.array([whole]))
    assert len(cut.geoms) == 4 and cut.is_valid and cut.area == pytest.approx(comb.area)
    assert footprints.globe_box(whole) == [179, 0, -179, 5]
