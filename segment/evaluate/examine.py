"""What a model gets right and wrong on tiles, in one pass: pixels, outlines, whole buildings.

Every tile is looked at by itself, so a roof that a tile's edge cuts is two. True roofs that touch
are told apart by labels that are polygons or numbers; in a mask they are one, unless it leaves a
gap. Predicted ones are parted as outlines are. Pixels without a label are background in truth and
prediction alike, and count nowhere.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment.data.labels import BUILDING, IGNORE
from segment.data.tiles import Tile
from segment.evaluate.metrics import BINS, count_tiles, histogram, summarise
from segment.evaluate.objects import Numbers, match, object_scores
from segment.geo.separate import TOGETHER, Separation, marks, numbered

BOUNDARY = 0.02  # of an image's diagonal: how far from an outline its region reaches
SIZES = (0, 50, 100, 200, 500, 1000)  # m2 (or pixels): where the classes of buildings begin
CLASSES = 16  # of probability, in which it is held against what is there

Batch = tuple[slice, NDArray[np.float32], NDArray[np.uint8], Numbers]  # see `examine`


@dataclass
class Findings:
    """Counts of T tiles; besides a few numbers a tile, nothing grows with T.

    pixels (T, 4): tp, fp, fn, tn; boundary (T, 2): intersection and union; objects (T, 5): true,
    predicted, matched, merged, split; histogram (2, 256) as `metrics.histogram` has it; sizes
    (S, 6): by class of area, true buildings, found ones, their pixels, pixels hit, predicted ones,
    right ones.
    """

    pixels: NDArray[np.int64]
    boundary: NDArray[np.int64]
    objects: NDArray[np.int64]
    histogram: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def summary(self, tiles: Sequence[Tile]) -> dict[str, Any]:
        """`metrics.summarise`, its pooled rows (all tiles, cities, scenes) with more scores:
        "boundary_iou" and "objects", the `object_scores`."""
        scored = summarise(self.pixels, tiles)
        city = np.array([tile.city for tile in tiles])
        scene = np.array([f"{tile.city}/{tile.scene}" for tile in tiles])
        self._add_scores(scored["pooled"], np.full(len(tiles), True))
        for rows, names in (("cities", city), ("scenes", scene)):
            for name, row in scored[rows].items():
                self._add_scores(row, names == name)
        return scored

    def rows(self) -> NDArray[np.int64]:
        """What is known of each tile, (T, 11), for processes to share."""
        return np.concatenate([self.pixels, self.boundary, self.objects], axis=1)

    def with_rows(self, rows: NDArray[np.int64]) -> "Findings":
        """These with the tiles of all processes."""
        return replace(self, pixels=rows[:, :4], boundary=rows[:, 4:6], objects=rows[:, 6:])

    def _add_scores(self, row: dict[str, Any], where: NDArray[np.bool_]) -> None:
        shared, union = self.boundary[where].sum(axis=0)
        row["boundary_iou"] = float(shared / union) if union else 1.0
        row["objects"] = object_scores(self.objects[where].sum(axis=0))


def examine(
    batches: Iterable[Batch],
    count: int,
    threshold: float,
    pixel_size: float | None,
    how: Separation = TOGETHER,
) -> Findings:
    """Findings over `count` tiles, from (slice of tiles, probabilities, labels, true buildings)
    batch by batch, the last three (N, H, W).

    pixel_size in metres gives areas in m2; None leaves them in pixels. `how` parts predicted
    buildings that touch.
    """
    shapes = (count, 4), (count, 2), (count, 5), (2, BINS), (len(SIZES), 6)
    found = Findings(*(np.zeros(shape, np.int64) for shape in shapes))
    for part, probability, labels, truths in batches:
        found.pixels[part] = count_tiles(probability, labels, threshold)
        found.histogram += histogram(probability, labels)
        predicted = (probability >= threshold) & (labels != IGNORE)
        building, labelled = labels == BUILDING, labels != IGNORE
        distance = boundary_distance(*labels.shape[1:])
        found.boundary[part] = boundary_counts(predicted, building, labelled, distance)
        marked = marks(probability, predicted)
        for index, (mark, truth) in enumerate(zip(marked, truths, strict=True), part.start):
            both = truth, numbered(mark, how)
            found.objects[index], hit, right = match(*both)
            found.sizes += sizes_of(*both, hit, right, (pixel_size or 1.0) ** 2)
    return found


# ---------------------------------------------------------------- outlines


def boundary_counts(
    predicted: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    labelled: NDArray[np.bool_],
    distance: int,
) -> NDArray[np.int64]:
    """Pixels in both and in either boundary region: three (N, H, W) masks -> (N, 2).

    Boundary IoU = |(T_d & T) & (P_d & P)| / |(T_d & T) | (P_d & P)|, T_d being the pixels within
    `distance` of the outline of T: masks are compared by their inner rims (Cheng, Girshick,
    Dollár, Berg, Kirillov 2021, arXiv:2103.16562). As in their code the distance is measured in
    whole rings of neighbours, and the image's edge is an outline, too.
    """
    rims = [mask & ~eroded(mask, distance) & labelled for mask in (predicted, truth)]
    shared, either = rims[0] & rims[1], rims[0] | rims[1]
    return np.stack([region.sum(axis=(1, 2)) for region in (shared, either)], axis=1)


def boundary_distance(H: int, W: int) -> int:
    """The distance that boundary IoU is defined with: 2 % of the diagonal of H x W pixels."""
    return max(1, round(BOUNDARY * math.hypot(H, W)))


def eroded(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """What of (N, H, W) masks is left where all pixels within `distance`, in the square of
    2 distance + 1, are in the mask; outside of the image none is."""
    side = 2 * distance + 1
    for axis in (1, 2):
        pads = [(0, 0)] * 3
        pads[axis] = (distance + 1, distance)
        total = np.moveaxis(np.pad(mask, pads).cumsum(axis, dtype=np.int32), axis, 0)
        mask = np.moveaxis(total[side:] - total[:-side] == side, 0, axis)
    return mask


# ---------------------------------------------------------------- buildings


def sizes_of(
    truth: Numbers,
    predicted: Numbers,
    found: NDArray[np.bool_],
    right: NDArray[np.bool_],
    area: float,
) -> NDArray[np.int64]:
    """The (S, 6) `Findings.sizes` of one tile, from its buildings and `objects.match`; `area` is a
    pixel's."""
    size_a, size_b = np.bincount(truth.ravel()), np.bincount(predicted.ravel())
    hit = np.bincount(truth[predicted > 0], minlength=len(size_a))
    sizes = [
        *_by_size(size_a * area, np.ones_like(size_a), np.append(0, found), size_a, hit),
        *_by_size(size_b * area, np.ones_like(size_b), np.append(0, right)),
    ]
    return np.stack(sizes, axis=1)


