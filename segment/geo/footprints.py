"""Masks to building outlines: what a map or a GIS wants instead of pixels."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize, shapes

from minicnn.files import atomic_write
from segment.errors import DiskFull, InputError
from segment.geo.right_angles import right_angled

DECIMALS = 7  # of a degree: about a centimetre
WALL = 1.0  # metres: what is shorter is the mask's unsteady hand, not a wall


@dataclass(frozen=True)
class Footprints:
    """F building outlines: polygons with holes, in the scene's own CRS and as WGS 84 degrees."""

    crs: str  # WKT
    outlines: NDArray[np.object_]  # shapely polygons
    lonlat: NDArray[np.object_]  # the same as longitude and latitude: see `on_the_globe`
    area_m2: NDArray[np.float64]  # on the ground: geodesic, whatever the CRS


def require_vector(*more: str) -> None:
    """Raise InputError where the packages that outlines need, and `more`, aren't installed."""
    for name in ("shapely", "pyproj", "pyogrio", *more):
        try:
            importlib.import_module(name)
        except ImportError:
            raise InputError(f"footprints need the package {name}: pip install {name}") from None


def require_place(crs: CRS | None, transform: Affine, name: str | Path) -> None:
    """Raise InputError where a scene's georeference can't place an outline on the Earth."""
    import pyproj

    if crs is None or transform.is_identity:
        raise InputError(f"{name} has no georeference, and footprints need one to be placed by")
    try:
        pyproj.Transformer.from_crs(crs.to_wkt(), "OGC:CRS84", always_xy=True)
    except pyproj.exceptions.ProjError:
        raise InputError(
            f"{name}: its CRS has no known place on the Earth, and footprints need one"
        ) from None


def polygons(
    mask: NDArray[np.uint8],
    transform: Affine,
    crs: CRS,
    min_area: float = 0.0,
    simplify: float = 0.0,
    right_angles: bool = False,
) -> Footprints:
    """Outline every building of a whole (H, W) mask, non-zero being building.

    Pixels that touch by a side belong together (4-connectivity). Outlines are simplified by
    Douglas-Peucker, no point moving further than `simplify` metres and rings staying valid; with
    `right_angles` they are drawn as in `segment.geo.right_angles`, with `simplify` metres (0: 1 m,
    or two pixels if that is more) for its tolerance. Then those below `min_area` m2 on the ground
    are dropped. Memory: the mask, plus about 100 bytes a corner, with right angles three times
    that. Raises InputError as `require_vector` and `require_place` do.
    """
    require_vector()
    require_place(crs, transform, "the mask")
    pixels = pixel_outlines(mask)
    return placed(pixels, mask.shape, transform, crs, min_area, simplify, right_angles)


def pixel_outlines(mask: NDArray[np.uint8]) -> NDArray[np.object_]:
    """The polygon of every building of a mask, corner points being (col, row) of whole pixels."""
    import shapely

    found = shapes((mask != 0).astype(np.uint8), mask=mask != 0, connectivity=4)
    polygons = np.array([shapely.geometry.shape(shape) for shape, _ in found], dtype=object)
    return shapely.normalize(polygons)  # one building, one order of its points


def placed(
    pixels: NDArray[np.object_],
    shape: tuple[int, ...],
    transform: Affine,
    crs: CRS,
    min_area: float,
    simplify: float,
    right_angles: bool = False,
) -> Footprints:
    """`pixel_outlines` of a mask of (H, W), or some of them, as `polygons` describes them."""
    import pyproj
    import shapely

    to_lonlat = pyproj.Transformer.from_crs(crs.to_wkt(), "OGC:CRS84", always_xy=True)
    if simplify > 0 or right_angles:
        scale = _metres_per_pixel(shape, transform, to_lonlat)
        metres = shapely.transform(pixels, lambda xy: xy * scale)
        if right_angles:
            metres = right_angled(metres, simplify or max(WALL, 2 * scale.max()))
        else:
            metres = shapely.simplify(metres, simplify, preserve_topology=True)
        pixels = shapely.transform(metres, lambda xy: xy / scale)
    outlines = shapely.transform(pixels, lambda xy: _apply(transform, xy))
    lonlat = shapely.transform(outlines, lambda xy: np.column_stack(to_lonlat.transform(*xy.T)))
    lonlat = shapely.orient_polygons(unwrapped(lonlat))
    geod = pyproj.Geod(ellps="WGS84")
    area = np.array([geod.geometry_area_perimeter(polygon)[0] for polygon in lonlat], dtype=float)
    keep = area >= min_area
    return Footprints(crs.to_wkt(), outlines[keep], on_the_globe(lonlat[keep]), area[keep])


