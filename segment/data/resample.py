"""Arrays (H, W, ...) at another size: averaged over areas, interpolated, or picked."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def averaged(values: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    """The means over the cells of a grid of `shape` laid over the values, one axis at a time."""
    values = values.astype(np.float32, copy=False)
    for axis, new in enumerate(shape):
        old = values.shape[axis]
        if new == old:
            continue
        values = np.moveaxis(values, axis, 0)
        sums = np.concatenate([np.zeros_like(values[:1], float), np.cumsum(values, 0, float)])
        edges = np.linspace(0, old, new + 1)
        below = np.minimum(edges.astype(int), old - 1)
        part = (edges - below).reshape(-1, *[1] * (values.ndim - 1))
        at = sums[below] + part * values[below]  # the sum of all up to each edge
        values = np.moveaxis((np.diff(at, axis=0) * (new / old)).astype(np.float32), 0, axis)
    return values


def interpolated(values: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Bilinear between the centres of the pixels; beyond the outermost centres it is level."""
    values = values.astype(np.float32, copy=False)
    for axis, new in enumerate(shape):
        old = values.shape[axis]
        if new == old:
            continue
        values = np.moveaxis(values, axis, 0)
        centres = (np.arange(new) + 0.5) * (old / new) - 0.5
        first = np.clip(np.floor(centres).astype(int), 0, max(old - 2, 0))
        second = np.minimum(first + 1, old - 1)
        share = np.clip(centres - first, 0, 1).astype(np.float32)
        share = share.reshape(-1, *[1] * (values.ndim - 1))
        values = np.moveaxis(values[first] * (1 - share) + values[second] * share, 0, axis)
    return values


def in_the_middle(values: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """What lies under the centre of each cell of a grid of `shape` laid over the values (H, W)."""
    picked = [
        ((np.arange(new) + 0.5) * (old / new)).astype(int)
        for old, new in zip(values.shape, shape, strict=True)
    ]
    return values[np.ix_(*picked)]
