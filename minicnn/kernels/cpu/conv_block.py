"""Convolution, batch norm and ReLU in one pass over the image, strip by strip that fits in cache.

Forward, a strip of rows is read, convolved and written, and its mean and variance taken, before
it leaves the cache. Backward, one reading of a strip serves the gradients of the input and of the
weights. Batch norm's own gradient, with n pixels a channel and dy masked by the ReLU,

    dz = gamma / std * (dy - sum(dy) / n - (z - mean) / var * sum(dy (z - mean)) / n),

is made while reading: its factor gamma / std goes into the weights, the rest is dy + b z + c.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicnn.kernels.cpu.blocking import strips
from minicnn.kernels.cpu.feature_maps import (
    BORDER,
    Gradient,
    Map,
    Normed,
    Source,
    as_gradient,
    channel_sums,
    mask_and_sum,
    padded,
    row_of,
)
from minicnn.kernels.cpu.memory import empty
from minicnn.kernels.cpu.threads import run, scratch, shares
from minicnn.kernels.cpu.toom_cook import ONE, OUTPUTS, from_points, spread, to_points
from minicnn.kernels.cpu.toom_cook_2d import Tiles
from minicnn.kernels.cpu.toom_cook_rows import Windows
from minicnn.ops import EPS, BlockWeights, Pad, Statistics, pads, whole_batch
from minicnn.ranks import mean_of_parts

Method = Any  # Windows or Tiles
PointWeights = Any  # weights at the points, in the form that the method wants

FLAT = 1e-12  # a gamma that makes of all pixels one
LANES = 8  # sums over the image are made in this many parts, whatever the number of threads
LANE_WEIGHTS = 1 << 19  # with fewer, to share a sum over the weights costs more than to make it


def method(K: int, inputs: list[int], F: int, W: int, backward: bool = False) -> Windows | Tiles:
    """The rule: few channels, windows along the row; many, tiles. See docs/performance.md."""
    few = min(sum(inputs), F) <= (16 if backward else 32)
    return (Windows if few else Tiles)(K, inputs, [F], W)


def fits(sources: list[Map], weights: BlockWeights, pad: Pad) -> bool:
    """Whether this module has an algorithm for that convolution, and may divide by gamma."""
    w, gamma = weights.w, weights.gamma
    K, (rows, columns) = len(w), pads(pad)
    return (
        {w.dtype, *(x.dtype for x in sources)} == {np.dtype(np.float32)}
        and len({x.shape[:3] for x in sources}) == 1
        and w.shape[:3] == (K, K, sum(x.shape[3] for x in sources))
        and K in (2, 3, 4)
        and sum(rows) == sum(columns) == K - 1
        and min(*rows, *columns) >= 0
        and not (np.abs(gamma) <= FLAT).any()
    )


@dataclass(frozen=True)
class BlockCache:
    sources: list[Map]
    w: np.ndarray
    top: int
    left: int
    y: Map
    gamma: np.ndarray
    mean: np.ndarray  # of z
    inverse_std: np.ndarray
    from_batch: bool
    statistics: Statistics


def conv_bn_relu(
    sources: list[Map],
    weights: BlockWeights,
    statistics: Statistics | None,
    pad: Pad,
) -> tuple[Map, BlockCache]:
    """As `minicnn.ops.conv_bn_relu`. What is constant in a channel is left out of z: the mean
    takes it out anyway. Where gamma < 0, z has the other sign, so that all maps' scales are > 0.
    """
    w, b, gamma, beta = weights
    (top, _), (left, _) = pads(pad)
    N, H, W, _ = sources[0].shape
    sign = np.sign(gamma)
    if (sign < 0).any():
        w = w * sign
    constant = sign * b + _uniform(_joined(sources, "shift"), w)
    z = empty(N, H, W, len(b))
    how = _method(sources, w)
    U: PointWeights = w, _joined(sources, "scale")
    if not how.small:
        U = how.weights(*U)
    sums = _convolve(how, U, None, sources, top, left, z, _sums(len(b)))
    from_batch = statistics is None
    if statistics is None:
        mean, square = np.sum(sums, 0, dtype=float) / (N * H * W)
        mean, var = whole_batch(Statistics(mean, np.maximum(square - mean * mean, 0)))
        means = (mean + constant) * sign
        statistics = Statistics(means.astype(np.float32), var.astype(np.float32))
    else:
        mean, var = statistics.mean * sign - constant, statistics.var
    inverse_std = 1 / np.sqrt(var + EPS)
    scale = np.abs(gamma) * inverse_std
    y = Map(z, scale.astype(np.float32), (beta - mean * scale).astype(np.float32))
    norm = (gamma, mean, inverse_std, from_batch, statistics)
    return y, BlockCache(sources, w, top, left, y, *norm)


def _uniform(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """What a convolution makes of an endless image, all pixels of which are x (C,)."""
    pixels, matrix = row_of(x, len(w) ** 2), w.reshape(-1, w.shape[3])
    parts = shares(len(pixels), max(1, w.size // LANE_WEIGHTS))
    sums = np.empty((len(parts), w.shape[3]), np.float32)

    def some(j: int) -> None:
        part = slice(parts[j].start, parts[j].stop)
        np.matmul(pixels[part], matrix[part], out=sums[j])

    if x.any():
        run(len(parts), some)
    return sums.sum(0) if x.any() else np.zeros_like(sums[0])


def _joined(sources: list[Map], what: str) -> np.ndarray:
    """The sources' `scale` or `shift`, side by side: of an activation itself 1 and 0."""
    plain = {"scale": 1, "shift": 0}[what]
    rows = [getattr(x, what) for x in sources]
    return np.concatenate(
        [
            np.full(x.shape[3], plain, np.float32) if row is None else row
            for x, row in zip(sources, rows, strict=True)
        ]
    )


