"""Where stored scenes lie, at the edges of the globe: RFC 7946 (3.1.9, 5.2) and WKT2."""

import numpy as np
import pytest
from affine import Affine

from api.store.stac import describe
from segment.data.rasters import open_raster
from tests.segment.pictures import photograph, write_picture

pyproj = pytest.importorskip("pyproj")
shapely = pytest.importorskip("shapely")


def item(tmp_path, crs, transform):
    path = write_picture(tmp_path / "s.tif", photograph(100, 120), crs=crs, transform=transform)
    with open_raster(path) as scene:
        return describe("s", scene)


def test_a_scene_across_180_degrees_is_cut_there(tmp_path):
    to = pyproj.Transformer.from_crs("OGC:CRS84", "EPSG:32760", always_xy=True)
    x, y = to.transform(180, -16.8)
    found = item(tmp_path, "EPSG:32760", Affine(10, 0, x - 500, 0, -10, y + 500))
    outline = shapely.geometry.shape(found["geometry"])
    assert outline.geom_type == "MultiPolygon" and len(outline.geoms) == 2
    assert all(part.exterior.is_ccw and -180 <= part.bounds[0] for part in outline.geoms)
    west, south, east, north = found["bbox"]
    assert 179.9 < west < 180 and -180 < east < -179.9 and south < -16.8 < north
    area = sum(abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(p)[0]) for p in outline.geoms)
    assert area == pytest.approx(100 * 120 * 100, rel=3e-3)  # the grid's own scale at its edge


@pytest.mark.parametrize("down", [-10, 10])
def test_shells_are_counter_clockwise_south_up_too(tmp_path, down):
    found = item(tmp_path, "EPSG:32633", Affine(10, 0, 500_000, 0, down, 5_000_000))
    assert shapely.geometry.shape(found["geometry"]).exterior.is_ccw


def test_longitudes_from_0_to_360(tmp_path):
    found = item(tmp_path, "EPSG:4326", Affine(1e-4, 0, 289.5, 0, -1e-4, -33.4))
    np.testing.assert_allclose(found["bbox"], [-70.5, -33.41, -70.488, -33.4], atol=1e-6)


def test_a_crs_without_a_code_is_written_as_wkt2(tmp_path):
    crs = "+proj=laea +lat_0=30 +lon_0=10 +ellps=GRS80 +units=m"
    found = item(tmp_path, crs, Affine(10, 0, 0, 0, -10, 0))
    assert found["properties"]["proj:wkt2"].startswith("PROJCRS[")
