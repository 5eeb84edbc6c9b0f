"""Every primitive as a pair, `f -> (y, cache)` and `f_backward(dy, cache) -> gradients`.

This is the reading to learn from: pure functions on NumPy or CuPy arrays, made of windows
(`unfold`), their adjoint (`fold`) and matrix products. `minicnn.naive` says the same in plain
loops; `minicnn.kernels` holds the fast readings, under the same names.

Arrays are NHWC: N images of H rows, W columns and C channels. A convolution's weights are
(K, K, C, F): F filters of K x K x C.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from minicnn.backend import Array, array_module, check_float
from minicnn.ranks import mean_of_parts, parts

Pad = int | tuple[tuple[int, int], tuple[int, int]]

EPS = 1e-5  # added to a variance that may be 0
BAND_BYTES = 1 << 22  # windows unfolded at a time: about what stays in a core's cache


# ---------------------------------------------------------------------------- shapes


def pads(pad: Pad) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, bottom), (left, right)) of a padding given so or as one number for all four."""
    return ((pad, pad), (pad, pad)) if isinstance(pad, int) else pad


def same_pad(kernel: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding that keeps H and W at stride 1. An even kernel needs one more after than before."""
    before = (kernel - 1) // 2
    side = (before, kernel - 1 - before)
    return side, side


def conv_size(size: int, kernel: int, stride: int, before: int, after: int) -> int:
    """Windows along one axis: floor((size + before + after - kernel) / stride) + 1."""
    count = (size + before + after - kernel) // stride + 1
    if count < 1:
        raise ValueError(f"a kernel of {kernel} does not fit in {size} + {before} + {after} pixels")
    return count


def transpose_size(size: int, kernel: int, stride: int, before: int, after: int) -> int:
    """What a transposed convolution makes of an axis: (size - 1) * stride + kernel - the crop."""
    count = (size - 1) * stride + kernel - before - after
    if count < 1:
        raise ValueError(f"cropping {before} + {after} pixels leaves nothing of {size}")
    return count


# ---------------------------------------------------------------------------- windows


def unfold(x: Array, kernel: int, stride: int) -> Array:
    """All windows of `x` (N, H, W, C) as a view: (N, OH, OW, K, K, C)."""
    xp = array_module(x)
    windows = xp.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(1, 2))
    return windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)


def fold(columns: Array, stride: int, out: Array) -> None:
    """The adjoint of `unfold`: add every window (N, OH, OW, K, K, C) to its place in `out`."""
    _, OH, OW, K, _, _ = columns.shape
    for i in range(K):
        for j in range(K):
            out[:, i : i + stride * OH : stride, j : j + stride * OW : stride] += columns[
                :, :, :, i, j
            ]


def _padded(x: Array, pad: Pad) -> Array:
    (top, bottom), (left, right) = pads(pad)
    return array_module(x).pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))


def _bands(OH: int, row_values: int, itemsize: int) -> Iterator[tuple[int, int]]:
    """Bands [start, stop) of output rows whose unfolded windows take about BAND_BYTES."""
    rows = max(1, BAND_BYTES // max(1, row_values * itemsize))
    for start in range(0, OH, rows):
        yield start, min(start + rows, OH)


def _columns(x: Array, K: int, stride: int, OW: int) -> Iterator[tuple[int, int, int, Array]]:
    """Unfold padded `x` band by band: image, first and last output row, (rows * OW, K * K * C)."""
    N, H, _, C = x.shape
    OH = (H - K) // stride + 1
    for n in range(N):
        for top, bottom in _bands(OH, OW * K * K * C, x.itemsize):
            band = x[n : n + 1, top * stride : (bottom - 1) * stride + K]
            yield n, top, bottom, unfold(band, K, stride).reshape(-1, K * K * C)


# ---------------------------------------------------------------------------- convolution


def conv2d(x: Array, w: Array, b: Array, stride: int = 1, pad: Pad = 0) -> tuple[Array, Any]:
    """Slide F filters over the image: y[n,i,j,f] = sum x[n, i*s+k, j*s+l, c] w[k,l,c,f] + b[f].

    x (N, H, W, C), w (K, K, C, F), b (F,) -> y (N, OH, OW, F), OH = (H + pads - K) // stride + 1.
    Each window is a row of a matrix, each filter a column: the convolution is their product.
    This is the correlation of signal processing (the kernel is not rotated), as in every network.
    """
    check_float(x, w, b)
    K, _, C, F = w.shape
    if x.shape[3] != C or w.shape[1] != K:
        raise ValueError(f"weights {w.shape} do not fit an input of {x.shape}")
    (top, bottom), (left, right) = pads(pad)
    OH = conv_size(x.shape[1], K, stride, top, bottom)
    OW = conv_size(x.shape[2], K, stride, left, right)
    y = array_module(x).empty((len(x), OH, OW, F), x.dtype)
    for n, start, stop, columns in _columns(_padded(x, pad), K, stride, OW):
        y[n, start:stop] = (columns @ w.reshape(-1, F) + b).reshape(-1, OW, F)
    return y, (x, w, stride, pad)


def conv2d_backward(dy: Array, cache: Any) -> tuple[Array, Array, Array]:
    """dy (N, OH, OW, F) -> dx (N, H, W, C), dw (K, K, C, F), db (F,)."""
    x, w, stride, pad = cache
    dx = conv2d_dx(dy, w, stride, pad, x.shape)
    return dx, conv2d_dw(x, dy, len(w), stride, pad), over_pixels(dy)


def conv2d_dx(dy: Array, w: Array, stride: int, pad: Pad, shape: tuple[int, ...]) -> Array:
    """The convolution's adjoint: every dy[n,i,j] paints its window of dx with w @ dy[n,i,j]."""
    N, H, W, C = shape
    _, OH, OW, F = dy.shape
    K = len(w)
    (top, bottom), (left, right) = pads(pad)
    padded = array_module(dy).zeros((N, H + top + bottom, W + left + right, C), dy.dtype)
    for n in range(N):
        for start, stop in _bands(OH, OW * K * K * C, dy.itemsize):
            columns = dy[n, start:stop].reshape(-1, F) @ w.reshape(-1, F).T
            windows = columns.reshape(1, stop - start, OW, K, K, C)
            fold(windows, stride, padded[n : n + 1, start * stride :])
    return padded[:, top : top + H, left : left + W]


def conv2d_dw(x: Array, dy: Array, K: int, stride: int, pad: Pad) -> Array:
    """dw[k,l,c,f] = sum over all windows of x[window at k,l,c] dy[f]: one matrix product."""
    _, _, OW, F = dy.shape
    C = x.shape[3]
    dw = array_module(x).zeros((K * K * C, F), x.dtype)
    for n, start, stop, columns in _columns(_padded(x, pad), K, stride, OW):
        dw += columns.T @ dy[n, start:stop].reshape(-1, F)
    return dw.reshape(K, K, C, F)


def conv_transpose2d(
    x: Array, w: Array, b: Array, stride: int = 2, crop: Pad = 0
) -> tuple[Array, Any]:
    """The adjoint of `conv2d` used forwards: every pixel of x paints a K x K window of y.

    x (N, H, W, C), w (K, K, F, C): the weights of the convolution from F to C channels that it
    undoes, b (F,) -> y (N, OH, OW, F), OH = (H - 1) * stride + K - crop above and below.
    """
    check_float(x, w, b)
    K, _, F, C = w.shape
    N, H, W, channels = x.shape
    if channels != C or w.shape[1] != K:
        raise ValueError(f"weights {w.shape} do not fit an input of {x.shape}")
    (top, bottom), (left, right) = pads(crop)
    OH = transpose_size(H, K, stride, top, bottom)
    OW = transpose_size(W, K, stride, left, right)
    y = conv2d_dx(x, w, stride, crop, (N, OH, OW, F)) + b
    return y, (x, w, stride, crop)


def conv_transpose2d_backward(dy: Array, cache: Any) -> tuple[Array, Array, Array]:
    """dy (N, OH, OW, F) -> dx (N, H, W, C), dw (K, K, F, C), db (F,): a plain convolution of dy."""
    x, w, stride, crop = cache
    no_bias = array_module(x).zeros(w.shape[3], x.dtype)
    dx, _ = conv2d(dy, w, no_bias, stride, crop)
    return dx, conv2d_dw(dy, x, len(w), stride, crop), over_pixels(dy)


# ---------------------------------------------------------------------------- batch norm


def over_pixels(a: Array) -> Array:
    """Sum each channel over all pixels: (N, H, W, C) -> (C,). In float64 on the way: float32,
    adding one number after the other, is down to four digits after a batch of tiles."""
    return a.sum((0, 1, 2), dtype=float).astype(a.dtype)


class Statistics(NamedTuple):
    """Mean and (biased) variance of each channel, (C,) each."""

    mean: Array
    var: Array


class BatchNormCache(NamedTuple):
    normalised: Array
    scale: Array  # gamma / sqrt(var + EPS)
    inverse_std: Array
    statistics: Statistics
    from_batch: bool


def whole_batch(part: Statistics) -> Statistics:
    """The statistics of a batch from those of this part of it: means of z and of z^2, averaged.

    In float64, in which the squared mean can be taken off again.
    """
    if parts() == 1:
        return part
    xp, dtype = array_module(part.mean), part.mean.dtype
    mean, var = (a.astype(float) for a in part)
    mean, square = mean_of_parts(xp.stack((mean, var + mean * mean)))
    return Statistics(mean.astype(dtype), xp.maximum(square - mean * mean, 0).astype(dtype))


def batch_norm(
    x: Array,
    gamma: Array,
    beta: Array,
    statistics: Statistics | None = None,
) -> tuple[Array, BatchNormCache]:
    """y = gamma (x - mean) / sqrt(var + EPS) + beta, per channel.

    x (N, H, W, C). With `statistics` None they are the batch's own, and the gradient flows
    through them (training); given ones are constants (inference). The cache's `statistics` are
    those used. Ioffe & Szegedy 2015, arXiv:1502.03167.
    """
    check_float(x, gamma, beta)
    from_batch = statistics is None
    if statistics is None:
        count = x.size // x.shape[3]
        mean = over_pixels(x) / count
        statistics = whole_batch(Statistics(mean, over_pixels((x - mean) ** 2) / count))
    inverse_std = 1 / array_module(x).sqrt(statistics.var + EPS)
    normalised = (x - statistics.mean) * inverse_std
    scale = gamma * inverse_std
    cache = BatchNormCache(normalised, scale, inverse_std, statistics, from_batch)
    return gamma * normalised + beta, cache


def batch_norm_backward(dy: Array, cache: BatchNormCache) -> tuple[Array, Array, Array]:
    """dy (N, H, W, C) -> dx, dgamma (C,), dbeta (C,).

    With the batch's statistics each x also moves the mean and the variance, which takes the
    mean of dy and its projection on the normalised x out of the gradient. These are the whole
    batch's; dgamma and dbeta are of this part of it, as every parameter's gradient is.
    """
    normalised, scale, _, _, from_batch = cache
    dbeta, dgamma = over_pixels(dy), over_pixels(dy * normalised)
    if not from_batch:
        return dy * scale, dgamma, dbeta
    count = dy.size // dy.shape[3]
    own = dgamma, dbeta
    dbeta, dgamma = mean_of_parts(array_module(dy).stack((dbeta, dgamma)))
    return scale * (dy - (dbeta + normalised * dgamma) / count), *own


# ---------------------------------------------------------------------------- relu, pooling


def relu(x: Array) -> tuple[Array, Any]:
    """y = max(x, 0)."""
    check_float(x)
    return array_module(x).maximum(x, 0), x > 0


def relu_backward(dy: Array, positive: Any) -> Array:
    """dx = dy where x > 0, else 0 (at x = 0 too)."""
    return dy * positive


def max_pool2d(x: Array, size: int = 2) -> tuple[Array, Any]:
    """The largest value of each size x size area: (N, H, W, C) -> (N, H//size, W//size, C).

    Rows and columns that fill no whole area are dropped. In a tie the first pixel, in reading
    order, wins and alone receives the gradient.
    """
    check_float(x)
    N, H, W, C = x.shape
    OH, OW = conv_size(H, size, size, 0, 0), conv_size(W, size, size, 0, 0)
    areas = x[:, : OH * size, : OW * size].reshape(N, OH, size, OW, size, C)
    areas = areas.transpose(0, 1, 3, 2, 4, 5).reshape(N, OH, OW, size * size, C)
    winner = areas.argmax(3)[:, :, :, None]  # (N, OH, OW, 1, C), the switch of each area
    y = array_module(x).take_along_axis(areas, winner, 3)[:, :, :, 0]
    return y, (winner, x.shape, size)


def max_pool2d_backward(dy: Array, cache: Any, other: Array | None = None) -> Array:
    """Each dy goes to the pixel that won its area; all others get 0.

    `other` is a second gradient of the same x, to be added: where a net branches, gradients add.
    """
    winner, (N, H, W, C), size = cache
    xp = array_module(dy)
    _, OH, OW, _ = dy.shape
    won = winner == xp.arange(size * size).reshape(-1, 1)  # (N, OH, OW, size * size, C)
    areas = (won * dy[:, :, :, None]).reshape(N, OH, OW, size, size, C)
    dx = xp.zeros((N, H, W, C), dy.dtype)
    dx[:, : OH * size, : OW * size] = areas.transpose(0, 1, 3, 2, 4, 5).reshape(
        N, OH * size, OW * size, C
    )
    return dx if other is None else dx + other


# ---------------------------------------------------------------------------- the fused block


class BlockWeights(NamedTuple):
    """What a block has learnt; or, on the way back, the gradient of each."""

    w: Array  # (K, K, C + D, F)
    b: Array  # (F,), like those below
    gamma: Array
    beta: Array


class BlockCache(NamedTuple):
    conv: Any
    norm: BatchNormCache
    positive: Any
    channels: int  # of the first input, to split dx

    @property
    def statistics(self) -> Statistics:
        return self.norm.statistics


def conv_bn_relu(
    x: Array,
    skip: Array | None,
    weights: BlockWeights,
    statistics: Statistics | None = None,
    pad: Pad = 0,
) -> tuple[Array, BlockCache]:
    """relu(batch_norm(conv2d([x, skip]))): the block a U-Net is made of, as one primitive.

    x (N, H, W, C), skip (N, H, W, D) or None -> y (N, OH, OW, F). Here it is composed of the plain
    ops; the fast kernels do it in fewer passes over memory.
    """
    w, b, gamma, beta = weights
    joined = x if skip is None else array_module(x).concatenate((x, skip), 3)
    z, conv = conv2d(joined, w, b, 1, pad)
    normal, norm = batch_norm(z, gamma, beta, statistics)
    y, positive = relu(normal)
    return y, BlockCache(conv, norm, positive, x.shape[3])


def conv_bn_relu_backward(
    dy: Array, cache: BlockCache, need_dx: bool = True
) -> tuple[Array | None, Array | None, BlockWeights]:
    """dy -> dx, dskip and the weights' gradients; dx and dskip are None without `need_dx`."""
    dz, dgamma, dbeta = batch_norm_backward(relu_backward(dy, cache.positive), cache.norm)
    x, w, stride, pad = cache.conv
    dw = conv2d_dw(x, dz, len(w), stride, pad)
    # The batch's mean takes any bias out again: its gradient is 0, and rounding must not say else.
    db = over_pixels(dz) * (not cache.norm.from_batch)
    gradients = BlockWeights(dw, db, dgamma, dbeta)
    if not need_dx:
        return None, None, gradients
    dx = conv2d_dx(dz, w, stride, pad, x.shape)
    C = cache.channels
    dskip = dx[..., C:] if C < dx.shape[3] else None
    return dx[..., :C], dskip, gradients
