"""Max-pooling by 2.

Loops over the C values of every second pixel are slow; pixels are first put apart into the even
and the odd columns, copied whole, and then all arithmetic runs along full rows.
"""

from dataclasses import dataclass

import numpy as np

from minicnn.kernels.cpu.blocking import bands
from minicnn.kernels.cpu.feature_maps import Gradient, Map, mask_and_sum
from minicnn.kernels.cpu.memory import empty
from minicnn.kernels.cpu.threads import run, scratch


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
    cut = bands(N, H, W * C, 2)

    def band(j: int) -> None:
        n, first, last = cut.place(j)
        X = x.band(n, first, last)
        taller = scratch("V1", len(X) // 2, W * C)
        np.maximum(X[::2], X[1::2], out=taller)
        even, odd = scratch("V0", 2, len(X) // 2, W // 2 * C)
        for side, values in enumerate((even, odd)):
            pixels = values.view(np.dtype((np.void, 4 * C)))
            np.copyto(pixels, _columns(taller, C)[:, :, side])
        out = z[n, first // 2 : (last) // 2].reshape(len(X) // 2, -1)
        np.maximum(even, odd, out=out)

    run(cut.count, band)
    return x.like(z), PoolCache(x, z)


def max_pool2d_backward(
    dy: np.ndarray, cache: PoolCache, other: np.ndarray | None
) -> np.ndarray | Gradient:
    """The gradient of x, the `other` gradient of the same x added. The first of equals wins."""
    x = cache.x
    N, H, W, C = x.shape
    dx = empty(N, H, W, C)
    cut = bands(N, H, W * C, 2)
    slots = np.zeros((cut.count, 2, C), np.float32)
    pixel = np.dtype((np.void, 4 * C))

    def band(j: int) -> None:
        n, first, last = cut.place(j)
        half = slice(first // 2, (last) // 2)
        X = x.band(n, first, last)
        left = scratch("V0", len(X) // 2, W // 2 * C)  # of the gradient, not yet handed to a pixel
        np.copyto(left, dy[n, half].reshape(left.shape))
        largest = cache.z[n, half].reshape(left.shape)
        sides = scratch("V1", 2, len(X), W // 2 * C)
        for side in (0, 1):
            np.copyto(sides[side].view(pixel), _columns(X, C)[:, :, side])
        for row in (0, 1):
            for side in (0, 1):
                values = sides[side, row::2]
                np.equal(values, largest, out=values, casting="unsafe")
                values *= left
                if (row, side) != (1, 1):
                    left -= values
        out = dx[n, first:last].reshape(len(X), W * C)
        for side in (0, 1):
            np.copyto(_columns(out, C)[:, :, side], sides[side].view(pixel))
        if other is not None:
            out += other[n, first:last].reshape(len(X), W * C)
        if x.of_block:
            mask_and_sum(out, x, n, first, last, slots[j])

    run(len(slots), band)
    return Gradient(dx, slots.sum(0, dtype=float)) if x.of_block else dx