def unwrapped(lonlat: NDArray[np.object_]) -> NDArray[np.object_]:
    """Polygons of degrees without a jump from 180 to -180: each begins in [-180, 180).

    A ring's longitudes may be any of those a whole turn apart; each polygon gets those nearest to
    its first point's, so that it has one shape, one area and one direction of its ring.
    """
    import shapely

    if len(lonlat) == 0:
        return lonlat
    degrees, polygon = shapely.get_coordinates(lonlat, return_index=True)
    _, first = np.unique(polygon, return_index=True)
    degrees[:, 0] -= 360 * np.round((degrees[:, 0] - degrees[first, 0][polygon]) / 360)
    west = np.minimum.reduceat(degrees[:, 0], first)
    degrees[:, 0] -= (360 * np.floor((west + 180) / 360))[polygon]
    return shapely.set_coordinates(lonlat.copy(), degrees)


def on_the_globe(lonlat: NDArray[np.object_]) -> NDArray[np.object_]:
    """`unwrapped` polygons as RFC 7946 (3.1.9) wants them: one across 180 degrees is cut there.

    Its parts are a MultiPolygon, the eastern one with longitudes from -180 up; shells are
    counter-clockwise.
    """
    import shapely

    parts = lonlat.copy()
    for index in np.flatnonzero(shapely.bounds(lonlat)[:, 2] > 180):
        west = shapely.intersection(lonlat[index], shapely.box(-180, -90, 180, 90))
        beyond = shapely.intersection(lonlat[index], shapely.box(180, -90, 540, 90))
        east = shapely.transform(beyond, lambda xy: xy - [360, 0])
        pieces = [piece for piece in shapely.get_parts([west, east]) if piece.area > 0]
        parts[index] = pieces[0] if len(pieces) == 1 else shapely.multipolygons(pieces)
    return shapely.orient_polygons(parts)


def globe_box(unwrapped: Any) -> list[float]:
    """West, south, east, north of an `unwrapped` polygon: across 180 degrees west is the larger
    (RFC 7946, 5.2)."""
    west, south, east, north = map(float, unwrapped.bounds)
    return [west, south, east - 360 if east > 180 else east, north]


def components(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number what hangs together by the sides of its pixels, from 1 up; 0 where the mask is."""
    found = shapes(mask.astype(np.uint8), mask=mask, connectivity=4)
    numbered = [(shape, number) for number, (shape, _) in enumerate(found, start=1)]
    labels = np.zeros(mask.shape, np.int32)
    return rasterize(numbered, out=labels) if numbered else labels


def _metres_per_pixel(
    shape: tuple[int, ...], transform: Affine, to_lonlat: Any
) -> NDArray[np.float64]:
    """Ground length of one step along a row and one along a column, at the mask's centre."""
    import pyproj

    row, col = shape[0] / 2, shape[1] / 2
    corners = np.array([(col, row), (col + 1, row), (col, row + 1)])
    (lon, *lons), (lat, *lats) = to_lonlat.transform(*_apply(transform, corners).T)
    _, _, lengths = pyproj.Geod(ellps="WGS84").inv([lon] * 2, [lat] * 2, lons, lats)
    return np.array(lengths)


def _apply(transform: Affine, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixel (col, row) pairs -> (x, y) pairs in the CRS, both (N, 2)."""
    matrix = np.reshape(tuple(transform), (3, 3))
    return xy @ matrix[:2, :2].T + matrix[:2, 2]


def feature_collection(footprints: Footprints) -> dict[str, Any]:
    """GeoJSON (RFC 7946): WGS 84 longitude and latitude, shells counter-clockwise, `area_m2`."""
    import shapely

    rounded = shapely.transform(footprints.lonlat, lambda xy: np.round(xy, DECIMALS))
    features = [
        {
            "type": "Feature",
            "properties": {"area_m2": round(float(area), 2)},
            "geometry": shapely.geometry.mapping(polygon),
        }
        for polygon, area in zip(rounded, footprints.area_m2, strict=True)
    ]
    return {"type": "FeatureCollection", "features": features}


def write(footprints: Footprints, path: str | Path) -> None:
    """Write a GeoPackage if the path ends in .gpkg, GeoJSON otherwise."""
    if Path(path).suffix.lower() == ".gpkg":
        write_geopackage(footprints, path)
    else:
        write_geojson(footprints, path)


def write_geojson(footprints: Footprints, path: str | Path) -> None:
    """`feature_collection` as a file."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(feature_collection(footprints)))


def write_geopackage(footprints: Footprints, path: str | Path) -> None:
    """Layer `buildings` in the scene's own CRS, with `area_m2`; InputError where it can't be."""
    import pyogrio.errors
    import pyogrio.raw
    import shapely

    with atomic_write(path) as temporary:
        temporary.unlink()  # the driver makes the file itself, and an empty one is none
        try:
            pyogrio.raw.write(
                temporary,
                geometry=shapely.to_wkb(footprints.outlines),
                field_data=[footprints.area_m2],
                fields=["area_m2"],
                crs=footprints.crs,
                geometry_type="Polygon",
                layer="buildings",
                driver="GPKG",
            )
            written = pyogrio.raw.read(temporary)[2]
        except (pyogrio.errors.DataSourceError, pyogrio.errors.FeatureError) as error:
            raise DiskFull(f"{path} could not be written: is the disk full?") from error
        if len(written) != len(footprints.outlines):  # GDAL doesn't always say
            raise DiskFull(f"{path} could not be written whole: is the disk full?")
