"""Polygons of a vector file, whatever of the usual formats it is in: buildings drawn by people."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.features import bounds

from segment.data.ground import WGS84
from segment.errors import InputError, needed

SUFFIXES = (".geojson", ".json", ".gpkg", ".shp", ".fgb", ".parquet", ".geoparquet")
_FIRST_BYTES = {
    b"SQLite format 3\0": "GeoPackage",
    b"\x00\x00\x27\x0a": "Shapefile",
    b"fgb\x03fgb": "FlatGeobuf",
    b"PAR1": "GeoParquet",
}
_LAYER = "buildings"  # taken where a file has several of polygons


@dataclass(frozen=True)
class Polygons:
    """GeoJSON-like polygons in a CRS; left_out: how many shapes were none, by kind."""

    shapes: list[dict[str, Any]]
    crs: CRS
    left_out: Counter[str]

    def note(self, path: Path) -> str:
        """What was left out, in a sentence; empty where nothing was."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.left_out.items()))
        return f"{path}: left out what is no polygon ({kinds})" if kinds else ""


def read_polygons(path: Path) -> Polygons:
    """The polygons of a GeoJSON, GeoPackage, Shapefile, FlatGeobuf or GeoParquet file.

    They are taken out of collections, and what is none (a line, a ring of two points) is counted.
    GeoJSON is WGS 84, or what an old-style `crs` names. Raises InputError.
    """
    with path.open("rb") as file:
        start = file.read(16)
    kind = next((name for magic, name in _FIRST_BYTES.items() if start.startswith(magic)), None)
    if kind is None:
        geometries, crs = _geojson(path)
    elif kind == "GeoParquet":
        geometries, crs = _geoparquet(path)
    else:
        geometries, crs = _layer(path, kind)
    left_out: Counter[str] = Counter()
    shapes = list(_polygons(geometries, left_out))
    if left_out and not shapes:
        kinds = ", ".join(sorted(left_out))
        raise InputError(f"{path} holds a faulty shape or a {kinds}: polygons were expected")
    if crs.is_geographic and not all(map(_is_on_earth, shapes)):
        raise InputError(
            f"{path} has no longitudes and latitudes (in this order), and names no other CRS"
        )
    return Polygons(shapes, crs, left_out)


def _is_on_earth(shape: dict[str, Any]) -> bool:
    west, south, east, north = bounds(shape)
    return bool(-360 <= west <= east <= 360 and -90 <= south <= north <= 90)


# ---------------------------------------------------------------- shapes


