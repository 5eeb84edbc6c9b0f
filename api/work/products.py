"""What can be asked of a prediction: mask, overlay, outlines, figures, probabilities, photograph.

Rasters are made row by row; outlines and figures hold the whole mask, a byte a pixel.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
from affine import Affine

from api.errors import Problem
from api.store.stac import corners, placed
from api.uploads import Source, in_plain_words
from api.work.png import write_png
from api.work.predictor import Predictor, Step
from segment.data.ground import ground_pixel_size
from segment.data.rasters import Window, open_raster
from segment.data.reading import read_pixels
from segment.geo.footprints import Footprints, feature_collection, polygons, require_place
from segment.plots import tinted
from segment.predict.scene import Band, write_bands

ROWS = 256
CORNERS = 1_000_000  # of outlines: more would take more memory than the mask itself
NO_PIXELS = np.empty((0, 0, 3), np.uint8)
# Level k of a probability PNG means k / 255 <= p < (k + 1) / 255: comparing levels with k is
# comparing probabilities with k / 255, to the bit.
LEVELS = (np.arange(256) / 255).astype(np.float32)
SOMEWHERE = pyproj.CRS("+proj=laea +lat_0=0 +lon_0=0 +datum=WGS84")  # keeps areas

# response_type -> media type, what a download's name ends in
KINDS = {
    "file": ("image/tiff", "_mask.tif"),
    "png": ("image/png", "_overlay.png"),
    "geojson": ("application/geo+json", "_buildings.geojson"),
    "json": ("application/json", "_buildings.json"),
    "probability": ("image/png", "_probability.png"),
    "photo": ("image/png", "_photo.png"),
}


def make(
    predictor: Predictor, source: Source, ask: Mapping[str, Any], out: Path, step: Step
) -> None:
    """Write the product that `ask` (response_type and its parameters) names into `out`."""
    model, kind, start = predictor.model, ask["response_type"], time.perf_counter()
    threshold = model.info.threshold if ask["threshold"] is None else ask["threshold"]
    with in_plain_words(source), open_raster(source.path) as scene:
        if kind == "geojson":  # before the work, not after it
            require_place(scene.crs, scene.transform, source.name)
        if kind in ("geojson", "json") and placed(scene) and corners(scene) is None:
            raise Problem(422, f"{source.name} has a georeference that lies nowhere on the Earth.")
        if kind == "photo":
            _photo(scene, model.info.reading, ask["size"], out)
            return
        with predictor.opened(source, ask["pixel_size"], step) as prediction:
            seconds = time.perf_counter() - start
            if kind == "file":
                write_bands(_bands(prediction), out, scene, threshold)
            elif kind == "png":
                tints = (
                    tinted(_pixels(scene, model.info.reading, band), band.mask(threshold))
                    for band in _bands(prediction)
                )
                with out.open("wb") as file:
                    write_png(file, scene.shape, tints)
            elif kind == "probability":
                _probability(prediction, ask["size"], out)
            else:
                mask, valid = _mask(prediction, threshold)
                found = _outlines(mask, scene, ask)
                if kind == "geojson":
                    body = feature_collection(found)
                else:
                    body = _figures(scene, mask, valid, found, ask, threshold)
                    body["model"] = {"id": predictor.model_id, "threshold": model.info.threshold}
                    total = time.perf_counter() - start
                    body["seconds"] = {"network": round(seconds, 3), "total": round(total, 3)}
                out.write_text(json.dumps(body))


def _bands(prediction: Any) -> Iterator[Band]:
    for row in range(0, prediction.height, ROWS):
        rows = Window(0, row, prediction.width, min(ROWS, prediction.height - row))
        valid = prediction.dataset_mask(window=rows) > 0
        yield Band(row, NO_PIXELS, valid, prediction.read(1, window=rows))


def _pixels(scene: Any, reading: Any, band: Band) -> np.ndarray:
    window = Window(0, band.row, scene.width, len(band.valid))
    return read_pixels(scene, reading, window)[0]


def _mask(prediction: Any, threshold: float) -> tuple[np.ndarray, int]:
    """The whole mask, and how many pixels are valid."""
    bands = [(band.mask(threshold), int(band.valid.sum())) for band in _bands(prediction)]
    mask = np.concatenate([mask for mask, _ in bands])
    return mask, sum(count for _, count in bands)


def _reduced(
    shape: tuple[int, int], size: int | None, read: Callable[[slice, int, np.ndarray], np.ndarray]
) -> tuple[tuple[int, int], Iterator[np.ndarray]]:
    """A picture whose longer side is at most `size`: its shape and its bands.

    `read` gets source rows, how many rows they become, and the source column of each column.
    """
    scale = min(1.0, (size or max(shape)) / max(shape))
    small = max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
    rows, columns = (np.arange(small[i] + 1) * shape[i] // small[i] for i in (0, 1))

    def bands() -> Iterator[np.ndarray]:
        for first in range(0, small[0], ROWS):
            last = min(first + ROWS, small[0])
            yield read(slice(rows[first], rows[last]), last - first, columns)

    return small, bands()


def _photo(scene: Any, reading: Any, size: int | None, out: Path) -> None:
    def read(rows: slice, count: int, columns: np.ndarray) -> np.ndarray:
        window = Window(0, rows.start, scene.width, rows.stop - rows.start)
        return read_pixels(scene, reading, window, (count, len(columns) - 1))[0]

    with out.open("wb") as file:
        write_png(file, *_reduced(scene.shape, size, read))


def _probability(prediction: Any, size: int | None, out: Path) -> None:
    """Levels 0 ... 255, averaged where the picture is reduced."""

    def read(rows: slice, count: int, columns: np.ndarray) -> np.ndarray:
        window = Window(0, rows.start, prediction.width, rows.stop - rows.start)
        values = prediction.read(1, window=window)
        if count < len(values) or len(columns) - 1 < prediction.width:
            starts = np.arange(count) * len(values) // count
            sums = np.add.reduceat(np.add.reduceat(values, starts, 0), columns[:-1], 1)
            heights = np.diff(np.append(starts, len(values)))
            values = sums / (heights[:, None] * np.diff(columns)).astype(np.float32)
        return (np.searchsorted(LEVELS, values, side="right") - 1).astype(np.uint8)

    with out.open("wb") as file:
        write_png(file, *_reduced(prediction.shape, size, read))


def _outlines(mask: np.ndarray, scene: Any, ask: Mapping[str, Any]) -> Footprints:
    """Outlines on the ground; a scene without a place is measured as if it lay at 0° N 0° E."""
    corners = sum(
        int(np.count_nonzero(part[1:, 1:] ^ part[1:, :-1] ^ part[:-1, 1:] ^ part[:-1, :-1]))
        for part in (mask[row : row + ROWS + 1] for row in range(0, len(mask), ROWS))
    )
    if corners > CORNERS:
        sentence = f"The mask has {corners} corners, too many to outline: try another threshold."
        raise Problem(422, sentence)
    place, crs = scene.transform, scene.crs
    if not placed(scene):
        side = ask["pixel_size"] or 1.0
        if ask["pixel_size"] is None and (ask["min_area"] or ask["simplify"]):
            sentence = "min_area and simplify count in metres: a scene without a georeference"
            raise Problem(422, f"{sentence} needs pixel_size, too.")
        place, crs = Affine.scale(side, -side), SOMEWHERE
    return polygons(mask, place, crs, ask["min_area"], ask["simplify"])


def _figures(
    scene: Any,
    mask: np.ndarray,
    valid: int,
    found: Footprints,
    ask: Mapping[str, Any],
    threshold: float,
) -> dict[str, Any]:
    pixel_size = ask["pixel_size"] or ground_pixel_size(scene)
    return {
        "buildings": len(found.outlines),
        "built_area_m2": round(float(found.area_m2.sum()), 2) if pixel_size else None,
        "built_share": round(np.count_nonzero(mask) / valid, 6) if valid else 0.0,
        "threshold": threshold,
        "width": scene.width,
        "height": scene.height,
        "pixel_size": pixel_size,
        "corners": corners(scene),
    }
