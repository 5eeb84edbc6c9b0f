"""The 1x1 convolution: in NHWC a matrix product on the pixels as they lie there."""

from dataclasses import dataclass

import numpy as np

from minicnn.kernels.cpu.blocking import bands
from minicnn.kernels.cpu.feature_maps import Gradient, Map, mask_and_sum
from minicnn.kernels.cpu.memory import empty
from minicnn.kernels.cpu.threads import run, scratch


@dataclass(frozen=True)
class PointwiseCache:
    x: Map
    w: np.ndarray


def conv2d(x: Map, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, PointwiseCache]:
    """A 1x1 convolution: literally x @ w + b. w (1, 1, C, F)."""
    N, H, W, C = x.shape
    F = len(b)
    y, source = empty(N, H, W, F), x.activation()
    cut = bands(N, H, W * C)

    def band(j: int) -> None:
        n, first, last = cut.place(j)
        X = scratch("V0", last - first, W * C)
        source.read(n, first, last, X)
        out = y[n, first:last].reshape(-1, F)
        np.matmul(X.reshape(-1, C), w[0, 0], out=out)
        out += b

    run(cut.count, band)
    return y, PointwiseCache(x, w)


def conv2d_backward(
    dy: np.ndarray, cache: PointwiseCache
) -> tuple[np.ndarray | Gradient, np.ndarray, np.ndarray]:
    """dy (N, H, W, F) -> dx (a `Gradient` if x is a block's), dw, db."""
    x, w = cache.x, cache.w
    N, H, W, C = x.shape
    F = dy.shape[3]
    dx, source = empty(N, H, W, C), x.activation()
    cut = bands(N, H, W * C)
    slots, dw = np.zeros((cut.count, 2, C), np.float32), np.empty((cut.count, C, F), np.float32)
    db = np.empty((cut.count, F), np.float32)

    def band(j: int) -> None:
        n, first, last = cut.place(j)
        X = scratch("V0", last - first, W * C)
        source.read(n, first, last, X)
        d = dy[n, first:last].reshape(-1, F)
        out = dx[n, first:last].reshape(len(X), W * C)
        np.matmul(d, w[0, 0].T, out=out.reshape(-1, C))
        np.matmul(X.reshape(-1, C).T, d, out=dw[j])
        np.sum(d, 0, out=db[j])
        if x.of_block:
            mask_and_sum(out, x, n, first, last, slots[j])

    run(cut.count, band)
    total = dw.sum(0, dtype=float).astype(np.float32)[None, None]
    result = Gradient(dx, slots.sum(0, dtype=float)) if x.of_block else dx
    return result, total, db.sum(0, dtype=float).astype(np.float32)
