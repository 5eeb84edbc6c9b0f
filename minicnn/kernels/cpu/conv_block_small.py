"""A block of few pixels and many weights in training: plain matrix products, shared out by weights.

In an image of 8 x 8 pixels the weights are most of what there is to read, and to take them to
the points and their gradient back costs more than Toom-Cook saves. So, as in `minicnn.ops`, every
window is a row of a matrix, and w is one as it lies there, (K K C, F):

    z = windows . w        dw = windows^T . dz        dwindows = dz . w^T

Forward each thread takes some columns of w, backward some rows, and no weight is read twice. Batch
norm and ReLU are the plain ones: z is small.
"""

import numpy as np

from minicnn import ops
from minicnn.kernels.cpu.feature_maps import Map
from minicnn.kernels.cpu.memory import empty
from minicnn.kernels.cpu.threads import run, shares
from minicnn.ops import Pad, Statistics, pads
from minicnn.ranks import Ranks

PIXELS = 64  # of the whole batch, at most
PARTS = 8  # that the weights are shared out in


class SmallCache(ops.BlockCache):
    """`conv` is (windows, w, pad, shape of the joined input)."""


def fits(sources: list[Map], w: np.ndarray) -> bool:
    """Whether a block of these inputs (N, H, W, .) side by side is faster here."""
    N, H, W, _ = sources[0].shape
    return (
        N * H * W <= PIXELS
        and min(w.shape[2:]) > 32
        and w.shape[:3] == (len(w), len(w), sum(x.shape[3] for x in sources))
        and {w.dtype, *(x.dtype for x in sources)} == {np.dtype(np.float32)}
    )


def conv_bn_relu(
    x: np.ndarray,
    skip: np.ndarray | None,
    w: np.ndarray,
    b: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    statistics: Statistics | None,
    pad: Pad,
    eps: float,
    ranks: Ranks,
) -> tuple[np.ndarray, SmallCache]:
    """As `minicnn.ops.conv_bn_relu`."""
    joined = x if skip is None else np.concatenate((x, skip), 3)
    K, _, C, F = w.shape
    image = ops.unfold(np.pad(joined, ((0, 0), *pads(pad), (0, 0))), K, 1)
    windows, matrix = image.reshape(-1, K * K * C), w.reshape(-1, F)
    z = empty(len(windows), F)
    parts = shares(F, PARTS)

    def some(j: int) -> None:
        columns = slice(parts[j].start, parts[j].stop)
        np.matmul(windows, matrix[:, columns], out=z[:, columns])

    run(len(parts), some)
    z = (z + b).reshape(*image.shape[:3], F)
    normal, norm = ops.batch_norm(z, gamma, beta, statistics, eps, ranks)
    y, positive = ops.relu(normal)
    return y, SmallCache((windows, w, pad, joined.shape), norm, positive, x.shape[3])


def conv_bn_relu_backward(
    dy: np.ndarray, cache: SmallCache, need_dx: bool
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """dy -> dx, dskip, dw, db, dgamma, dbeta; dx and dskip are None without `need_dx`."""
    windows, w, pad, (N, H, W, C) = cache.conv
    K, F = len(w), w.shape[3]
    dz, dgamma, dbeta = ops.batch_norm_backward(ops.relu_backward(dy, cache.positive), cache.norm)
    _, OH, OW, _ = dz.shape
    db = ops.over_pixels(dz) * (not cache.norm.from_batch)
    matrix, dz = w.reshape(-1, F), dz.reshape(-1, F)
    dw, dwindows = empty(*matrix.shape), empty(*windows.shape)
    parts = shares(len(matrix), PARTS)

    def some(j: int) -> None:
        rows = slice(parts[j].start, parts[j].stop)
        np.matmul(windows[:, rows].T, dz, out=dw[rows])
        if need_dx:
            np.matmul(dz, matrix[rows].T, out=dwindows[:, rows])

    run(len(parts), some)
    dw = dw.reshape(w.shape)
    if not need_dx:
        return None, None, dw, db, dgamma, dbeta
    (top, bottom), (left, right) = pads(pad)
    padded = np.zeros((N, H + top + bottom, W + left + right, C), np.float32)
    ops.fold(dwindows.reshape(N, OH, OW, K, K, C), 1, padded)
    dx = padded[:, top : top + H, left : left + W]
    own = cache.channels
    dskip = dx[..., own:] if own < C else None
    return dx[..., :own], dskip, dw, db, dgamma, dbeta
