"""Convolution, batch norm and ReLU in one pass over the image, strip by strip that fits in cache.

Forward, a strip of rows is read, convolved and written, and its mean and variance taken, before
it leaves the cache. Backward, one reading of a strip serves the gradients of the input and of the
weights. Batch norm's own gradient, with n pixels a channel and dy masked by the ReLU,

    dz = gamma / std * (dy - sum(dy) / n - (z - mean) / var * sum(dy (z - mean)) / n),

is made while reading: its factor gamma / std goes into the weights, the rest is dy + b z + c.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minicnn.kernels.cpu_maps import (
    Gradient,
    Map,
    as_gradient,
    channel_sums,
    mask_and_sum,
    padded,
)
from minicnn.kernels.cpu_tiles import Tiles
from minicnn.kernels.cpu_toom import OUTPUTS, from_points, spread, to_points
from minicnn.kernels.cpu_windows import Windows
from minicnn.memory import empty
from minicnn.ops import Pad, Statistics, pads
from minicnn.threads import run, scratch

LANES = 8  # sums over the image are made in this many parts, whatever the number of threads


def method(K: int, inputs: list[int], F: int, W: int) -> Windows | Tiles:
    """The rule: few channels, windows along the row; many, tiles. docs/benchmarks/layers.md."""
    few = min(sum(inputs), F) <= 16
    return (Windows if few else Tiles)(K, inputs, [F], W)


def fits(sources: list[Map], w: np.ndarray, pad: Pad) -> bool:
    """Whether this module has an algorithm for that convolution."""
    K, (rows, columns) = len(w), pads(pad)
    _, H, W, _ = sources[0].shape
    return (
        {w.dtype, *(x.dtype for x in sources)} == {np.dtype(np.float32)}
        and w.shape[:3] == (K, K, sum(x.shape[3] for x in sources))
        and K in (2, 3, 4)
        and sum(rows) == sum(columns) == K - 1
        and min(*rows, *columns) >= 0
        and H % OUTPUTS == W % OUTPUTS == 0
    )


@dataclass(frozen=True)
class BlockCache:
    sources: list[Map]
    w: np.ndarray
    top: int
    left: int
    y: Map
    gamma: np.ndarray
    mean: np.ndarray  # of z, which is without the bias
    inverse_std: np.ndarray
    from_batch: bool
    statistics: Statistics


def conv_bn_relu(
    sources: list[Map],
    w: np.ndarray,
    b: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    statistics: Statistics | None,
    pad: Pad,
    eps: float,
) -> tuple[Map, BlockCache]:
    """As `minicnn.ops.conv_bn_relu`; the bias is left out of z, where the mean takes it out."""
    (top, _), (left, _) = pads(pad)
    N, H, W, _ = sources[0].shape
    F = len(b)
    z = empty(N, H, W, F)
    slots = _convolve(sources, w, top, left, z)
    from_batch = statistics is None
    if statistics is None:
        mean, square = slots.sum(0, dtype=float) / (N * H * W)
        var = np.maximum(square - mean * mean, 0)
        statistics = Statistics((mean + b).astype(np.float32), var.astype(np.float32))
    else:
        mean, var = statistics.mean - b, statistics.var
    inverse_std = 1 / np.sqrt(var + eps)
    scale = gamma * inverse_std
    y = Map(z, scale.astype(np.float32), (beta - mean * scale).astype(np.float32))
    return y, BlockCache(sources, w, top, left, y, gamma, mean, inverse_std, from_batch, statistics)


def _convolve(sources: list[Map], w: np.ndarray, top: int, left: int, z: np.ndarray) -> np.ndarray:
    """z = convolution of the sources; returns sums of z and z * z by strip, (strips, 2, F)."""
    N, H, W, F = z.shape
    K = len(w)
    how: Any = method(K, [x.shape[3] for x in sources], F, W)
    U = how.weights(w)
    strips = how.strips(H)
    rows = OUTPUTS * strips
    count = H // rows
    slots = np.empty((N * count, 2, F), np.float32)

    def points(j: int) -> list[np.ndarray]:
        n, first = divmod(j * rows, H)
        return _points(how, sources, n, first - top, strips, left)

    def finish(j: int, M: np.ndarray) -> None:
        n, first = divmod(j * rows, H)
        out = z[n, first : first + rows].reshape(rows, W * F)
        target = out.reshape(strips, OUTPUTS, W * F)
        from_points(M, K, strips, W * F, how.out_pitch * F, target, how.sets)
        channel_sums(out, out, slots[j])

    if how.small:
        tiles = strips * how.row_tiles
        V = empty(how.P**2, N * count * tiles, how.C)
        M = empty(how.P**2, N * count * tiles, F)
        run(N * count, lambda j: how.tiled(points(j), strips, V, j * tiles))
        _products(V, U, M)
        run(N * count, lambda j: finish(j, how.untiled(M, strips, j * tiles)[0]))
    else:
        run(N * count, lambda j: finish(j, how.multiply(points(j), U, strips)[0]))
    return slots


def _points(
    how: Any, sources: list[Map], n: int, first: int, strips: int, left: int
) -> list[np.ndarray]:
    """Rows of the sources from `first` on, at the points of the columns."""
    read = [_read(how, x, n, first, strips, left, f"x{i}") for i, x in enumerate(sources)]
    return [_columns(how, x, strips, f"V{i}") for i, x in enumerate(read)]


def _read(how: Any, x: Map, n: int, first: int, strips: int, left: int, name: str) -> np.ndarray:
    count = OUTPUTS * strips + how.K - 1
    return padded(x.read, x.shape, n, first, count, left, how.pitch, name)


def _columns(how: Any, rows: np.ndarray, strips: int, name: str) -> np.ndarray:
    step = rows.shape[1]
    V = scratch(name, how.P * strips + 1, step)  # one row more, which windows may reach into
    V[-1] = 0
    to_points(rows, how.K, strips, step, step, V)
    return V


def _products(A: np.ndarray, B: np.ndarray, out: np.ndarray) -> None:
    """out[p] = A[p] @ B[p], points shared out among the threads."""
    parts = np.array_split(np.arange(len(A)), LANES)

    def some(j: int) -> None:
        points = slice(parts[j][0], parts[j][-1] + 1)
        np.matmul(A[points], B[points], out=out[points])

    run(LANES, some)


def conv_bn_relu_backward(
    dy: np.ndarray | Gradient, cache: BlockCache, need_dx: bool
) -> tuple[list[Any], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """dy -> gradients of the sources, dw, db, dgamma, dbeta.

    The first source's gradient is a `Gradient` if that is lazy. The second's is an array: a skip
    is read elsewhere as well, and its gradient is finished there.
    """
    y, mean, inverse_std = cache.y, cache.mean, cache.inverse_std
    gradient = as_gradient(dy, y)
    N, H, W, F = y.shape
    dbeta = gradient.sums[0]
    dgamma = inverse_std * (gradient.sums[1] - mean * dbeta)
    scale = cache.gamma * inverse_std
    if cache.from_batch:
        slope = -inverse_std * dgamma / (N * H * W)
        offset = -dbeta / (N * H * W) - slope * mean
        read = _normed(gradient.dy, y, slope, offset)
        db = np.zeros(F, np.float32)
    else:
        read = Map(gradient.dy).read
        db = (scale * dbeta).astype(np.float32)
    scale = scale.astype(np.float32)
    dx, dw = _convolve_backward(read, cache, scale, need_dx)
    dw *= scale
    return dx, dw, db, dgamma.astype(np.float32), dbeta.astype(np.float32)


def _normed(dy: np.ndarray, y: Map, slope: np.ndarray, offset: np.ndarray) -> Any:
    """A reader of dy + slope * z + offset."""
    W = y.shape[2]
    slopes = np.tile(slope.astype(np.float32), W)
    offsets = np.tile(offset.astype(np.float32), W)

    def read(n: int, first: int, last: int, out: np.ndarray) -> None:
        np.multiply(y.band(n, first, last), slopes, out=out)
        out += offsets
        out += dy[n, first:last].reshape(last - first, -1)

    return read


def _convolve_backward(
    read: Any, cache: BlockCache, scale: np.ndarray, need_dx: bool
) -> tuple[list[Any], np.ndarray]:
    """Gradients of the sources and of w, from a reader of the convolution's own (over `scale`)."""
    sources, w, top, left = cache.sources, cache.w, cache.top, cache.left
    N, H, W, F = cache.y.shape
    K, channels = len(w), [x.shape[3] for x in sources]
    how: Any = method(K, channels, F, W)
    strips = how.strips(H)
    rows = OUTPUTS * strips
    count = N * (H // rows)
    below, right = K - 1 - top, K - 1 - left  # a kernel turned around is padded the other way
    first_lazy = sources[0].lazy and need_dx
    slots = np.zeros((count, 2, channels[0]), np.float32)
    dx: list[Any] = [empty(*x.shape) for x in sources] if need_dx else []
    back: Any = None
    if need_dx:
        back, Ub = how.adjoint(w, scale)

    def dz(j: int) -> np.ndarray:
        n, first = divmod(j * rows, H)
        return padded(read, cache.y.shape, n, first - below, rows + K - 1, right, how.pitch, "dz")

    def finish_dx(j: int, Ms: list[np.ndarray]) -> None:
        n, first = divmod(j * rows, H)
        for d, M, C in zip(dx, Ms, channels, strict=True):
            out = d[n, first : first + rows].reshape(strips, OUTPUTS, W * C)
            from_points(M, K, strips, W * C, back.out_pitch * C, out, back.sets)

    def input_points(j: int) -> list[np.ndarray]:
        n, first = divmod(j * rows, H)
        read = [_read(how, x, n, first - top, strips, left, f"x{i}") for i, x in enumerate(sources)]
        if first_lazy:
            C = channels[0]
            value = read[0][top : top + rows, left * C : (left + W) * C]
            grad = dx[0][n, first : first + rows].reshape(rows, W * C)
            mask_and_sum(grad, value, sources[0].band(n, first, first + rows), slots[j])
        return [_columns(how, x, strips, f"V{i}") for i, x in enumerate(read)]

    def spread_dz(Z: np.ndarray) -> np.ndarray:
        step = Z.shape[1]
        dM = scratch("dM", how.P * strips, step)
        spread(Z, K, strips, step, step, dM, below * step + right * F)
        return dM

    if how.small:
        tiles = strips * how.row_tiles
        V, dM = (empty(how.P**2, count * tiles, c) for c in (how.C, F))
        if need_dx:
            Vz, M = empty(how.P**2, count * tiles, F), empty(how.P**2, count * tiles, how.C)

        def transform(j: int) -> None:
            Z = dz(j)
            how.spread(spread_dz(Z), strips, dM, j * tiles)
            if need_dx:
                back.tiled([_columns(back, Z, strips, "V0")], strips, Vz, j * tiles)

        def finish(j: int) -> None:
            if need_dx:
                finish_dx(j, back.untiled(M, strips, j * tiles))
            how.tiled(input_points(j), strips, V, j * tiles)

        run(count, transform)
        if need_dx:
            _products(Vz, Ub, M)
        run(count, finish)
        sums = empty(1, how.P**2, how.C, F)
        _products(V.transpose(0, 2, 1), dM, sums[0])
    else:
        lanes = np.array_split(np.arange(count), min(LANES, count))
        sums = how.sums(len(lanes))

        def lane(i: int) -> None:
            for j in lanes[i]:
                Z = dz(j)
                if need_dx:
                    finish_dx(j, back.multiply([_columns(back, Z, strips, "V0")], Ub, strips))
                V = input_points(j)
                how.correlate(V, spread_dz(Z), strips, sums[i])

        run(len(lanes), lane)
    dw = how.dw(sums)
    if first_lazy:
        dx[0] = Gradient(dx[0], slots.sum(0, dtype=float))
    return dx, dw
