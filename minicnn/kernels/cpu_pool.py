"""Max-pooling by 2, and the 1x1 convolution: what is left of the network.

Loops over the C values of every second pixel are slow; pixels are first put apart into the even
and the odd columns, copied whole, and then all arithmetic runs along full rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minicnn.kernels.cpu_maps import Gradient, Map, mask_and_sum
from minicnn.kernels.cpu_windows import largest_divisor
from minicnn.memory import empty
from minicnn.threads import run, scratch

BAND_VALUES = 1 << 17  # values worked on at a time


def _band(H: int, row_values: int, multiple: int = 1) -> int:
    """A number of rows that divides H, of at most about BAND_VALUES values."""
    groups = H // multiple
    return multiple * largest_divisor(groups, BAND_VALUES // (multiple * row_values))


def _columns(a: np.ndarray, C: int) -> np.ndarray:
    """(rows, W * C) as (rows, W / 2, even or odd), each item one whole pixel."""
    return a.view(np.dtype((np.void, 4 * C))).reshape(len(a), -1, 2)


@dataclass(frozen=True)
class PoolCache:
    x: Map
    z: np.ndarray


def max_pool2d(x: Map) -> tuple[Map, PoolCache]:
    """(N, H, W, C) -> (N, H/2, W/2, C), H and W even.

    What batch norm and ReLU do to z keeps the order: the pooled map is as lazy as `x`.
    """
    N, H, W, C = x.shape
    z = empty(N, H // 2, W // 2, C)
    rows = _band(H, W * C, 2)

    def band(j: int) -> None:
        n, first = divmod(j * rows, H)
        X = x.band(n, first, first + rows)
        taller = scratch("V1", rows // 2, W * C)
        np.maximum(X[::2], X[1::2], out=taller)
        even, odd = scratch("V0", 2, rows // 2, W // 2 * C)
        for side, values in enumerate((even, odd)):
            pixels = values.view(np.dtype((np.void, 4 * C)))
            np.copyto(pixels, _columns(taller, C)[:, :, side])
        out = z[n, first // 2 : (first + rows) // 2].reshape(rows // 2, -1)
        np.maximum(even, odd, out=out)

    run(N * (H // rows), band)
    return x.like(z), PoolCache(x, z)


def max_pool2d_backward(
    dy: np.ndarray, cache: PoolCache, other: np.ndarray | None
) -> np.ndarray | Gradient:
    """The gradient of x, the `other` gradient of the same x added. The first of equals wins."""
    x = cache.x
    N, H, W, C = x.shape
    dx = empty(N, H, W, C)
    rows = _band(H, W * C, 2)
    slots = np.zeros((N * (H // rows), 2, C), np.float32)
    pixel = np.dtype((np.void, 4 * C))

    def band(j: int) -> None:
        n, first = divmod(j * rows, H)
        half = slice(first // 2, (first + rows) // 2)
        X = x.band(n, first, first + rows)
        left = scratch("V0", rows // 2, W // 2 * C)  # of the gradient, not yet handed to a pixel
        np.copyto(left, dy[n, half].reshape(left.shape))
        largest = cache.z[n, half].reshape(left.shape)
        sides = scratch("V1", 2, rows, W // 2 * C)
        for side in (0, 1):
            np.copyto(sides[side].view(pixel), _columns(X, C)[:, :, side])
        for row in (0, 1):
            for side in (0, 1):
                values = sides[side, row::2]
                np.equal(values, largest, out=values, casting="unsafe")
                values *= left
                if (row, side) != (1, 1):
                    left -= values
        out = dx[n, first : first + rows].reshape(rows, W * C)
        for side in (0, 1):
            np.copyto(_columns(out, C)[:, :, side], sides[side].view(pixel))
        if other is not None:
            out += other[n, first : first + rows].reshape(rows, W * C)
        if x.of_block:
            mask_and_sum(out, x, n, first, first + rows, slots[j])

    run(len(slots), band)
    return Gradient(dx, slots.sum(0, dtype=float)) if x.of_block else dx


@dataclass(frozen=True)
class PointwiseCache:
    x: Map
    w: np.ndarray


def pointwise(x: Map, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, PointwiseCache]:
    """A 1x1 convolution: literally x @ w + b. w (1, 1, C, F)."""
    N, H, W, C = x.shape
    F = len(b)
    y, source = empty(N, H, W, F), x.activation()
    rows = _band(H, W * C)

    def band(j: int) -> None:
        n, first = divmod(j * rows, H)
        X = scratch("V0", rows, W * C)
        source.read(n, first, first + rows, X)
        out = y[n, first : first + rows].reshape(-1, F)
        np.matmul(X.reshape(-1, C), w[0, 0], out=out)
        out += b

    run(N * (H // rows), band)
    return y, PointwiseCache(x, w)


def pointwise_backward(dy: np.ndarray, cache: PointwiseCache) -> tuple[Any, np.ndarray, np.ndarray]:
    """dy (N, H, W, F) -> dx (a `Gradient` if x is a block's), dw, db."""
    x, w = cache.x, cache.w
    N, H, W, C = x.shape
    F = dy.shape[3]
    dx, source = empty(N, H, W, C), x.activation()
    rows = _band(H, W * C)
    count = N * (H // rows)
    slots, dw = np.zeros((count, 2, C), np.float32), np.empty((count, C, F), np.float32)
    db = np.empty((count, F), np.float32)

    def band(j: int) -> None:
        n, first = divmod(j * rows, H)
        X = scratch("V0", rows, W * C)
        source.read(n, first, first + rows, X)
        d = dy[n, first : first + rows].reshape(-1, F)
        out = dx[n, first : first + rows].reshape(rows, W * C)
        np.matmul(d, w[0, 0].T, out=out.reshape(-1, C))
        np.matmul(X.reshape(-1, C).T, d, out=dw[j])
        np.sum(d, 0, out=db[j])
        if x.of_block:
            mask_and_sum(out, x, n, first, first + rows, slots[j])

    run(count, band)
    total = dw.sum(0, dtype=float).astype(np.float32)[None, None]
    result = Gradient(dx, slots.sum(0, dtype=float)) if x.of_block else dx
    return result, total, db.sum(0, dtype=float).astype(np.float32)
