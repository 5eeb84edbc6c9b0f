"""Labels, brought onto the pixels of their image: 0 background, 1 building, 255 ignore."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.features import bounds, rasterize, shapes
from rasterio.io import DatasetReader
from rasterio.transform import Affine, array_bounds
from rasterio.warp import reproject, transform_bounds, transform_geom

from segment.data.ground import HALF_A_PIXEL, WGS84, place_of, same_crs
from segment.data.polygons import read_polygons
from segment.data.rasters import driver_of, naming, open_raster
from segment.data.reading import marked_valid
from segment.data.scenes import Scene
from segment.errors import InputError

BACKGROUND, BUILDING, IGNORE = 0, 1, 255
Numbering = NDArray[Any] | None  # (H, W): which building a pixel is of
_PLANE = CRS.from_epsg(3857)  # stands in where neither image nor label says which plane it is


class Elsewhere(InputError):
    """A label that lies wholly beside its image: of another place, or placed wrongly."""


def read_label(
    scene: Scene, like: DatasetReader, notes: list[str] | None = None
) -> NDArray[np.uint8]:
    """The label of a scene, (H, W) like its opened image: 0 background, 1 building, 255 ignore.
    See `read_buildings`."""
    return read_buildings(scene, like, notes)[0]


def read_buildings(
    scene: Scene, like: DatasetReader, notes: list[str] | None = None
) -> tuple[NDArray[np.uint8], Numbering]:
    """The label of a scene, (H, W) like its opened image: 0 background, 1 building, 255 ignore; and
    which building each pixel is of, 0 where of none, if the label tells buildings apart, else None.

    A raster label holds 0 and 1, 0 and 255, black and another colour, or 0 and the numbers of
    single buildings; its nodata value means nothing (real masks declare 0 or 1 as nodata), its mask
    band or alpha marks what to ignore. Where label and image both have a place, and not the same
    one to half a pixel, the label is warped onto the image; what it doesn't cover is ignored.
    Of polygons (see `read_polygons`), a pixel is building where its centre lies in one, and of the
    last such one. Polygons and numbers tell buildings apart.
    What a person should know is added to `notes`. Raises InputError, and Elsewhere.
    """
    if scene.label is None:
        raise InputError(f"{scene.image} has no mask")
    if driver_of(scene.label, own=True) in (None, "GPKG"):
        return _rasterised(scene.label, like, [] if notes is None else notes)
    with open_raster(scene.label, own=True) as dataset, naming(dataset):
        building = _buildings(dataset)
        label = np.where(marked_valid(dataset), building > 0, IGNORE).astype(np.uint8)
        number = None if building.dtype == bool else _small(building)
        (crs, transform), (image_crs, image_transform) = place_of(dataset), place_of(like)
    if transform and image_transform:
        same = same_crs(crs, image_crs) or not (crs and image_crs)
        if same and label.shape == like.shape and _agree(transform, image_transform, like.shape):
            return label, number
        planes = (image_crs or crs or _PLANE, crs or image_crs or _PLANE)
        grids = transform, image_transform, like.shape, planes
        warped = _warped(label, *grids, beyond=IGNORE)
        if (warped == IGNORE).all() and not (label == IGNORE).all():
            raise Elsewhere(f"{scene.label} lies elsewhere than its image {scene.image}")
        return warped, None if number is None else _warped(number, *grids, beyond=0)
    if label.shape != like.shape:
        height, width = label.shape
        raise InputError(
            f"{scene.label} is {width} x {height} pixels, "
            f"but its image {scene.image} is {like.width} x {like.height}"
        )
    return label, number


# ---------------------------------------------------------------- rasters


def _buildings(dataset: DatasetReader) -> NDArray[Any]:
    """Where a mask says that there is a building, as bool, or the numbers of single buildings;
    InputError if it is no mask."""
    kinds = dataset.colorinterp
    bands = [band for band, kind in enumerate(kinds, start=1) if kind != ColorInterp.alpha]
    values = dataset.read(bands)
    first = values[0]
    if not (values != first).any():
        if kinds[0] == ColorInterp.palette:
            return _by_palette(first, dataset)
        building, top = first != 0, first.max()
        if top in (0, 1, 255) and (first[building] == top).all():
            inverted = dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
            return ~building if inverted else building
        if first.dtype.kind in "ui" and _numbers_buildings(first):
            return first
    elif (values[:, lit := values.any(axis=0)].T == values[:, lit][:, 0]).all():
        return lit
    raise InputError(
        f"{dataset.name} is no mask: values 0 and 1, or 0 and 255, were expected "
        "(or 0 and the numbers of single buildings)"
    )


def _by_palette(values: NDArray[Any], dataset: DatasetReader) -> NDArray[np.bool_]:
    """A palette's black is background and its one other colour building, whatever their numbers."""
    palette = dataset.colormap(1)
    colours = {value: palette.get(value, (0, 0, 0))[:3] for value in np.unique(values).tolist()}
    black = [value for value, colour in colours.items() if max(colour) == 0]
    others = {colour for colour in colours.values() if max(colour) > 0}
    if len(others) > 1 or (not black and others != {(255, 255, 255)}):
        raise InputError(
            f"{dataset.name} is no mask: its palette shows {len(colours)} colours, where black and "
            "one other were expected"
        )
    return ~np.isin(values, black)