def _polygons(geometries: Iterable[Any], left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    for geometry in geometries:
        geometry = geometry if isinstance(geometry, dict) else {}
        kind, coordinates = geometry.get("type"), geometry.get("coordinates")
        if coordinates == []:  # an empty one
            continue
        if kind == "GeometryCollection":
            members = geometry.get("geometries")
            yield from _polygons(members if isinstance(members, list) else [], left_out)
        elif kind in ("Polygon", "MultiPolygon"):
            parts: Any = [coordinates] if kind == "Polygon" else coordinates
            every: list[Any] = parts if isinstance(parts, list) else [None]
            for part in every:
                if _is_polygon(part):
                    rings = [ring for whole in part for ring in _laps(whole)]
                    yield {"type": "Polygon", "coordinates": rings}
                else:
                    left_out[kind] += 1
        else:
            left_out[str(kind)] += 1


def _laps(ring: list[Any]) -> list[list[Any]]:
    """A ring cut wherever it comes back to its first point, each different lap once: what is run
    round twice would be filled twice, and so be empty (even-odd rule)."""
    at = [index for index, point in enumerate(ring) if point[:2] == ring[0][:2]]
    laps = [ring[start : end + 1] for start, end in zip(at, [*at[1:], len(ring) - 1], strict=True)]
    different = {frozenset((x, y) for x, y, *_ in lap): lap for lap in laps if len(lap) >= 4}
    return list(different.values()) or [ring]


def _is_polygon(rings: Any) -> bool:
    """Whether these are a polygon's rings, down to each number: GDAL crashes on others."""
    return _each(lambda ring: _each(_is_position, ring, least=4), rings, least=1)


def _is_position(point: Any) -> bool:
    return _each(lambda x: type(x) in (int, float) and abs(x) < 1e300, point, least=2)


def _each(test: Callable[[Any], bool], items: Any, least: int) -> bool:
    return isinstance(items, list) and len(items) >= least and all(map(test, items))


# ---------------------------------------------------------------- formats


def _geojson(path: Path) -> tuple[list[Any], CRS]:
    try:
        document = json.loads(path.read_bytes())
        named = document.get("crs")
        crs = _crs_named(named) if named else WGS84
        if "features" in document:
            features = document["features"]
        else:
            features = [document if "geometry" in document else {"geometry": document}]
            if not isinstance(features[0]["geometry"]["type"], str):
                raise TypeError
        geometries = [feature.get("geometry") for feature in features]
        return [geometry for geometry in geometries if geometry], crs
    except (ValueError, KeyError, TypeError, AttributeError, CRSError) as error:
        raise InputError(
            f"{path} is neither a picture nor polygons: a GeoJSON FeatureCollection, GeoPackage, "
            "Shapefile, FlatGeobuf or GeoParquet was expected"
        ) from error


def _crs_named(member: dict[str, Any]) -> CRS:
    """The CRS that a `crs` member of GeoJSON of 2008 names, or of 2006."""
    properties = member["properties"]
    if member.get("type") == "EPSG" or "code" in properties:
        return CRS.from_epsg(int(properties["code"]))
    return CRS.from_user_input(properties["name"])


def _layer(path: Path, kind: str) -> tuple[list[Any], CRS]:
    """The polygons of a file that GDAL reads: of its only layer of such, or of one `buildings`."""
    pyogrio, shapely = needed(f"{path}, a {kind},", "pyogrio", "shapely")
    try:
        layers = [(name, told or "") for name, told in pyogrio.list_layers(path)]
        areas = [n for n, told in layers if "Polygon" in told or told in ("", "Unknown")] or [
            name for name, _ in layers
        ]
        if not areas:
            raise InputError(f"{path} is cut off or no {kind}: it has no layer")
        if len(areas) > 1:
            areas = [name for name in areas if name == _LAYER] or areas
        if len(areas) != 1:
            raise InputError(
                f"{path} has {len(areas)} layers ({', '.join(areas)}): one of polygons was "
                f"expected, or one that is called {_LAYER}"
            )
        meta, _, geometry, _ = pyogrio.raw.read(path, layer=areas[0], columns=[])
    except pyogrio.errors.DataSourceError as error:
        raise InputError(f"{path} is cut off or no {kind}") from error
    if meta["crs"] is None:
        raise InputError(f"{path} has no CRS (a Shapefile's is in its .prj), so it has no place")
    return _mapped(shapely.from_wkb(geometry)), CRS.from_user_input(meta["crs"])


def _geoparquet(path: Path) -> tuple[list[Any], CRS]:
    arrow, parquet, shapely = needed(
        f"{path}, a GeoParquet,", "pyarrow", "pyarrow.parquet", "shapely"
    )
    try:
        file = parquet.ParquetFile(path)
        about = json.loads((file.schema_arrow.metadata or {})[b"geo"])
        column = about["primary_column"]
        told = about["columns"][column]
        if told["encoding"] != "WKB":
            raise KeyError(told["encoding"])
        crs = CRS.from_user_input(json.dumps(told["crs"])) if told.get("crs") else WGS84
        values = file.read([column])[column].to_pylist()
    except (KeyError, ValueError, TypeError, CRSError, OSError, arrow.ArrowException) as error:
        raise InputError(f"{path} is cut off or no GeoParquet with shapes as WKB") from error
    return _mapped(shapely.from_wkb([value for value in values if value])), crs


def _mapped(geometries: Any) -> list[Any]:
    """Shapely geometries as GeoJSON's: lists down to the numbers."""
    import shapely

    known = [geometry for geometry in geometries if geometry is not None]
    return [json.loads(text) for text in shapely.to_geojson(known)]