def conv_bn_relu_predict(
    sources: list[Map],
    weights: BlockWeights,
    statistics: Statistics,
    pad: Pad,
    kept: dict[str, "Folded"],
) -> Map:
    """The block in inference: batch norm is folded into the weights.

    relu(gamma (conv(x; w) + b - mean) / std + beta) = relu(conv(x; w scale) + shift).
    """
    w, b, gamma, beta = weights
    (top, _), (left, _) = pads(pad)
    sources = [Map(x.value()) if x.scaled else x for x in sources]
    how = _method(sources, w)
    folded = kept.get("folded")
    if folded is None or not folded.holds_for(*weights, *statistics):
        folded = kept["folded"] = Folded(*weights, *statistics)
    if type(how) not in folded.ways:
        scale = (gamma / np.sqrt(statistics.var + EPS)).astype(np.float32)
        shift = (beta + (b - statistics.mean) * scale).astype(np.float32)
        folded.ways[type(how)] = how.weights(w * scale, np.ones(w.shape[2], np.float32)), shift
    U, shift = folded.ways[type(how)]
    y = empty(*sources[0].shape[:3], len(b))
    _convolve(how, U, shift, sources, top, left, y)
    return Map(y, rectified=True)


class Folded:
    """A block's weights as inference wants them, and the arrays they were made from.

    An array does not tell when somebody writes to it. So every array that may be written to is
    copied, and compared bit by bit before the folded weights are used again: a fifth of the time
    that making them takes.
    """

    def __init__(self, *arrays: np.ndarray) -> None:
        self.arrays = [a.copy() if a.flags.writeable else a for a in arrays]
        self.ways: dict[type, tuple[PointWeights, np.ndarray]] = {}

    def holds_for(self, *arrays: np.ndarray) -> bool:
        """Whether `arrays` are what they were."""
        return all(_unchanged(a, b) for a, b in zip(arrays, self.arrays, strict=True))


def _unchanged(now: np.ndarray, then: np.ndarray) -> bool:
    if now is then:
        return not now.flags.writeable
    same = now.shape == then.shape and now.dtype == then.dtype
    return same and bool((now.view(np.int32) == then.view(np.int32)).all())


def _sums(F: int) -> Callable[[np.ndarray], np.ndarray]:
    """Sums of z and z * z by channel, (2, F), of rows (rows, W * F)."""

    def sums(rows: np.ndarray) -> np.ndarray:
        result = np.empty((2, F), np.float32)
        channel_sums(rows, rows, result)
        return result

    return sums


def _method(sources: list[Map], w: np.ndarray, backward: bool = False) -> Method:
    inputs = [x.shape[3] for x in sources]
    return method(len(w), inputs, w.shape[3], sources[0].shape[2], backward)


