"""Where a mistake would join two buildings: the border weights of the U-Net paper.

Ronneberger, Fischer, Brox 2015, arXiv:1505.04597, equation 2: the background between buildings
weighs 1 + w0 exp(-(d1 + d2)^2 / (2 sigma^2)), where d1 and d2 are the distances to the nearest
building and to the nearest other one. Everything else weighs 1.
"""

import numpy as np
from numpy.typing import NDArray

from segment.data.labels import BUILDING
from segment.data.tiles import classes
from segment.geo.separate import TOGETHER, numbered

SIGMA = 3.0  # pixels: a gap of one weighs 0.80 w0 more, of two 0.61, of four 0.25, of six 0.07
REACH = 8  # pixels: beyond it d1 + d2 > 3 sigma, and 0.011 w0 is left out


def _disc() -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Steps (n, 2) to all pixels within REACH, the nearest first, and their lengths."""
    steps = np.mgrid[-REACH : REACH + 1, -REACH : REACH + 1].reshape(2, -1).T
    lengths = np.hypot(*steps.T)
    order = np.argsort(lengths, kind="stable")[: np.count_nonzero(lengths <= REACH)]
    return steps[order], lengths[order].astype(np.float32)


STEPS, LENGTHS = _disc()


def border_weights(coverage: NDArray[np.uint8], w0: float) -> NDArray[np.float32]:
    """The weight of each pixel of a crop (H, W), from its coverage.

    A building is what hangs together in the crop, of pixels covered by half. Distances, in pixels
    between centres, are worked out where two buildings are within reach: few pixels of most crops.
    """
    building = (classes(coverage) == BUILDING).astype(np.uint8)
    number = np.pad(numbered(building, TOGETHER), REACH)
    weights = np.ones(coverage.shape, np.float32)
    rows, cols = np.nonzero(_between(number))
    if not len(rows):
        return weights
    width = number.shape[1]
    start = (rows + REACH) * width + cols + REACH
    around = number.ravel()[start[:, None] + STEPS @ (width, 1)]  # (pixels, steps)
    nearest, first = _first(around > 0, around)
    _, second = _first((around > 0) & (around != nearest[:, None]), around)
    weights[rows, cols] += w0 * np.exp(-((first + second) ** 2) / (2 * SIGMA**2))
    return weights


def _first(
    wanted: NDArray[np.bool_], around: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """What each pixel's first wanted step leads to, and its length; infinite if there is none."""
    step = wanted.argmax(axis=1)
    length = np.where(wanted.any(axis=1), LENGTHS[step], np.float32(np.inf))
    return around[np.arange(len(step)), step], length


def _between(number: NDArray[np.int32]) -> NDArray[np.bool_]:
    """The background with two buildings in the square of REACH around it; `number` has a rim."""
    highest = _highest(number)
    lowest = -_highest(np.where(number > 0, -number, np.int32(-(2**30))))
    inside = number[REACH:-REACH, REACH:-REACH]
    return (inside == 0) & (highest > lowest) & (lowest < 2**30)


def _highest(number: NDArray[np.int32]) -> NDArray[np.int32]:
    """The maxima in squares of 2 REACH + 1, by maxima in squares that double."""
    for _ in range(2):
        side = 1
        while side < 2 * REACH + 1:
            step = min(side, 2 * REACH + 1 - side)
            number = np.maximum(number[step:], number[:-step])
            side += step
        number = number.T
    return number
