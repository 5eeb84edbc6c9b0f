"""A 4x4 transposed convolution of stride 2 as plain matrix products: for small images.

Cropped by 1 on each side it doubles an image. The 2x2 window of inputs i - 1, i by j - 1, j makes
the outputs 2i - 1, 2i by 2j - 1, 2j, each through four of the kernel's weights:

    y[2i-1+r, 2j-1+s] = b + sum over t, u = 0, 1 of w[2+r-2t, 2+s-2u] . x[i-1+t, j-1+u]

so the two rows of outputs (r) are sums of four products each (t, u), of the pixels as they lie and
a part of w as it lies, that makes both columns (s). Backward,
x[i, j] has made the 4x4 window of dy from (2i - 1, 2j - 1) on; with those as rows,

    dx = windows . w        dw = windows^T . x        w as a matrix (16 F, C), as it lies there.

Where images are small, weights are large, and Toom-Cook's transforms of them cost more than they
save. Dumoulin & Visin 2016, arXiv:1603.07285, chapter 4.
"""

from dataclasses import dataclass

import numpy as np

from minicnn.kernels.cpu.blocking import LIMIT_BYTES, share, strips
from minicnn.kernels.cpu.feature_maps import Gradient, Map, mask_and_sum, padded, row_of
from minicnn.kernels.cpu.memory import empty
from minicnn.kernels.cpu.threads import run, scratch, shares
from minicnn.kernels.cpu.toom_cook import strided
from minicnn.ops import Pad, pads

LANES, LANE_VALUES = 8, 1 << 20  # parts that sums are made in; fewer if they are large


def fits(x: Map, w: np.ndarray, stride: int, crop: Pad) -> bool:
    """Whether this module has an algorithm for that transposed convolution."""
    return (
        x.dtype == w.dtype == np.float32
        and w.shape[3] == x.shape[3]
        and (len(w), stride, pads(crop)) == (4, 2, ((1, 1), (1, 1)))
    )


def lanes(count: int, weights: int) -> tuple[range, ...]:
    """Strips 0 ... count - 1 in groups, each with its own sum for the weights' gradient."""
    return shares(count, min(LANES, max(2, LANE_VALUES // weights)))


@dataclass(frozen=True)
class DirectCache:
    x: Map
    w: np.ndarray


def conv_transpose2d(x: Map, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, DirectCache]:
    """x (N, H, W, C), w (4, 4, F, C) -> (N, 2 H, 2 W, F)."""
    N, H, W, C = x.shape
    F = len(b)
    y, source = empty(N, 2 * H, 2 * W, F), x.activation()
    taps = w.reshape(2, 2, 2, 2 * F, C)[::-1, :, ::-1]  # (t, r, u, both s and F, C)
    bias, pitch = row_of(b, 2 * W), W + 2
    in_cache = LIMIT_BYTES // (4 * pitch * (C + 4 * F))
    cut = strips(N, H, share(H, min(in_cache, N * H // 2)))

    def strip(j: int) -> None:
        n, first, last = cut.place(j)
        pixels = (last - first) * pitch
        X = padded(source, n, first - 1, last - first + 2, 1, pitch, "x0").reshape(-1, C)
        M, more = scratch("M0", 2, pixels, 2 * F)
        out = y[n, 2 * first : 2 * last].reshape(last - first, 2, 2 * W * F)
        for r in (0, 1):  # the upper outputs are those of the windows one row further down
            for t, u in ((0, 0), (0, 1), (1, 0), (1, 1)):
                start = (1 - r + t) * pitch + u
                seen = X[start : start + pixels]
                np.matmul(seen, taps[t, r, u].T, out=more if t or u else M)
                if t or u:
                    np.add(M, more, out=M)
            rows = M.reshape(last - first, -1)[:, F : F + 2 * W * F]
            np.add(rows, bias, out=out[:, 1 - r])

    run(cut.count, strip)
    return y, DirectCache(x, w)


def conv_transpose2d_backward(
    dy: np.ndarray, cache: DirectCache
) -> tuple[np.ndarray | Gradient, np.ndarray, np.ndarray]:
    """dy (N, 2 H, 2 W, F) -> dx (a `Gradient` if x is lazy), dw, db."""
    x, w = cache.x, cache.w
    N, H, W, C = x.shape
    F = dy.shape[3]
    matrix = w.reshape(16 * F, C)
    in_cache = LIMIT_BYTES // (4 * W * (20 * F + C))
    cut = strips(N, H, share(H, min(in_cache, N * H // 2)))
    groups = lanes(cut.count, w.size)
    dx = empty(N, H, W, C)
    slots, db = np.zeros((cut.count, 2, C), np.float32), np.empty((cut.count, F), np.float32)
    sums, dw = empty(len(groups), *matrix.shape), empty(*w.shape)
    incoming, source = Map(dy), x.activation()

    def strip(j: int, total: np.ndarray, first_of_group: bool) -> None:
        n, first, last = cut.place(j)
        rows = last - first
        dY = padded(incoming, n, 2 * first - 1, 2 * rows + 2, 1, 2 * W + 2, "dz")
        step = dY.shape[1]
        windows = scratch("V0", rows, W, 4, 4 * F)
        np.copyto(windows, strided(dY, 0, windows.shape, (2 * step, 2 * F, step, 1)))
        windows = windows.reshape(rows * W, 16 * F)
        out = dx[n, first:last].reshape(rows, W * C)
        np.matmul(windows, matrix, out=out.reshape(-1, C))
        value = scratch("V1", rows, W * C)
        source.read(n, first, last, value)
        if x.of_block:
            mask_and_sum(out, x, n, first, last, slots[j])
        product = total if first_of_group else scratch("dU", *matrix.shape)
        np.matmul(windows.T, value.reshape(-1, C), out=product)
        if not first_of_group:
            total += product
        ours = dy[n, 2 * first : 2 * last].reshape(2 * rows, -1)
        by_column = np.ones((1, 2 * rows), np.float32) @ ours
        np.add.reduce(by_column.reshape(-1, F), axis=0, out=db[j])

    def group(i: int) -> None:
        for j in groups[i]:
            strip(j, sums[i], j == groups[i].start)

    def rows_of_dw(k: int) -> None:
        np.add.reduce(sums[:, k * F : (k + 1) * F], 0, out=dw.reshape(16, F, C)[k])

    run(len(groups), group)
    run(16, rows_of_dw)
    result = Gradient(dx, slots.sum(0, dtype=float)) if x.of_block else dx
    return result, dw, db.sum(0, dtype=float).astype(np.float32)
