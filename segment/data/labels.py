"""Labels, brought onto the pixels of their image: 0 background, 1 building, 255 ignore."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.errors import CRSError
from rasterio.features import bounds, rasterize
from rasterio.io import DatasetReader
from rasterio.warp import transform_geom

from segment.data.ground import WGS84
from segment.data.rasters import colour_bands, driver_of, naming, open_raster
from segment.data.scenes import Scene
from segment.errors import InputError

BACKGROUND, BUILDING, IGNORE = 0, 1, 255


def read_label(scene: Scene, like: DatasetReader) -> NDArray[np.uint8]:
    """The label of a scene, (H, W) like its opened image: 0 background, 1 building, 255 ignore.

    A raster label holds 0 and 1, or 0 and 255; its nodata value means nothing (real masks declare
    0 or 1 as nodata), its mask band or alpha marks what to ignore. Anything else is GeoJSON:
    a pixel is building where its centre lies in a polygon. Raises InputError.
    """
    if scene.label is None:
        raise InputError(f"{scene.image} has no mask")
    if driver_of(scene.label) is None:
        return _rasterised(scene.label, like)
    with open_raster(scene.label) as dataset, naming(dataset):
        if dataset.shape != like.shape:
            raise InputError(
                f"{scene.label} is {dataset.width} x {dataset.height} pixels, "
                f"but its image {scene.image} is {like.width} x {like.height}"
            )
        values = dataset.read(colour_bands(dataset))
        ignored = (
            dataset.dataset_mask() < 128
            if MaskFlags.per_dataset in dataset.mask_flag_enums[0]
            else np.zeros(dataset.shape, bool)
        )
    building = values[0] != 0
    top = values[0].max()
    if (values != values[0]).any() or top not in (0, 1, 255) or (values[0][building] != top).any():
        raise InputError(f"{scene.label} is no mask: values 0 and 1, or 0 and 255, were expected")
    return np.where(ignored, IGNORE, building).astype(np.uint8)


def _rasterised(path: Path, like: DatasetReader) -> NDArray[np.uint8]:
    polygons, crs = _read_polygons(path)
    label = np.zeros(like.shape, np.uint8)
    if like.crs is None:
        raise InputError(f"{like.name} has no CRS, so the polygons of {path} have no place on it")
    if polygons:
        placed = transform_geom(crs, like.crs, polygons)
        rasterize(placed, out=label, transform=like.transform, default_value=BUILDING)
    return label


def _read_polygons(path: Path) -> tuple[list[Any], CRS]:
    """The polygons of a GeoJSON file and their CRS: WGS 84, or what an old-style `crs` names."""
    try:
        collection = json.loads(path.read_bytes())
        named = collection.get("crs")
        crs = CRS.from_user_input(named["properties"]["name"]) if named else WGS84
        shapes = [feature["geometry"] for feature in collection["features"]]
        shapes = [shape for shape in shapes if shape and shape.get("coordinates") != []]
    except (ValueError, KeyError, TypeError, AttributeError, CRSError) as error:
        raise InputError(f"{path} is neither a picture nor a GeoJSON FeatureCollection") from error
    for shape in shapes:
        if not _is_area(shape):
            kind = shape.get("type")
            raise InputError(f"{path} holds a faulty shape or a {kind}: polygons were expected")
        west, south, east, north = bounds(shape)
        if crs.is_geographic and not (-360 <= west <= east <= 360 and -90 <= south <= north <= 90):
            raise InputError(f"{path} has no longitudes and latitudes, and names no other CRS")
    return shapes, crs


def _is_area(shape: Any) -> bool:
    """Whether a geometry is a polygon, or several, down to each number: GDAL crashes on others."""
    coordinates = shape.get("coordinates")
    if shape.get("type") == "MultiPolygon":
        return _each(_is_polygon, coordinates, least=1)
    return shape.get("type") == "Polygon" and _is_polygon(coordinates)


def _is_polygon(rings: Any) -> bool:
    return _each(lambda ring: _each(_is_position, ring, least=4), rings, least=1)


def _is_position(point: Any) -> bool:
    return _each(lambda x: type(x) in (int, float) and abs(x) < 1e300, point, least=2)


def _each(test: Callable[[Any], bool], items: Any, least: int) -> bool:
    return isinstance(items, list) and len(items) >= least and all(map(test, items))
