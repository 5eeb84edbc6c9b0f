"""A scene of any size through the network, in bands from top to bottom: masks and probabilities."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.features import rasterize, shapes

import minicnn
from segment.data.ground import ground_pixel_size, place_of, working_shape
from segment.data.rasters import Window, open_raster, write_cog, write_raster
from segment.data.reading import look, read_pixels, read_valid
from segment.data.scenes import find_scenes
from segment.errors import InputError
from segment.geo.separate import Separation, marks
from segment.model import Model
from segment.predict import blending
from segment.predict.views import averaged
from segment.storage.paths import AnyPath

OVERLAP = 64  # pixels
COLOURS = {0: (0, 0, 0, 255), 255: (255, 70, 40, 255)}  # of a mask, as programs show it

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Band:
    """Finished rows of a scene or box, from `row` on: what is valid, and what was found."""

    row: int
    valid: NDArray[np.bool_]  # (rows, W)
    probability: blending.Floats  # (rows, W); 0 where invalid

    def mask(self, threshold: float) -> NDArray[np.uint8]:
        """255 where there is a building, 0 elsewhere; what isn't valid is no building."""
        building = self.valid & (self.probability >= threshold)
        return np.where(building, 255, 0).astype(np.uint8)

    def marks(self, threshold: float) -> NDArray[np.uint8]:
        """How sure each pixel of the mask is, as `separate.marks` says: outlines follow from it."""
        return marks(self.probability, self.valid & (self.probability >= threshold))


def scene_bands(
    model: Model,
    dataset: Any,
    overlap: int = OVERLAP,
    pixel_size: float | None = None,
    progress: blending.Progress = iter,
    box: blending.Box | None = None,
    views: int = 1,
) -> Iterator[Band]:
    """Predict an open scene, or a box of it to the same bits, from top to bottom.

    `pixel_size` is the scene's, in metres on the ground, where the file doesn't say or is wrong.
    If it isn't the model's, the scene is resampled to that and the probabilities back. With 2, 4
    or 8 `views` as many turned and mirrored ones are averaged: better, and as many times slower.
    """
    check_overlap(overlap)
    for note in look(dataset, model.info.reading).notes:
        log.warning("%s", note)
    shape = dataset.height, dataset.width
    grid = _working_shape(model, dataset, pixel_size)

    scale = shape[0] / grid[0], shape[1] / grid[1]
    box = box or (slice(0, shape[0]), slice(0, shape[1]))

    def read(rows: slice, cols: slice) -> Any:
        size = rows.stop - rows.start, cols.stop - cols.start
        place = cols.start * scale[1], rows.start * scale[0], size[1] * scale[1], size[0] * scale[0]
        return read_pixels(dataset, model.info.reading, Window(*place), size)

    inner = box if grid == shape else blending.source_box(grid, shape, box)
    multiple = model.net.multiple
    predict = averaged(model.predict, views)
    bands = blending.blended_bands(predict, read, grid, overlap, multiple, progress, inner)
    if grid != shape:
        bands = blending.resampled_bands(bands, grid, shape, box)
    row, seen = 0, False
    for probability in bands:
        height, width = probability.shape
        window = Window(box[1].start, box[0].start + row, width, height)
        valid = read_valid(dataset, model.info.reading, window)
        yield Band(row, valid, np.where(valid, probability, np.float32(0)))
        row, seen = row + height, seen or bool(valid.any())
    if not seen and box == (slice(0, shape[0]), slice(0, shape[1])):
        log.warning("%s: its alpha, mask or nodata value says that no pixel is valid", dataset.name)


def check_overlap(overlap: int) -> None:
    if not 0 <= overlap <= blending.WINDOW // 2:
        raise InputError(f"the overlap must be 0 to {blending.WINDOW // 2} pixels, not {overlap}")


def separation(
    model: Model,
    dataset: Any,
    pixel_size: float | None,
    threshold: float | None,
    min_area: float = 0.0,
) -> Separation:
    """How the model's buildings are parted in an open scene, in its own pixels; `threshold` and
    `min_area` if they were asked for."""
    own = pixel_size or ground_pixel_size(dataset)
    how = model.info.separation.obeying(threshold, min_area)
    return how.on(own, model.info.pixel_size)