def _numbers_buildings(values: NDArray[Any]) -> bool:
    """Whether values other than 0 number single buildings: each in about one piece.

    A photograph, an antialiased mask or a map of classes has many pieces of each value.
    """
    if (values < 0).any() or not (values == 0).any():
        return False
    beside = (values[:, 1:] != 0) & (values[:, :-1] != 0)
    equal = beside & (values[:, 1:] == values[:, :-1])
    if 2 * np.count_nonzero(equal) < np.count_nonzero(beside):
        return False
    numbers, index = np.unique(values, return_inverse=True)
    index = index.reshape(values.shape).astype(np.int32)
    pieces = sum(1 for _ in shapes(index, mask=values != 0, connectivity=8))
    return pieces <= 2 * (len(numbers) - 1)


def _small(number: NDArray[Any]) -> NDArray[Any]:
    """Numbers (H, W), of which some are 0, as 0, 1, 2, ... in few bits: ids may have 64."""
    kinds, index = np.unique(number, return_inverse=True)
    return index.reshape(number.shape).astype(np.min_scalar_type(len(kinds)))


def _agree(one: Affine, other: Affine, shape: tuple[int, int]) -> bool:
    """Whether two transforms place the corners of a picture within half a pixel."""
    height, width = shape
    corners = [(col, row) for row in (0, height) for col in (0, width)]
    places = [(~other @ (one @ corner), corner) for corner in corners]
    return all(max(abs(col - x), abs(row - y)) <= HALF_A_PIXEL for (col, row), (x, y) in places)


def _warped(
    label: NDArray[Any],
    transform: Affine,
    onto: Affine,
    shape: tuple[int, int],
    planes: tuple[CRS, CRS],
    beyond: int,
) -> NDArray[Any]:
    """The label on the image's grid, each pixel that which lies under its centre."""
    warped = np.full(shape, beyond, label.dtype)
    reproject(
        label,
        warped,
        src_transform=transform,
        src_crs=planes[1],
        src_nodata=beyond,
        dst_transform=onto,
        dst_crs=planes[0],
        dst_nodata=beyond,
        resampling=Resampling.nearest,
    )
    return warped


# ---------------------------------------------------------------- polygons


def _rasterised(
    path: Path, like: DatasetReader, notes: list[str]
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    found = read_polygons(path)
    crs, transform = place_of(like)
    number = np.zeros(like.shape, np.min_scalar_type(len(found.shapes)))
    if crs is None or transform is None:
        raise InputError(f"{like.name} has no CRS, so the polygons of {path} have no place on it")
    if note := found.note(path):
        notes.append(note)
    if not found.shapes:
        return number.astype(np.uint8), number
    placed = transform_geom(found.crs, crs, found.shapes)
    image = array_bounds(*like.shape, transform)
    if crs.is_geographic:
        placed = [_turned(shape, (image[0] + image[2]) / 2) for shape in placed]
    boxes = np.array([bounds(shape) for shape in placed])
    if not _meet((*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)), image):
        swapped = _swapped(found.shapes, found.crs, crs, image)
        hint = ": latitude seems to stand before longitude in it" if swapped else ""
        raise Elsewhere(f"{path} lies elsewhere than its image {like.name}{hint}")
    numbers = range(1, len(placed) + 1)
    rasterize(zip(placed, numbers, strict=True), out=number, transform=transform)
    if not any(_meet(tuple(box), image) for box in boxes):
        notes.append(f"{path}: none of its polygons meets its image {like.name}")
    return (number > 0).astype(np.uint8), number


def _meet(one: Any, other: Any) -> bool:
    west, south, east, north = one
    return bool(west < other[2] and other[0] < east and south < other[3] and other[1] < north)


def _turned(shape: Any, near: float) -> Any:
    """A polygon of degrees, by whole turns brought near a longitude: an image may be on a grid of
    0 to 360 degrees, or reach over 180."""
    turn = 360 * round((near - bounds(shape)[0]) / 360)
    rings = [[(x + turn, y) for x, y, *_ in ring] for ring in shape["coordinates"]]
    return {"type": "Polygon", "coordinates": rings}


def _swapped(polygons: list[Any], crs: CRS, to: CRS, image: Any) -> bool:
    """Whether polygons of degrees would meet the image with their coordinates exchanged."""
    if not crs.is_geographic:
        return False
    image = transform_bounds(to, WGS84, *image)
    boxes = map(bounds, polygons)
    return any(_meet((south, west, north, east), image) for west, south, east, north in boxes)
