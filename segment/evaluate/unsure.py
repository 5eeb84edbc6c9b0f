"""Which tiles to label next: those that a model is least sure of, labelled or not, as GeoJSON."""

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment.data.ground import ground_pixel_size, place_of
from segment.data.rasters import open_raster
from segment.data.scenes import Scene
from segment.data.tiles import TILE
from segment.errors import InputError
from segment.geo import footprints
from segment.geo.buildings import Buildings
from segment.model import Model
from segment.predict.scene import Band, scene_bands
from segment.progress import progress

Feature = dict[str, Any]

log = logging.getLogger(__name__)


def unsure_tiles(model: Model, scenes: Sequence[Scene], views: int = 1) -> list[Feature]:
    """GeoJSON features of all tiles of the scenes, the least sure first.

    "unsure" is the entropy of the probability, -p log2 p - (1 - p) log2 (1 - p), as a mean over
    valid pixels: 0 where the model is certain of all, 1 bit where it may as well toss a coin. Tiles
    cover about the ground that those of training do. One without a place has no geometry (RFC 7946,
    3.2), only rows and columns.
    """
    footprints.require_vector()
    found = [feature for scene in scenes for feature in _features(model, scene, views)]
    lost = {each["properties"]["image"] for each in found if each["geometry"] is None}
    if lost:
        about = "%d of %d scenes have no place on the Earth: their tiles are told by rows and "
        log.warning(about + "columns, without a geometry", len(lost), len(scenes))
    found.sort(key=lambda feature: -feature["properties"]["unsure"])
    for rank, feature in enumerate(found, start=1):
        feature["properties"]["rank"] = rank
    return found


def _features(model: Model, scene: Scene, views: int) -> list[Feature]:
    with open_raster(scene.image, own=True) as dataset:
        own, wanted = scene.pixel_size or ground_pixel_size(dataset), model.info.pixel_size
        side = TILE * (wanted / own if own and wanted else 1.0)
        rows, cols = (
            np.linspace(0, size, max(1, round(size / side)) + 1).astype(int)
            for size in dataset.shape
        )
        bar = partial(progress, desc=scene.stem, unit="batch")
        bands = scene_bands(model, dataset, pixel_size=own, progress=bar, views=views)
        entropy, valid = _sums(bands, rows, cols)
        tiles = np.argwhere(valid > 0)
        boxes = np.array([[cols[j], rows[i], cols[j + 1], rows[i + 1]] for i, j in tiles])
        geometries = _on_the_globe(boxes, dataset, scene)
    return [
        {
            "type": "Feature",
            "properties": {
                "unsure": round(float(entropy[i, j] / valid[i, j]), 4),
                "image": str(scene.image),
                "row": int(top),
                "col": int(left),
                "height": int(bottom - top),
                "width": int(right - left),
            },
            "geometry": geometry,
        }
        for (i, j), (left, top, right, bottom), geometry in zip(
            tiles, boxes, geometries, strict=True
        )
    ]


def _sums(
    bands: Iterable[Band], rows: NDArray[np.int_], cols: NDArray[np.int_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The entropy of each tile's valid pixels, and how many these are: (R, C) both."""
    entropy, valid = np.zeros((2, len(rows) - 1, len(cols) - 1))
    for band in bands:
        p = np.clip(band.probability.astype(np.float64), 1e-9, 1 - 1e-9)
        bits = np.where(band.valid, -p * np.log2(p) - (1 - p) * np.log2(1 - p), 0.0)
        tile = np.searchsorted(rows, band.row + np.arange(len(p)), side="right") - 1
        for total, values in ((entropy, bits), (valid, band.valid.astype(float))):
            np.add.at(total, tile, np.add.reduceat(values, cols[:-1], axis=1))
    return entropy, valid


def _on_the_globe(boxes: NDArray[np.int_], dataset: Any, scene: Scene) -> list[Feature | None]:
    """Boxes of pixels (left, top, right, bottom) as GeoJSON geometries; None without a place."""
    import shapely

    crs, transform = place_of(dataset)
    transform = transform or dataset.transform
    try:
        footprints.require_place(crs, transform, str(scene.image))
    except InputError:
        return [None] * len(boxes)
    outlines = shapely.box(*boxes.T)
    made = Buildings(outlines, np.arange(len(boxes)), np.zeros(len(boxes)))
    placed = footprints.placed(made, dataset.shape, transform, crs, 0.0, 0.0)
    features = footprints.feature_collection(placed)["features"]
    return [feature["geometry"] for feature in features]