def _working_shape(model: Model, dataset: Any, pixel_size: float | None) -> tuple[int, int]:
    """The scene's height and width at the model's pixel size."""
    own, wanted = pixel_size or ground_pixel_size(dataset), model.info.pixel_size
    height, width = working_shape(dataset, own, wanted)
    if (height, width) != dataset.shape:
        about = "%s: pixels of %.3g m, resampled to the model's %.3g m"
        log.warning(about, dataset.name, own, wanted)
    return max(1, height), max(1, width)


def predict_scene(
    model: Model,
    path: str | AnyPath,
    threshold: float | None = None,
    overlap: int = OVERLAP,
    pixel_size: float | None = None,
    views: int = 1,
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The mask (H, W) of a scene, 255 on buildings and 0 elsewhere, and its raster profile.

    The profile has the scene's CRS and transform. `threshold` is the model's own unless given;
    `overlap`, `pixel_size` and `views` are as in `scene_bands`. Pixels that aren't valid are no
    building.
    """
    limit = model.info.threshold if threshold is None else threshold
    with open_raster(path, own=True) as dataset:
        (scene,) = find_scenes([path], labelled=False)
        bands = scene_bands(model, dataset, overlap, pixel_size or scene.pixel_size, views=views)
        return np.concatenate([band.mask(limit) for band in bands]), mask_profile(dataset, "uint8")


def mask_profile(dataset: Any, dtype: str) -> dict[str, Any]:
    """The profile of a GeoTIFF of one band that lies where the dataset does."""
    crs, transform = place_of(dataset)
    place: dict[str, Any] = {"crs": crs, "transform": transform or dataset.transform}
    if dataset.transform.is_identity:  # a GeoTIFF has a transform or control points, not both
        place |= {"rpcs": dataset.rpcs, "gcps": dataset.gcps if dataset.gcps[0] else None}
        if place["gcps"]:
            place["transform"] = dataset.transform
    size = {"height": dataset.height, "width": dataset.width}
    colours = {"colormap": COLOURS} if dtype == "uint8" else {}
    return {"driver": "GTiff", "count": 1, "dtype": dtype, **size, **place, **colours}


def mask_tags(model: str, threshold: float) -> dict[str, str]:
    """What a mask says of how it came about; `model` is its name."""
    return {
        "TIFFTAG_SOFTWARE": f"minicnn {minicnn.__version__}",
        "TIFFTAG_DATETIME": time.strftime("%Y:%m:%d %H:%M:%S"),
        "MINICNN_MODEL": model,
        "MINICNN_THRESHOLD": f"{threshold:g}",
    }


def write_bands(
    bands: Iterable[Band],
    path: Path,
    dataset: Any,
    threshold: float | None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write the mask, or without a threshold the probability, band by band, as a GeoTIFF.

    With `tags` to put into it, it has overviews, too: a Cloud-Optimised GeoTIFF.
    """
    profile = mask_profile(dataset, "float32" if threshold is None else "uint8")
    writer = write_raster(path, profile) if tags is None else write_cog(path, profile, tags)
    with writer as out:
        for band in bands:
            values = band.probability if threshold is None else band.mask(threshold)
            write_band(out, band, values)


def write_large(
    bands: Iterable[Band],
    path: Path,
    dataset: Any,
    threshold: float,
    pixels: float,
    tags: Mapping[str, str],
) -> None:
    """Write the mask of the buildings of at least so many pixels; it is held whole."""
    parts = [(band.mask(threshold), band.valid) for band in bands]
    mask, valid = (np.concatenate(part) for part in zip(*parts, strict=True))
    with write_cog(path, mask_profile(dataset, "uint8"), tags) as out:
        out.write(without_small(mask, pixels), 1)
        out.write_mask(valid)


def without_small(mask: NDArray[np.uint8], pixels: float) -> NDArray[np.uint8]:
    """The mask without the buildings of fewer pixels."""
    found = shapes(mask, mask=mask != 0, connectivity=4)
    numbered = [(shape, number) for number, (shape, _) in enumerate(found, start=1)]
    if not numbered:
        return mask
    numbers = rasterize(numbered, mask.shape, dtype="int32")
    large = np.bincount(numbers.ravel()) >= pixels
    large[0] = False
    return np.where(large[numbers], mask, 0).astype(np.uint8)


def write_band(out: Any, band: Band, values: NDArray[Any]) -> None:
    """Write a band's rows, (rows, W), or (C, rows, W) where the raster has C bands."""
    rows = Window(0, band.row, out.width, len(band.valid))
    out.write(values if values.ndim == 3 else values[None], window=rows)
    out.write_mask(band.valid, window=rows)
