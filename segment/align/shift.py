"""How far a label lies off its picture: the shift at which it agrees best with the probability."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLEAR = 0.35  # correlation of label and probability below which a picture is no evidence
GAIN = 0.02  # of correlation: what a picture's shift must bring
INSIDE = 0.25  # mean probability on a building, less that around it: below, it is no evidence
BETTER = 0.08  # of that contrast: what a building's own shift must bring
RING = 3  # pixels around a building that are held against it

Floats = NDArray[np.floating]
Step = tuple[int, int]  # rows down, columns to the right


@dataclass(frozen=True)
class Shift:
    """Where a label, or one building of it, agrees best; `moved` says whether that is evidence."""

    step: Step
    before: float
    after: float
    moved: bool


def picture_shift(probability: Floats, label: NDArray[np.uint8], reach: int) -> Shift:
    """The shift of a whole label (0, 1, others unknown) of at most `reach` pixels each way.

    Of all shifts d it is the one with the highest correlation r(d) of the label, moved by d, with
    the probability. It counts if r(d) >= 0.35 and r(d) - r(0) >= 0.02.
    """
    known = label <= 1
    truth = np.where(known, label, 0).astype(float)
    truth = np.where(known, truth - truth[known].mean() if known.any() else 0.0, 0.0)
    found = probability - probability.mean()
    scale = np.sqrt((truth**2).sum() * (found**2).sum())
    if scale == 0:
        return Shift((0, 0), 0.0, 0.0, False)
    agreement = _correlated(found, truth, reach) / scale
    before, (step, after) = float(agreement[reach, reach]), _highest(agreement, reach)
    return Shift(step, before, after, after >= CLEAR and after - before >= GAIN)


def building_shifts(probability: Floats, number: NDArray[np.int32], reach: int) -> list[Shift]:
    """The own shift of each building 1 to n of `number` (H, W), of at most `reach` pixels.

    It is the one with the highest contrast: the mean probability on the building, less that in a
    ring around it in which no other building lies. It counts if the contrast is at least 0.25, and
    0.08 above the one in place.
    """
    shifts, margin = [], reach + RING
    padded = np.pad(probability, margin)
    numbers = np.pad(number, margin)
    for own, rows, cols in _boxes(numbers, margin):
        window = numbers[rows, cols]
        building = window == own
        ring = _grown(building, RING) & (window == 0)
        weights = building / building.sum() - ring / max(1, ring.sum())
        contrast = _correlated(padded[rows, cols], weights, reach)
        before, (step, after) = float(contrast[reach, reach]), _highest(contrast, reach)
        shifts.append(Shift(step, before, after, after >= INSIDE and after - before >= BETTER))
    return shifts


def moved_label(
    label: NDArray[np.uint8], numbers: NDArray[np.int32], whole: Step, steps: list[Step]
) -> NDArray[np.uint8]:
    """The label with every building moved by its step, and what is unknown (255) by `whole`.

    `steps` are of the buildings 1 to n in `numbers`. What the picture's shift uncovers at the
    edges, and no building is moved to, is unknown.
    """
    height, width = label.shape
    moved = np.full(label.shape, 255, np.uint8)
    into, out_of = _overlap(whole, label.shape)
    moved[into] = np.where(label[out_of] > 1, 255, 0)
    rows, cols = np.nonzero(numbers)
    step = np.array(steps, int).reshape(-1, 2)[numbers[rows, cols] - 1]
    rows, cols = rows + step[:, 0], cols + step[:, 1]
    inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    moved[rows[inside], cols[inside]] = 1
    return moved


def _correlated(found: Floats, truth: Floats, reach: int) -> Floats:
    """sum over x of truth(x) found(x + d), for d from -reach to reach each way, beyond edges 0."""
    size = [side + 2 * reach for side in found.shape]
    spectrum = np.fft.rfft2(found, size) * np.conj(np.fft.rfft2(truth, size))
    around = np.roll(np.fft.irfft2(spectrum, size), (reach, reach), (0, 1))
    return around[: 2 * reach + 1, : 2 * reach + 1]


def _highest(values: Floats, reach: int) -> tuple[Step, float]:
    """The place of the highest value, of equals the one nearest to no shift."""
    best = np.argwhere(values >= values.max() - 1e-9) - reach
    row, col = best[(best**2).sum(axis=1).argmin()].tolist()
    return (row, col), float(values.max())


def _boxes(numbers: NDArray[np.int32], margin: int) -> Iterator[tuple[int, slice, slice]]:
    """Each building's number, and its rows and columns with a margin."""
    rows, cols = np.nonzero(numbers)
    order = np.argsort(numbers[rows, cols], kind="stable")
    _, first = np.unique(numbers[rows, cols][order], return_index=True)
    for own, pixels in enumerate(np.split(order, first[1:]) if len(order) else [], start=1):
        down, across = rows[pixels], cols[pixels]
        top, bottom = int(down.min()) - margin, int(down.max()) + 1 + margin
        left, right = int(across.min()) - margin, int(across.max()) + 1 + margin
        yield own, slice(top, bottom), slice(left, right)


def _grown(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """A mask with every pixel within `distance` of it, in the square."""
    for axis in (0, 1):
        total = mask.copy()
        for step in range(1, distance + 1):
            total |= np.roll(mask, step, axis) | np.roll(mask, -step, axis)
        mask = total
    return mask


def _overlap(step: Step, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a picture moved by a step lies on itself: there, and where that came from."""
    into = tuple(slice(max(0, d), size + min(0, d)) for d, size in zip(step, shape, strict=True))
    out_of = tuple(
        slice(max(0, -d), size + min(0, -d)) for d, size in zip(step, shape, strict=True)
    )
    return into, out_of
