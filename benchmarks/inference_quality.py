"""What each step after the network buys, and at which cost: overlap, views, threshold, outlines.

python -m benchmarks.inference_quality --model RUN --data FOLDER --name inference-quality-real
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import shapely
from rasterio.features import rasterize, shapes

from benchmarks.held_out import RIM, HeldOut, Score, arguments, setting
from benchmarks.report import processor, table, write
from segment.data.rasters import open_raster
from segment.evaluate.metrics import BINS, calibrate, histogram
from segment.geo.right_angles import right_angled
from segment.model import Model
from segment.predict.blending import WINDOW
from segment.predict.scene import OVERLAP, scene_bands

NETWORK = {
    "windows side by side": {"overlap": 0},
    f"windows that overlap by {OVERLAP}, tapered (the default)": {},
    "and 2 views": {"views": 2},
    "and 4 views": {"views": 4},
    "and 8 views": {"views": 8},
}
DEFAULT, BEST = list(NETWORK)[1], list(NETWORK)[-1]
MIN_AREA, TOLERANCE = 10.0, 1.0  # m2, m

Draw = Callable[[np.ndarray], np.ndarray]
Row = dict[str, Any]


def probabilities(model: Model, scene: HeldOut, **how: Any) -> np.ndarray:
    """What the command's own way through a scene gives."""
    with open_raster(scene.path) as dataset:
        bands = scene_bands(model, dataset, pixel_size=scene.pixel_size, **how)
        return np.concatenate([band.probability for band in bands])


def outlines(mask: np.ndarray, pixel_size: float) -> np.ndarray:
    """Polygons in metres."""
    found = shapes(mask.astype(np.uint8), mask=mask, connectivity=4)
    pixels = np.array([shapely.geometry.shape(shape) for shape, _ in found], dtype=object)
    return shapely.transform(pixels, lambda xy: xy * pixel_size)


def large(polygons: np.ndarray) -> np.ndarray:
    return polygons[shapely.area(polygons) >= MIN_AREA]


OUTLINES: dict[str, Draw] = {
    "outlines as they are": lambda polygons: polygons,
    f"only those of {MIN_AREA:g} m² and more": large,
    f"these simplified by {TOLERANCE:g} m": lambda p: shapely.simplify(large(p), TOLERANCE),
    f"these with right angles, walls of {TOLERANCE:g} m": lambda p: right_angled(
        large(p), TOLERANCE
    ),
}


def masks_row(
    name: str, found: Iterable[np.ndarray], scenes: list[HeldOut], threshold: float
) -> Row:
    score, counts = Score(), np.zeros((2, BINS), np.int64)
    for scene, probability in zip(scenes, found, strict=True):
        score.add(probability >= threshold, scene.label)
        counts += histogram(probability, scene.label)
    best, iou = calibrate(counts)
    return {"step": name, **score.row(), "IoU at best": f"{iou:.3f} ({best:.2f})"}


def outlines_row(
    name: str, draw: Draw, found: list[np.ndarray], scenes: list[HeldOut], threshold: float
) -> Row:
    score, corners, count, seconds = Score(), 0, 0, 0.0
    for scene, probability in zip(scenes, found, strict=True):
        raw = outlines(probability >= threshold, scene.pixel_size)
        start = time.perf_counter()
        drawn = draw(raw)
        seconds += time.perf_counter() - start
        scale = partial(np.multiply, 1 / scene.pixel_size)
        placed = [shapely.transform(polygon, scale) for polygon in drawn]
        mask = rasterize(placed, scene.label.shape) if placed else np.zeros(scene.label.shape)
        score.add(mask, scene.label)
        corners += int(shapely.get_num_coordinates(drawn).sum())
        count += len(drawn)
    cost = {"outlines": count, "corners each": corners / max(1, count)}
    return {"step": name, **score.row(), **cost, "ms each": 1e3 * seconds / max(1, count)}


def main() -> None:
    options = arguments("inference_quality", __doc__).parse_args()
    with setting(options, 2 * WINDOW) as (model, scenes, about):
        threshold = model.info.threshold
        megapixels = sum(scene.label.size for scene in scenes) / 1e6
        network, found = [], {}
        for name, how in NETWORK.items():
            start = time.process_time()
            found[name] = [probabilities(model, scene, **how) for scene in scenes]
            seconds = time.process_time() - start
            row = masks_row(name, found[name], scenes, threshold)
            network.append({**row, "CPU s / megapixel": seconds / megapixels})
            print(table(network[-1:]).splitlines()[-1], flush=True)
        network.append(masks_row("the default at a threshold of 0.5", found[DEFAULT], scenes, 0.5))
        drawn = {
            name: [
                outlines_row(step, draw, found[name], scenes, threshold)
                for step, draw in OUTLINES.items()
            ]
            for name in (DEFAULT, BEST)
        }
    data = {"about": about | {"processor": processor()}, "network": network, "outlines": drawn}
    write(options.name, describe(data), data)


def describe(data: dict[str, Any]) -> str:
    about = ", ".join(f"{name}: {value}" for name, value in data["about"].items())
    text = [
        "# What each step after the network buys",
        f"Written by `python -m benchmarks.inference_quality`. {about}. Boundary IoU compares rims "
        f"{RIM} pixels wide; `found` and `right` are of whole buildings, at an IoU above 0.5. `IoU "
        "at best` is that of the threshold in brackets, which suits these very scenes best: what "
        "calibration could still win. `CPU s` are of all cores together; a scene of two "
        "windows' width takes three with the overlap, in large scenes it costs 31 %.",
        "## From windows to a mask",
        table(data["network"]),
    ]
    for name, rows in data["outlines"].items():
        text += [f"## From a mask to outlines: {name}", table(rows)]
    text.append(
        "Outlines are drawn as masks again to be scored. `corners each` counts the vertices of an "
        "outline, its holes included; `ms each` is what the step takes beside the outlining."
    )
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    main()
