"""A 4x4 transposed convolution of stride 2, without its zeros and without overlaps.

Cropped by 1 on each side it doubles an image, and every output sees a 2x2 window of the input:
rows 2r see rows r - 1 and r through the kernel's rows 3 and 1, rows 2r + 1 see r and r + 1
through 2 and 0; columns alike. So the even and the odd rows are two convolutions with 2 taps
down the columns, Toom-Cook's F(4, 2) (5 products for 8), and along the row each window of two
pixels gives the two pixels 2q - 1 and 2q: a matrix product straight on the image's rows.

Backward, dx is again two such convolutions, of the even and of the odd rows of dy, added up at
the points; along the row, windows of four pixels, two apart.
"""

from dataclasses import dataclass

import numpy as np

from minicnn.kernels.cpu.blocking import LIMIT_BYTES, share, strips
from minicnn.kernels.cpu.feature_maps import Gradient, Map, mask_and_sum, padded, row_of
from minicnn.kernels.cpu.memory import empty
from minicnn.kernels.cpu.threads import run, scratch
from minicnn.kernels.cpu.toom_cook import (
    ONE,
    OUTPUTS,
    combine,
    from_points,
    spread,
    to_points,
    toom,
)
from minicnn.kernels.cpu.toom_cook_rows import Windows, interleaved, windows
from minicnn.kernels.cpu.upsample_small import lanes

SMALL = 32  # pixels a row, up to which the weights are large beside the image
TAPS = 2
P = TAPS + OUTPUTS - 1
SEES = ((3, 1), (2, 0))  # kernel rows by which an even, and an odd, row sees its two rows


def fits(x: Map) -> bool:
    """Whether this is the way for what `upsample_small` can do too: docs/benchmarks/layers.md."""
    return int(x.shape[2]) > SMALL


@dataclass(frozen=True)
class UpCache:
    x: Map
    w: np.ndarray


def conv_transpose2d(x: Map, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, UpCache]:
    """x (N, H, W, C), w (4, 4, F, C) -> (N, 2 H, 2 W, F)."""
    N, H, W, C = x.shape
    F = len(b)
    y, source = empty(N, 2 * H, 2 * W, F), x.activation()
    how = Windows(TAPS, [C], [2 * F], W + 1)
    # Seen by the pair of columns 2q - 1, 2q: (taps, 2 pixels, C, the pair, F).
    pair = np.stack([w[:, list(SEES[1])], w[:, list(SEES[0])]], 2).transpose(0, 1, 4, 2, 3)
    one = np.ones(C, np.float32)
    U = [how.weights(pair[list(rows)].reshape(TAPS, 2, C, 2 * F), one) for rows in SEES]
    bias = row_of(b, 2 * how.pitch)
    cut = strips(N, H, how.strip_rows(N, H))
    high = cut.rows // OUTPUTS

    def strip(j: int) -> None:
        n, first, last = cut.place(j)
        X = padded(source, n, first - 1, cut.rows + 2, 1, how.pitch, "x0")
        step = X.shape[1]
        # (rows, even or odd, 2 W F)
        out = y[n, 2 * first : 2 * last].reshape(-1, 2, 2 * W * F)
        for odd in (0, 1):
            V = scratch("V0", P * high + 1, step)
            V[-1] = 0
            to_points(X, TAPS, high, step, step, V, odd * step)
            (M,) = how.multiply([V], U[odd], high)
            M.reshape(P, high, -1)[ONE] += bias
            from_points(M, TAPS, high, 2 * W * F, how.pitch * 2 * F, out[:, odd], offset=F)

    run(cut.count, strip)
    return y, UpCache(x, w)


def conv_transpose2d_backward(
    dy: np.ndarray, cache: UpCache
) -> tuple[np.ndarray | Gradient, np.ndarray, np.ndarray]:
    """dy (N, 2 H, 2 W, F) -> dx (a `Gradient` if x is lazy), dw, db."""
    x, w = cache.x, cache.w
    N, H, W, C = x.shape
    F = dy.shape[3]
    pitch = -(-(2 * W + 2) // 4) * 4  # of dy's rows
    # dx's row i sees the odd rows i - 1, i and the even rows i, i + 1: in dy, from 2i - 1 on.
    taps = [w[[0, 2]], w[[1, 3]]]
    U = [combine(toom(TAPS).filters, t).reshape(P, 1, 1, 4 * F, C) for t in taps]
    high = share(-(-H // OUTPUTS), LIMIT_BYTES // (4 * P * pitch * (2 * F + C)))
    cut, pixels = strips(N, H, OUTPUTS * high), high * pitch
    groups = lanes(cut.count, w.size)
    dx = empty(N, H, W, C)
    slots, db = np.zeros((cut.count, 2, C), np.float32), np.zeros((cut.count, F), np.float32)
    sums = empty(len(groups), 2, P, 4 * F, C)
    incoming, source = Map(dy), x.activation()

    def strip(j: int, total: np.ndarray, first_of_group: bool) -> None:
        n, first, last = cut.place(j)
        dY = padded(incoming, n, 2 * first - 1, 2 * cut.rows + 2, 1, pitch, "dz")
        step = dY.shape[1]
        V = scratch("V0", 2, P * high + 1, step)
        V[:, -1] = 0
        for odd in (0, 1):
            to_points(dY, TAPS, high, step, 2 * step, V[odd], odd * step)
        seen = [windows(v, P, 1, pixels, F, 4, 2) for v in V]
        M = scratch("M0", 2, P * high, pitch // 2 * C)
        for v, u, m in zip(seen, U, M, strict=True):
            np.matmul(v, u, out=interleaved(m, P, 1, pixels // 2, C, 2))
        out = dx[n, first:last].reshape(-1, W * C)
        from_points(M, TAPS, high, W * C, pitch // 2 * C, out, sets=2)
        X = padded(source, n, first, cut.rows, 0, pitch // 2, "x0")
        if x.of_block:
            mask_and_sum(out, x, n, first, last, slots[j])
        step = X.shape[1]
        dM = scratch("dM", P * high, step)
        spread(X, TAPS, high, step, step, dM)
        product = scratch("dU", P, 1, 2, 4 * F, C)
        for v, part in zip(seen, total, strict=True):
            np.matmul(v.swapaxes(3, 4), interleaved(dM, P, 1, pixels // 2, C, 2), out=product)
            if first_of_group:
                np.add.reduce(product, (1, 2), out=part)
            else:
                part += np.add.reduce(product, (1, 2), out=scratch("dU sum", *part.shape))
        ours = dy[n, 2 * first : 2 * last].reshape(2 * (last - first), -1)
        by_column = np.ones((1, len(ours)), np.float32) @ ours
        np.add.reduce(by_column.reshape(-1, F), axis=0, out=db[j])

    def group(i: int) -> None:
        for j in groups[i]:
            strip(j, sums[i], j == groups[i].start)

    run(len(groups), group)
    dU = sums.sum(0).reshape(2, P, 4, F, C)
    dw = np.empty_like(w)
    dw[[0, 2]], dw[[1, 3]] = (combine(toom(TAPS).filters.T, part) for part in dU)
    result = Gradient(dx, slots.sum(0, dtype=float)) if x.of_block else dx
    return result, dw, db.sum(0, dtype=float).astype(np.float32)
