"""Whole buildings: which are found, which run into one another, which come in pieces."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment.geo.separate import (
    TOGETHER,
    Relief,
    Separation,
    marks,
    numbered,
    without_crumbs,
)

MOST = 128  # tiles that the separation is calibrated on: seconds
THRESHOLDS = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)  # of outlines, where masks are cut lower
SMOOTHINGS = (0.5, 1.0, 2.0)  # pixels
PROMINENCES = (0.12, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 12.0)  # log-odds; the last parts nothing
SMALLEST = (0, 10, 20, 30, 45, 60, 80, 100)  # pixels
SURE = (0.0, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)  # mean probabilities
FEW = 50  # true buildings of a city: its voice is half that of one with very many
SHARE = 0.1  # of a true building: the least that counts as a piece of it

Numbers = NDArray[np.int32]  # (H, W): 1 to n on the buildings, 0 elsewhere
Sample = tuple[str, NDArray[np.float32], NDArray[np.uint8], Numbers]  # see calibrate_separation


def truth_of(label: NDArray[np.uint8], number: NDArray[np.uint32] | None = None) -> Numbers:
    """The true buildings of a label (H, W): those that `number` tells apart (see `Picture`), or, if
    it is None or 0 all over, what hangs together by the sides of the label's pixels."""
    building = label == 1
    if number is None or not number.any():
        return numbered(building.astype(np.uint8), TOGETHER)
    kinds, index = np.unique(np.where(building, number, 0), return_inverse=True)
    return (index.reshape(label.shape) + (kinds[0] > 0)).astype(np.int32)


def match(
    truth: Numbers, predicted: Numbers
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Compare the buildings of a tile: counts (5,), which true are found, which predicted right.

    The counts are of true, predicted, matched, merged and split buildings. Two match if their IoU
    is above one half; nothing can then match twice (Kirillov et al. 2019, arXiv:1801.00868). True
    ones are merged if one predicted building covers more than half of each of them. A true one is
    split if two predicted buildings lie mostly in it, each on at least a tenth of it.
    """
    area, size = np.bincount(truth.ravel()), np.bincount(predicted.ravel())
    both = (truth > 0) & (predicted > 0)
    pairs = truth[both].astype(np.int64) * len(size) + predicted[both]
    pairs, shared = np.unique(pairs, return_counts=True)
    i, j = np.divmod(pairs, len(size))
    same = 2 * shared > area[i] + size[j] - shared
    found, right = np.zeros(len(area), bool), np.zeros(len(size), bool)
    found[i[same]] = right[j[same]] = True
    covered = 2 * shared > area[i]
    merged = (np.bincount(j[covered], minlength=len(size)) > 1)[j[covered]].sum()
    piece = (2 * shared > size[j]) & (shared >= SHARE * area[i])
    split = (np.bincount(i[piece], minlength=len(area)) > 1).sum()
    counts = [len(area) - 1, len(size) - 1, same.sum(), merged, split]
    return np.array(counts, np.int64), found[1:], right[1:]


def object_scores(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Scores from `match`'s counts, or a sum of them: how many of the true buildings were "found"
    (recall), of the predicted ones "right" (precision), "f1", and predicted ones per true one.

    Without a true and a predicted building all is right: the scores are 1.
    """
    true, predicted, matched, merged, split = map(int, counts)

    def share(part: float, whole: int) -> float:
        return part / whole if whole else float(true == predicted)

    return {
        "true": true,
        "predicted": predicted,
        "predicted_per_true": share(predicted, true),
        "merged": merged,
        "split": split,
        "found": share(matched, true),
        "right": share(matched, predicted),
        "f1": share(2 * matched, true + predicted),
    }


def calibrate_separation(samples: Iterable[Sample], threshold: float) -> Separation:
    """The separation with the highest object F1 on validation tiles, the mean over their cities.

    `samples` are (city, probabilities, labels, true buildings), the last three (H, W), of tiles at
    the model's pixel size, `threshold` the one of its masks; 128 tiles will do (`spread`). The
    outlines' threshold is chosen first, then prominence and smoothing at it, then what is too small
    to be a building, and what too doubtful. Of equals the lowest is taken, but the largest
    prominence: it parts least.
    """
    tiles = [
        (city, truth, marks(probability, (probability >= threshold) & (label <= 1)))
        for city, probability, label, truth in samples
    ]
    higher = [0.0, *(level for level in THRESHOLDS if level > threshold)]
    middle = Separation(1.0, 1.0, smallest=SMALLEST[3])
    best = _best(tiles, [replace(middle, threshold=level) for level in higher])
    if best is None:
        return Separation()  # no building to calibrate on
    ways = [
        replace(best, prominence=least, smoothing=smoothing)
        for smoothing in SMOOTHINGS
        for least in reversed(PROMINENCES)
    ]
    best = _best(tiles, ways) or best
    best = _best(tiles, [replace(best, smallest=pixels) for pixels in SMALLEST]) or best
    return _best(tiles, [replace(best, sure=least) for least in SURE]) or best


def _best(
    tiles: list[tuple[str, Numbers, NDArray[np.uint8]]], ways: list[Separation]
) -> Separation | None:
    """The first of the ways to part with the highest F1; None where there is no building.

    Cities have a voice each, or the gaps of a dense old town would count for nothing beside many
    tiles of suburbs; one with n true buildings weighs n / (n + FEW), as its F1 is known less well.
    """
    totals: dict[str, NDArray[np.int64]] = {}
    for city, truth, mark in tiles:
        reliefs = {
            (how.threshold, how.smoothing): Relief(how.kept(mark), how.smoothing) for how in ways
        }
        found = [
            match(truth, without_crumbs(relief.numbered(how.prominence), mark, how))[0]
            for how in ways
            for relief in [reliefs[how.threshold, how.smoothing]]
        ]
        totals[city] = totals.get(city, np.zeros((len(ways), 5), np.int64)) + np.stack(found)
    true = np.array([total[0, 0] for total in totals.values()])
    if not true.any():
        return None
    f1 = [[object_scores(row)["f1"] for row in total] for total in totals.values()]
    return ways[int(np.argmax(true / (true + FEW) @ np.array(f1)))]


def spread(cities: NDArray[np.str_], most: int = MOST) -> NDArray[np.intp]:
    """Which of many tiles to calibrate on: at most so many, evenly in each city, cities in turn."""
    names, city = np.unique(cities, return_inverse=True)
    turn = np.zeros(len(cities))
    for name in range(len(names)):
        own = np.flatnonzero(city == name)
        turn[own[np.random.default_rng(0).permutation(len(own))]] = np.arange(len(own))
    return np.sort(np.argsort(turn, kind="stable")[:most])
