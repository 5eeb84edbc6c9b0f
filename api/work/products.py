"""What can be asked of a prediction: mask, overlay, outlines, figures, probabilities, photograph.

Rasters are made row by row; outlines and figures hold the whole mask, a byte a pixel.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyproj
from affine import Affine
from rasterio.features import rasterize, shapes

import minicnn
from api.errors import Problem
from api.store.stac import corners, placed
from api.uploads import Source
from api.work.png import write_png
from api.work.predictor import Predictor, Step
from segment.data.ground import ground_pixel_size
from segment.data.rasters import Window
from segment.data.reading import read_pixels
from segment.geo.footprints import (
    Footprints,
    feature_collection,
    polygons,
    require_place,
    write_layer,
)
from segment.geo.geoparquet import write_geoparquet
from segment.geo.separate import TOGETHER, marks
from segment.plots import tinted
from segment.predict.scene import Band, separation, write_bands

ROWS = 256
CORNERS = 1_000_000  # of outlines: more would take more memory than the mask itself
# Level k of a probability PNG means k / 255 <= p < (k + 1) / 255: comparing levels with k is
# comparing probabilities with k / 255, to the bit.
LEVELS = (np.arange(256) / 255).astype(np.float32)
SOMEWHERE = pyproj.CRS("+proj=laea +lat_0=0 +lon_0=0 +datum=WGS84")  # keeps areas


class Kind(NamedTuple):
    """One response_type: its media type, what a download is called, which parameters it takes."""

    media_type: str
    ending: str
    takes: frozenset[str]


MASK = frozenset({"threshold", "min_area"})
OUTLINES = MASK | {"simplify", "right_angles", "separate"}
SIZE = frozenset({"size"})
KINDS = {
    "file": Kind("image/tiff", "_mask.tif", MASK),
    "png": Kind("image/png", "_overlay.png", MASK),
    "geojson": Kind("application/geo+json", "_buildings.geojson", OUTLINES),
    "gpkg": Kind("application/geopackage+sqlite3", "_buildings.gpkg", OUTLINES),
    "fgb": Kind("application/vnd.flatgeobuf", "_buildings.fgb", OUTLINES),
    "parquet": Kind("application/vnd.apache.parquet", "_buildings.parquet", OUTLINES),
    "json": Kind("application/json", "_buildings.json", OUTLINES),
    "probability": Kind("image/png", "_probability.png", SIZE),
    "photo": Kind("image/png", "_photo.png", SIZE),
}
VECTOR = ("geojson", "gpkg", "fgb", "parquet")


def make(
    predictor: Predictor,
    source: Source,
    scene: Any,
    ask: Mapping[str, Any],
    out: Path,
    step: Step,
) -> None:
    """Write the product of an open scene that `ask` (response_type and its parameters) names."""
    model, kind, start = predictor.model, ask["response_type"], time.perf_counter()
    look, reading = ask["look"], ask["look"].reading(model.info.reading)
    threshold = model.info.threshold if ask["threshold"] is None else ask["threshold"]
    if kind == "photo":
        _photo(scene, reading, ask["size"], out)
        return
    if kind in VECTOR:  # before the work, not after it
        require_place(scene.crs, scene.transform, source.name)
    if kind in (*VECTOR, "json") and placed(scene) and corners(scene) is None:
        raise Problem(422, f"{source.name} has a georeference that lies nowhere on the Earth.")
    parted = separation(model, scene, look.pixel_size, ask["threshold"], ask["min_area"])
    ask = {**ask, "how": parted if ask["separate"] else TOGETHER}
    with predictor.opened(source, look, step) as prediction:
        seconds = time.perf_counter() - start
        bands = _corrected(prediction, threshold, ask["edits"])
        if kind == "probability":
            _probability(prediction, ask["size"], out)
        elif kind in ("file", "png"):
            if ask["min_area"]:
                bands = _without_small(list(bands), scene, threshold, ask)
            if kind == "file":
                tags = _tags(predictor, threshold) if ask["kept"] else None
                write_bands(bands, out, scene, threshold, tags)
            else:
                _overlay(bands, scene, reading, threshold, out)
        else:
            mask, valid = _marks(bands, threshold)
            found = _outlines(mask, scene, ask)
            if kind in VECTOR:
                _write_outlines(found, kind, out)
                return
            body = _figures(scene, mask, valid, found, look.pixel_size)
            body["threshold"] = threshold
            body["model"] = {"id": predictor.model_id, "threshold": model.info.threshold}
            total = time.perf_counter() - start
            body["seconds"] = {"network": round(seconds, 3), "total": round(total, 3)}
            out.write_text(json.dumps(body))


def _tags(predictor: Predictor, threshold: float) -> dict[str, str]:
    """What a mask that is kept says of how it came about; with tags it is a COG."""
    software = {"TIFFTAG_SOFTWARE": f"minicnn {minicnn.__version__}"}
    return {**software, "MINICNN_MODEL": predictor.model_id, "MINICNN_THRESHOLD": f"{threshold:g}"}


def _overlay(bands: Iterable[Band], scene: Any, reading: Any, threshold: float, out: Path) -> None:
    tints = (tinted(_pixels(scene, reading, band), band.mask(threshold)) for band in bands)
    with out.open("wb") as file:
        write_png(file, scene.shape, tints)


def _corrected(
    prediction: Any, threshold: float, edits: Mapping[str, Any] | None
) -> Iterator[Band]:
    """The bands of a prediction as a person corrected them, in pixels of the scene (x, y): without
    the buildings that the points of `remove` lie in, with those whose corners are in `add`."""
    if not edits:
        yield from _bands(prediction)
        return
    mask = np.concatenate([band.mask(threshold) for band in _bands(prediction)])
    gone = np.zeros_like(mask)
    points = [(x, y) for x, y in edits["remove"] if x < mask.shape[1] and y < mask.shape[0]]
    if any(mask[y, x] for x, y in points):
        found = shapes(mask, mask=mask != 0, connectivity=4)
        numbers = rasterize(
            ((shape, n) for n, (shape, _) in enumerate(found, 1)), mask.shape, dtype="int32"
        )
        gone = np.isin(numbers, [numbers[y, x] for x, y in points if numbers[y, x]])
    drawn = np.zeros_like(mask)
    rings = [{"type": "Polygon", "coordinates": [[*ring, ring[0]]]} for ring in edits["add"]]
    if rings:
        drawn = rasterize(rings, mask.shape)
    for band in _bands(prediction):
        rows = slice(band.row, band.row + len(band.valid))
        found = np.where(gone[rows], np.float32(-1), band.probability)
        yield replace(band, probability=np.where(drawn[rows] & band.valid, np.float32(1), found))


def _without_small(
    bands: Sequence[Band], scene: Any, threshold: float, ask: Mapping[str, Any]
) -> Iterator[Band]:
    """The bands of a prediction, less buildings whose outlines are below min_area."""
    mask, _ = _marks(bands, threshold)
    kept = _outlines(mask, scene, {**ask, "simplify": 0, "right_angles": False}).outlines
    if placed(scene):
        place = scene.transform
    else:
        side = ask["look"].pixel_size or 1.0
        place = Affine.scale(side, -side)
    shapes = ((outline, 1) for outline in kept)
    mask = rasterize(shapes, mask.shape, transform=place) if len(kept) else np.zeros_like(mask)
    for band in bands:
        rows = mask[band.row : band.row + len(band.valid)]
        yield replace(band, probability=np.where(rows, band.probability, np.float32(-1)))


def _write_outlines(found: Footprints, kind: str, out: Path) -> None:
    if kind == "geojson":
        out.write_text(json.dumps(feature_collection(found)))
    elif kind == "parquet":
        write_geoparquet([found], out)
    else:
        # GDAL chooses the format by the ending, and a scratch file has none.
        ending = out.with_suffix(f".{kind}")
        try:
            write_layer(found, ending, {"gpkg": "GPKG", "fgb": "FlatGeobuf"}[kind])
            os.replace(ending, out)
        finally:
            ending.unlink(missing_ok=True)


def _bands(prediction: Any) -> Iterator[Band]:
    for row in range(0, prediction.height, ROWS):
        rows = Window(0, row, prediction.width, min(ROWS, prediction.height - row))
        valid = prediction.dataset_mask(window=rows) > 0
        yield Band(row, valid, prediction.read(1, window=rows))


def _pixels(scene: Any, reading: Any, band: Band) -> np.ndarray:
    window = Window(0, band.row, scene.width, len(band.valid))
    return read_pixels(scene, reading, window)[0]


def _marks(bands: Iterable[Band], threshold: float) -> tuple[np.ndarray, int]:
    """The whole mask as `separate.marks`, 0 where no building is, and how many pixels are valid."""
    parts = [
        (marks(band.probability, band.mask(threshold) > 0), int(band.valid.sum())) for band in bands
    ]
    return np.concatenate([part for part, _ in parts]), sum(count for _, count in parts)


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
    building = mask > 0
    corners = sum(
        int(np.count_nonzero(part[1:, 1:] ^ part[1:, :-1] ^ part[:-1, 1:] ^ part[:-1, :-1]))
        for part in (building[row : row + ROWS + 1] for row in range(0, len(mask), ROWS))
    )
    if corners > CORNERS:
        sentence = f"The mask has {corners} corners, too many to outline: try another threshold."
        raise Problem(422, sentence)
    place, crs, size = scene.transform, scene.crs, ask["look"].pixel_size
    wishes = {name: ask[name] for name in ("min_area", "simplify", "right_angles")}
    how = {"how": ask["how"]}
    if not placed(scene):
        side = size or 1.0
        if size is None and any(wishes.values()):
            sentence = "min_area, simplify and right_angles count in metres: a scene without a"
            raise Problem(422, f"{sentence} georeference needs pixel_size, too.")
        return polygons(mask, Affine.scale(side, -side), SOMEWHERE, **wishes, **how)
    # Where the client corrects the pixel size, all that is measured follows.
    larger = size / (ground_pixel_size(scene) or size) if size else 1.0
    wishes["min_area"] /= larger**2
    wishes["simplify"] /= larger
    found = polygons(mask, place, crs, **wishes, **how)
    return replace(found, area_m2=found.area_m2 * larger**2)


def _figures(
    scene: Any, mask: np.ndarray, valid: int, found: Footprints, pixel_size: float | None
) -> dict[str, Any]:
    pixel_size = pixel_size or ground_pixel_size(scene)
    return {
        "buildings": len(found.outlines),
        "built_area_m2": round(float(found.area_m2.sum()), 2) if pixel_size else None,
        "built_share": round(np.count_nonzero(mask) / valid, 6) if valid else 0.0,
        "width": scene.width,
        "height": scene.height,
        "pixel_size": pixel_size,
        "corners": corners(scene),
    }
