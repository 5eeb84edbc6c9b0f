"""One mask, many buildings: every pixel climbs to a peak of the smoothed log-odds, and a peak that
stands out from its neighbours is a building of its own.

This is the watershed whose markers are the maxima of at least a given prominence (the "dynamics" of
Grimaud 1992; persistence in ToMATo, Chazal et al. 2013). A library floods from the markers, which
needs the whole picture. Climbing needs a pixel's neighbours only, and peaks are joined afterwards,
in a graph. Pixels are in a total order (by level, then by place) and levels are whole numbers, so
blocks of a scene give the same bits as the scene.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

ODDS = 6.0  # log-odds beyond which the network is called certain: p = 0.0025 and 0.9975
CERTAIN = 255  # the mark of a pixel that is a building for certain
WEIGHTS = 4096  # what the whole weights of the smoothing add up to, along an axis
UNIT = (CERTAIN - 1) / (2 * ODDS) * WEIGHTS**2  # levels in one log-odd; the highest fits 32 bits

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Separation:
    """What parts two buildings that touch.

    prominence: how far log(p / (1 - p)) must fall from a peak, on the way to a higher one, for the
    peak to be a building. smoothing: the standard deviation, in pixels, of the Gaussian that it is
    smoothed with beforehand. threshold: the probability from which a pixel is in an outline, where
    that is more than what masks are cut at: masks are right most often, pixel by pixel, at a low
    threshold, which fills the gaps between houses. smallest: the pixels of the smallest building.
    sure: the least mean probability of one. What is parted and has less of either is dropped.
    """

    prominence: float = 0.5
    smoothing: float = 1.5
    threshold: float = 0.0
    smallest: float = 0.0
    sure: float = 0.0

    @property
    def least(self) -> float:
        """The prominence in levels."""
        return self.prominence * UNIT

    @property
    def margin(self) -> int:
        """How many pixels around a block its levels depend on."""
        return math.ceil(3 * self.smoothing)

    def on(self, own: float | None, pixel_size: float | None) -> "Separation":
        """The same in pixels of `own` metres, of a separation in pixels of `pixel_size` metres."""
        scale = pixel_size / own if own and pixel_size else 1.0
        smoothing = round(20 * self.smoothing * scale) / 20
        return replace(self, smoothing=smoothing, smallest=round(self.smallest * scale**2))

    def obeying(self, threshold: float | None, min_area: float = 0.0) -> "Separation":
        """The same where a threshold for masks was asked for: then outlines have no other, however
        unsure; and where a least area was: then no other size decides what is dropped."""
        how = self if threshold is None else replace(self, threshold=0.0, sure=0.0)
        return replace(how, smallest=0.0) if min_area else how

    def kept(self, mark: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The marks from the threshold up, 0 elsewhere. A mark knows 0.05 log-odds."""
        if self.threshold <= 0:
            return mark
        least = marks(np.array([self.threshold], np.float32), np.array([True]))
        return np.where(mark >= least, mark, np.uint8(0))

    def holds(self, pixels: Ints, mass: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of n parts are buildings, by their pixels and the sum of `confidence` over them."""
        held: NDArray[np.bool_] = (pixels >= self.smallest) & (mass >= 1e6 * self.sure * pixels)
        return held


TOGETHER = Separation(math.inf, 0.0)  # what touches by a side stays one


def marks(probability: NDArray[np.float32], building: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Log-odds from -6 to 6 as whole numbers from 1 to 255; 0 where there is no building."""
    clear = np.clip(probability, 1e-6, 1 - 1e-6)
    odds = np.clip(np.log(clear / (1 - clear)), -ODDS, ODDS)
    steps = 1 + np.rint((odds + ODDS) * ((CERTAIN - 1) / (2 * ODDS)))
    return np.where(building, steps, 0).astype(np.uint8)


def confidence(mark: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The probability that a mark stands for, in millionths: sums of whole numbers are exact."""
    odds = (np.arange(CERTAIN + 1) - 1) * (2 * ODDS / (CERTAIN - 1)) - ODDS
    return np.rint(1e6 / (1 + np.exp(-odds)))[mark]


def smoothed(mark: NDArray[np.uint8], sigma: float) -> NDArray[np.uint32]:
    """Marks (H, W) under a Gaussian, in whole numbers; 0 where there is no building.

    The marks beside a building are 0, so levels also fall towards walls: a neck between two
    buildings is a saddle even where the network was sure of it.
    """
    reach = math.ceil(3 * sigma)
    weights = _gaussian(sigma, reach)
    total = mark.astype(np.uint32)
    for axis in (0, 1):
        pads = [(0, 0), (0, 0)]
        pads[axis] = (reach, reach)
        padded, size = np.pad(total, pads), mark.shape[axis]
        total = np.zeros(mark.shape, np.uint32)
        for shift, weight in enumerate(weights):
            part = slice(shift, shift + size)
            total += weight * (padded[part] if axis == 0 else padded[:, part])
    return np.where(mark > 0, total, np.uint32(0))


def _gaussian(sigma: float, reach: int) -> NDArray[np.uint32]:
    """Whole weights that add up to `WEIGHTS`: a sum of them is exact in any order."""
    at = np.arange(-reach, reach + 1)
    curve = np.exp(-0.5 * (at / sigma) ** 2) if reach else np.ones(1)
    weights = np.rint(WEIGHTS * curve / curve.sum()).astype(np.int64)
    weights[reach] += WEIGHTS - weights.sum()
    return weights.astype(np.uint32)


# ---------------------------------------------------------------- pieces: what climbs to one peak


@dataclass(frozen=True)
class Pieces:
    """n pieces of a block: the pixels from which climbing ends on one peak, or leaves the block.

    number (H, W): 1 to n, 0 where there is no building; peak (n,): where the highest pixel lies, as
    row x width + column of the whole scene; level (n,): its level.
    """

    number: NDArray[np.int32]
    peak: Ints
    level: Ints


def pieces(levels: NDArray[np.uint32], row: int, col: int, width: int) -> Pieces:
    """Let the pixels of a block climb. `levels` (H + 2, W + 2) has a rim of one pixel around it.

    (row, col) is the block's first pixel in the scene of `width`. A pixel's step is to the highest
    of its four neighbours, if that is higher than itself; of equals the first one counts as higher.
    """
    size = levels.size
    place = np.arange(size).reshape(levels.shape)
    order = levels.astype(np.int64) * size + (size - 1 - place)  # the total order of pixels
    order[levels == 0] = -1
    best = order.copy()
    for towards, beside in ((np.s_[1:], np.s_[:-1]), (np.s_[:-1], np.s_[1:])):
        np.maximum(best[towards], order[beside], out=best[towards])
        np.maximum(best[:, towards], order[:, beside], out=best[:, towards])
    own = np.zeros(levels.shape, bool)
    own[1:-1, 1:-1] = levels[1:-1, 1:-1] > 0
    step = np.where(own, size - 1 - best % size, place).ravel()
    step = np.where(own.ravel()[step], step, place.ravel())  # who would leave the block, stays
    while not np.array_equal(further := step[step], step):
        step = further
    peaks = np.flatnonzero((step == place.ravel()) & own.ravel())
    number = np.zeros(size, np.int32)
    number[peaks] = np.arange(1, len(peaks) + 1)
    number = np.where(own, number[step].reshape(levels.shape), 0)[1:-1, 1:-1]
    rows, cols = np.divmod(peaks, levels.shape[1])
    where = (rows - 1 + row) * width + (cols - 1 + col)
    return Pieces(number, where.astype(np.int64), levels.ravel()[peaks].astype(np.int64))


# ---------------------------------------------------------------- passes between pieces


@dataclass(frozen=True)
class Side:
    """Pixels along a line: the peak of each one's piece (-1: no building), its level and place."""

    peak: Ints
    level: Ints
    place: Ints

    def __getitem__(self, where: NDArray[np.bool_]) -> "Side":
        return Side(self.peak[where], self.level[where], self.place[where])


def passes(one: Side, other: Side) -> Ints:
    """Where pieces touch, from pixels side by side: rows of (peak, peak, level and place of the
    lower pixel, level and place of the higher one)."""
    meet = (one.peak >= 0) & (other.peak >= 0) & (one.peak != other.peak)
    one, other = one[meet], other[meet]
    below = (one.level < other.level) | ((one.level == other.level) & (one.place > other.place))
    low = np.where(below, one.level, other.level), np.where(below, one.place, other.place)
    high = np.where(below, other.level, one.level), np.where(below, other.place, one.place)
    return np.stack([one.peak, other.peak, *low, *high], axis=1)


def descending(found: Ints) -> Ints:
    """`passes` from the highest one down, the highest one of every two pieces only."""
    _, _, low, low_place, high, high_place = found.T
    found = found[np.lexsort((high_place, -high, low_place, -low))]
    pair = np.sort(found[:, :2], axis=1)
    order = np.lexsort((pair[:, 1], pair[:, 0]))  # stable: of a pair the highest stays first
    new = np.ones(len(pair), bool)
    new[1:] = (pair[order][1:] != pair[order][:-1]).any(axis=1)
    return found[np.sort(order[new])]


def joined(peak: Ints, level: Ints, found: Ints, least: float) -> NDArray[np.intp]:
    """Join pieces into buildings: for each of n pieces, which one's peak is its building's highest.

    Passes are taken from the highest one down. One joins what it lies between where the lower of
    the two peaks is less than `least` above it; a piece that only led out of its block has its peak
    at the pass itself, and joins what it led to.
    """
    order = np.argsort(peak)
    ends = order[np.searchsorted(peak, found[:, :2], sorter=order)]
    above, heights = list(range(len(peak))), level.tolist()
    rank = list(zip(heights, (-peak).tolist(), strict=True))

    def top(piece: int) -> int:
        while above[piece] != piece:
            above[piece] = piece = above[above[piece]]
        return piece

    for (one, other), saddle in zip(ends.tolist(), found[:, 2].tolist(), strict=True):
        one, other = top(one), top(other)
        if rank[one] > rank[other]:
            one, other = other, one
        if one != other and (heights[one] - saddle < least or heights[one] == saddle):
            above[one] = other
    return np.array([top(piece) for piece in range(len(above))], dtype=np.intp)


def inner_passes(number: NDArray[np.int32], levels: Ints, peak: Ints, place: Ints) -> Ints:
    """`descending` passes within a block: four arrays of (H, W), but for `peak`, of the pieces."""
    peaks = np.append(peak, -1)[number - 1]  # number 0, no building: -1

    def side(part: tuple[slice, slice]) -> Side:
        return Side(peaks[part].ravel(), levels[part].ravel(), place[part].ravel())

    across = passes(side(np.s_[:, :-1]), side(np.s_[:, 1:]))
    down = passes(side(np.s_[:-1, :]), side(np.s_[1:, :]))
    return descending(np.concatenate([across, down]))


# ---------------------------------------------------------------- a picture in one piece


class Relief:
    """A picture of `marks` (H, W), smoothed and climbed once, to be parted at any prominence."""

    def __init__(self, mark: NDArray[np.uint8], smoothing: float) -> None:
        levels = smoothed(mark, smoothing)
        self.pieces = pieces(np.pad(levels, 1), 0, 0, mark.shape[1])
        place = np.arange(mark.size).reshape(mark.shape)
        number, peak = self.pieces.number, self.pieces.peak
        self.between = inner_passes(number, levels.astype(np.int64), peak, place)

    def numbered(self, prominence: float) -> NDArray[np.int32]:
        """The buildings (H, W): 1 to n by the place of their highest pixel, 0 elsewhere."""
        peak, level = self.pieces.peak, self.pieces.level
        top = joined(peak, level, self.between, prominence * UNIT)
        _, building = np.unique(peak[top], return_inverse=True)
        return np.append(0, building + 1).astype(np.int32)[self.pieces.number]


def numbered(mark: NDArray[np.uint8], how: Separation) -> NDArray[np.int32]:
    """The buildings of a whole picture of `marks`, as `Relief.numbered` has them, less crumbs."""
    relief = Relief(how.kept(mark), how.smoothing)
    return without_crumbs(relief.numbered(how.prominence), mark, how)


def without_crumbs(
    number: NDArray[np.int32], mark: NDArray[np.uint8], how: Separation
) -> NDArray[np.int32]:
    """What is large enough, and the network sure enough of, numbered from 1 again."""
    pixels = np.bincount(number.ravel())
    held = how.holds(pixels, np.bincount(number.ravel(), confidence(mark).ravel()))
    held[0] = False
    return np.where(held, np.cumsum(held), 0).astype(np.int32)[number]
