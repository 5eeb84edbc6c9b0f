"""Masks to building outlines: what a map or a GIS wants instead of pixels."""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from minicnn.files import write_text
from segment.errors import DiskFull, InputError, needed
from segment.geo.buildings import Buildings, all_buildings
from segment.geo.right_angles import right_angled
from segment.geo.separate import TOGETHER, Separation

DRIVERS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".shp": "ESRI Shapefile"}
DECIMALS = 7  # of a degree: about a centimetre
WALL = 1.0  # metres: what is shorter is the mask's unsteady hand, not a wall


@dataclass(frozen=True)
class Footprints:
    """F building outlines: polygons with holes, in the scene's own CRS and as WGS 84 degrees."""

    crs: str  # WKT
    outlines: NDArray[np.object_]  # shapely polygons
    lonlat: NDArray[np.object_]  # the same as longitude and latitude: see `on_the_globe`
    area_m2: NDArray[np.float64]  # on the ground: geodesic, whatever the CRS
    id: NDArray[np.int64]  # of a building in its scene or mosaic: see `Buildings`
    confidence: NDArray[np.float64]  # the mean probability of its pixels
    model: str = ""  # what found them


def require_vector(*more: str) -> None:
    """Raise InputError where the packages that outlines need, and `more`, aren't installed."""
    needed("drawing outlines", "shapely", "pyproj", "pyogrio", *more)


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
    mark: NDArray[np.uint8],
    transform: Affine,
    crs: CRS,
    min_area: float = 0.0,
    simplify: float = 0.0,
    right_angles: bool = False,
    how: Separation = TOGETHER,
) -> Footprints:
    """Outline every building of a whole scene (H, W): a mask, non-zero being building, or its
    `separate.marks`, from which a confidence follows.

    Pixels that touch by a side belong together (4-connectivity), unless `how` parts them. Outlines
    are simplified by Douglas-Peucker, no point moving further than `simplify` metres and rings
    staying valid; with `right_angles` they are drawn as in `segment.geo.right_angles`, with
    `simplify` metres (0: 1 m, or two pixels if that is more) for its tolerance. Then those below
    `min_area` m2 on the ground are dropped. Memory: what is given, plus about 100 bytes a corner,
    with right angles three times that. Raises what `require_vector` and `require_place` do.
    """
    require_vector()
    require_place(crs, transform, "the mask")
    found = all_buildings(mark, how)
    return placed(found, mark.shape, transform, crs, min_area, simplify, right_angles)


def placed(
    found: Buildings,
    shape: tuple[int, ...],
    transform: Affine,
    crs: CRS,
    min_area: float,
    simplify: float,
    right_angles: bool = False,
) -> Footprints:
    """Buildings of a scene of (H, W), or some of them, as `polygons` describes them."""
    import pyproj
    import shapely

    pixels = found.outlines
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
    about = area[keep], found.id[keep], found.confidence[keep]
    return Footprints(crs.to_wkt(), outlines[keep], on_the_globe(lonlat[keep]), *about)


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
    """GeoJSON (RFC 7946): WGS 84 longitude and latitude, shells counter-clockwise.

    Properties: `id`, `area_m2`, `confidence`, and `model` where that is known.
    """
    import shapely

    rounded = shapely.transform(footprints.lonlat, lambda xy: np.round(xy, DECIMALS))
    features = [
        {
            "type": "Feature",
            "properties": about,
            "geometry": shapely.geometry.mapping(polygon),
        }
        for polygon, about in zip(rounded, properties(footprints), strict=True)
    ]
    return {"type": "FeatureCollection", "features": features}


def properties(footprints: Footprints) -> Iterator[dict[str, Any]]:
    """What is said of each building beside its outline."""
    model = {"model": footprints.model} if footprints.model else {}
    columns = footprints.id, footprints.area_m2, footprints.confidence
    for identity, area, sure in zip(*(column.tolist() for column in columns), strict=True):
        yield {"id": identity, "area_m2": round(area, 2), "confidence": round(sure, 3)} | model


def write(footprints: Footprints, path: str | Path) -> None:
    """Write the format that the path's ending stands for; GeoJSON if it is none of the others."""
    from segment.geo.geoparquet import write_geoparquet

    ending = Path(path).suffix.lower()
    if ending in (".parquet", ".geoparquet"):
        write_geoparquet([footprints], path)
    elif ending in DRIVERS:
        write_layer(footprints, path, DRIVERS[ending])
    else:
        write_text(path, json.dumps(feature_collection(footprints)))


def write_layer(footprints: Footprints, path: str | Path, driver: str) -> None:
    """Layer `buildings` in the scene's own CRS, the `properties` being columns.

    A Shapefile's other files lie beside it; the .shp, which a reader opens, comes last. DiskFull
    where it can't be written.
    """
    import pyogrio.errors
    import pyogrio.raw
    import shapely

    model = np.full(len(footprints.id), footprints.model, object)
    columns = {
        "id": footprints.id,
        "area_m2": footprints.area_m2,
        "confidence": footprints.confidence.round(3),
        "model": model,
    }
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as folder:
        made = Path(folder) / path.name
        try:
            pyogrio.raw.write(
                made,
                geometry=shapely.to_wkb(footprints.outlines),
                field_data=list(columns.values()),
                fields=list(columns),
                crs=footprints.crs,
                geometry_type="Polygon",
                layer=path.stem if driver == DRIVERS[".shp"] else "buildings",
                driver=driver,
            )
            written = pyogrio.raw.read(made)[2]
        except (pyogrio.errors.DataSourceError, pyogrio.errors.FeatureError) as error:
            raise DiskFull(f"{path} could not be written: is the disk full?") from error
        if len(written) != len(footprints.outlines):  # GDAL doesn't always say
            raise DiskFull(f"{path} could not be written whole: is the disk full?")
        for part in sorted(Path(folder).iterdir(), key=lambda file: file == made):
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path.with_name(part.name))