def _convolve(
    how: Method,
    U: PointWeights,
    shift: np.ndarray | None,
    sources: list[Map],
    top: int,
    left: int,
    z: np.ndarray,
    finish: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[np.ndarray]:
    """z = convolution of the sources, plus `shift`; what `finish` makes of each strip of it.

    U: the weights at the points; or, for a small image, (w, scale of its inputs).
    """
    N, H, W, F = z.shape
    K, cut = how.K, strips(N, H, how.strip_rows(N, H))
    high = cut.rows // OUTPUTS
    results = [np.empty(0)] * cut.count
    shifts = None if shift is None else row_of(shift, how.out_pitch)

    def points(j: int) -> list[np.ndarray]:
        n, first, _ = cut.place(j)
        return _points(how, sources, n, first - top, high, left)

    def back(j: int, M: np.ndarray) -> None:
        n, first, last = cut.place(j)
        out = z[n, first:last].reshape(-1, W * F)
        if shifts is not None:
            M.reshape(-1, high, how.out_pitch * F)[ONE] += shifts
        from_points(M, K, high, W * F, how.out_pitch * F, out, how.sets)
        if finish is not None:
            results[j] = finish(out)

    if how.small:
        tiles = high * how.row_tiles
        V = empty(how.P**2, cut.count * tiles, how.C)
        M = empty(how.P**2, cut.count * tiles, F)
        run(cut.count, lambda j: how.tiled(points(j), high, V, j * tiles))
        how.products(V, U, M)
        run(cut.count, lambda j: back(j, how.untiled(M, high, j * tiles)[0]))
    else:
        run(cut.count, lambda j: back(j, how.multiply(points(j), U, high)[0]))
    return results


def _points(
    how: Method, sources: list[Map], n: int, first: int, strips: int, left: int
) -> list[np.ndarray]:
    """Rows of the sources from `first` on, at the points of the columns."""
    read = [_read(how, x, n, first, strips, left, f"x{i}") for i, x in enumerate(sources)]
    return [_columns(how, x, strips, f"V{i}") for i, x in enumerate(read)]


def _read(how: Method, x: Map, n: int, first: int, strips: int, left: int, name: str) -> np.ndarray:
    count = OUTPUTS * strips + how.K - 1
    return padded(x, n, first, count, left, how.pitch, name)


def _columns(how: Method, rows: np.ndarray, strips: int, name: str) -> np.ndarray:
    step = rows.shape[1]
    V = scratch(name, how.P * strips + 1, step)  # one row more, which windows may reach into
    V[-1, : BORDER * step // how.pitch] = 0
    to_points(rows, how.K, strips, step, step, V)
    return V


def conv_bn_relu_backward(
    dy: np.ndarray | Gradient, cache: BlockCache, need_dx: bool
) -> tuple[list[np.ndarray | Gradient], BlockWeights]:
    """dy -> gradients of the sources, and of the weights.

    The first source's gradient is a `Gradient` if that is lazy. The second's is an array: a skip
    is read elsewhere as well, and its gradient is finished there.
    """
    y, mean, inverse_std = cache.y, cache.mean, cache.inverse_std
    gradient = as_gradient(dy, y)
    N, H, W, F = y.shape
    dbeta = gradient.sums[0]
    dgamma = inverse_std * (gradient.sums[1] - mean * dbeta)
    sign = np.sign(cache.gamma)
    scale = (np.abs(cache.gamma) * inverse_std).astype(np.float32)
    if cache.from_batch:
        whole_dbeta, whole_dgamma = mean_of_parts(np.stack((dbeta, dgamma)))
        slope = -inverse_std * whole_dgamma / (N * H * W)
        offset = -whole_dbeta / (N * H * W) - slope * mean
        source: Source = Normed(gradient.dy, y, slope, offset)
        total = np.zeros(F, np.float32)
    else:
        source = Map(gradient.dy)
        total = scale * dbeta.astype(np.float32)
    dx, dw = _convolve_backward(source, cache, scale, need_dx)
    # What the sources left out, their shifts, the gradient of all pixels together has met.
    if not cache.from_batch:
        dw += np.outer(_joined(cache.sources, "shift"), total)
    if (sign < 0).any():
        dw *= sign
    dgamma, dbeta = (dgamma * sign).astype(np.float32), dbeta.astype(np.float32)
    return dx, BlockWeights(dw, total * sign, dgamma, dbeta)


def _convolve_backward(
    source: Source, cache: BlockCache, scale: np.ndarray, need_dx: bool
) -> tuple[list[np.ndarray | Gradient], np.ndarray]:
    """Gradients of the sources and of w, from the convolution's own, `source` times `scale`."""
    work = _Backward(source, cache, scale, need_dx)
    factors = np.outer(_joined(cache.sources, "scale"), scale)
    backward = _backward_by_points if work.how.small else _backward_by_strips
    dw = backward(work, factors)
    dx: list[np.ndarray | Gradient] = [*work.dx]
    if work.masks:
        dx[0] = Gradient(work.dx[0], work.slots.sum(0, dtype=float))
    return dx, dw


class _Backward:
    """The steps of a backward pass on strip j, which both orders below are made of."""

    def __init__(self, source: Source, cache: BlockCache, scale: np.ndarray, need_dx: bool) -> None:
        self.source, self.shape, self.sources = source, cache.y.shape, cache.sources
        self.top, self.left = cache.top, cache.left
        N, H, _, self.F = self.shape
        self.K, self.channels = len(cache.w), [x.shape[3] for x in self.sources]
        self.how = _method(self.sources, cache.w, backward=True)
        self.cut = strips(N, H, self.how.strip_rows(N, H))
        self.strips = self.cut.rows // OUTPUTS
        # A kernel turned around is padded the other way.
        self.below, self.right = self.K - 1 - self.top, self.K - 1 - self.left
        self.need_dx, self.masks = need_dx, need_dx and self.sources[0].of_block
        self.dx = [empty(*x.shape) for x in self.sources] if need_dx else []
        self.slots = np.zeros((self.cut.count, 2, self.channels[0]), np.float32)
        self.scale = scale
        self.back, self.w = self.how.adjoint(cache.w)

    def dz(self, j: int) -> np.ndarray:
        """The gradient of the convolution, with the rows above and below that dx needs."""
        n, first, _ = self.cut.place(j)
        count, pitch = self.cut.rows + self.K - 1, self.how.pitch
        return padded(self.source, n, first - self.below, count, self.right, pitch, "dz")

    def dz_points(self, dz: np.ndarray) -> np.ndarray:
        """It at the points, as an input of the convolution that makes dx."""
        return _columns(self.back, dz, self.strips, "V0")

    def dz_spread(self, dz: np.ndarray) -> np.ndarray:
        """Its own rows at the points, as the gradient of the outputs there."""
        step = dz.shape[1]
        dM = scratch("dM", self.how.P * self.strips, step)
        spread(dz, self.K, self.strips, step, step, dM, self.below * step + self.right * self.F)
        return dM

    def write_dx(self, j: int, Ms: list[np.ndarray]) -> None:
        """From the points to the sources' gradients."""
        n, first, last = self.cut.place(j)
        W, back = self.shape[2], self.back
        for dx, M, C in zip(self.dx, Ms, self.channels, strict=True):
            out = dx[n, first:last].reshape(-1, W * C)
            from_points(M, self.K, self.strips, W * C, back.out_pitch * C, out, back.sets)

    def input_points(self, j: int) -> list[np.ndarray]:
        """The sources at the points; while the first is at hand, its gradient is masked."""
        n, first, last = self.cut.place(j)
        if self.masks:
            dx = self.dx[0][n, first:last].reshape(last - first, -1)
            mask_and_sum(dx, self.sources[0], n, first, last, self.slots[j])
        return _points(self.how, self.sources, n, first - self.top, self.strips, self.left)


def _backward_by_strips(work: _Backward, factors: np.ndarray) -> np.ndarray:
    """Strip after strip, all steps while it is in cache; each lane sums its strips in order."""
    how, strips = work.how, work.strips
    lanes = shares(work.cut.count, LANES)
    sums = how.sums(len(lanes))
    U = work.back.weights(work.w, work.scale) if work.need_dx else None

    def lane(i: int) -> None:
        for j in lanes[i]:
            dz = work.dz(j)
            if work.need_dx:
                work.write_dx(j, work.back.multiply([work.dz_points(dz)], U, strips))
            first = j == lanes[i].start
            how.correlate(work.input_points(j), work.dz_spread(dz), strips, sums[i], first)

    run(len(lanes), lane)
    dw: np.ndarray = how.dw(sums, factors)
    return dw


def _backward_by_points(work: _Backward, factors: np.ndarray) -> np.ndarray:
    """All strips to the points, the products there, and back: weights are transformed once."""
    how, strips = work.how, work.strips
    tiles = strips * how.row_tiles
    V, dM = (empty(how.P**2, work.cut.count * tiles, c) for c in (how.C, how.F))
    if work.need_dx:
        Vz, M = (empty(how.P**2, work.cut.count * tiles, c) for c in (how.F, how.C))

    def transform(j: int) -> None:
        dz = work.dz(j)
        how.spread(work.dz_spread(dz), strips, dM, j * tiles)
        if work.need_dx:
            work.back.tiled([work.dz_points(dz)], strips, Vz, j * tiles)

    def finish(j: int) -> None:
        if work.need_dx:
            work.write_dx(j, work.back.untiled(M, strips, j * tiles))
        how.tiled(work.input_points(j), strips, V, j * tiles)

    run(work.cut.count, transform)
    if work.need_dx:
        work.back.products(Vz, (work.w, work.scale), M)
    run(work.cut.count, finish)
    dw: np.ndarray = how.gradient(V, dM, factors)
    return dw