def _by_size(area: NDArray[Any], *values: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The sum of each of `values` over the objects of a class of area; entry 0 is no object."""
    kind = np.digitize(area[1:], SIZES[1:])
    return [np.bincount(kind, value[1:], len(SIZES)).astype(np.int64) for value in values]


# ---------------------------------------------------------------- curves


def precision_recall(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall at the thresholds 0/256 ... 255/256, from a `histogram`.

    Where nothing is at or above a threshold, its precision is NaN: there is none.
    """
    fp, tp = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    with np.errstate(invalid="ignore"):
        return tp / (tp + fp), tp / tp[0]


def reliability(counts: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """How far a probability can be believed, in sixteen classes of it, from a `histogram`.

    Returns, of each class, the mean probability, the share of pixels that are buildings (NaN both
    where there is no pixel), and the number of pixels. Probabilities are known to 1/512.
    """
    centre = (np.arange(BINS) + 0.5) / BINS
    pixels, mass = (
        values.reshape(CLASSES, -1).sum(axis=1)
        for values in (counts.sum(axis=0), counts.sum(axis=0) * centre)
    )
    building = counts[1].reshape(CLASSES, -1).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return mass / pixels, building / pixels, pixels


def calibration_error(counts: NDArray[np.int64]) -> float:
    """The expected calibration error: |probability - share| of the classes, mean over pixels."""
    mean, share, pixels = reliability(counts)
    return float(np.nansum(abs(mean - share) * pixels) / pixels.sum())
