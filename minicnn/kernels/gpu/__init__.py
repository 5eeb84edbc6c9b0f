"""The ops on CuPy arrays: launches of the CUDA kernels in minicnn/kernels/cuda, for float32.

Arrays of float64, which gradient checks use, take the readable reading of `minicnn.ops`.

Convolutions and their gradients run on tensor cores where the GPU has those for TF32, unless
`minicnn.backend.set_precision` says otherwise.
"""

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any, NamedTuple

import cupy
import numpy as np

from minicnn import ops
from minicnn.backend import Array, check_float, precision
from minicnn.kernels.gpu.launches import CONV, MOST, TABLE, THREADS, launch
from minicnn.kernels.gpu.muon import muon as muon
from minicnn.kernels.gpu.muon import suits_muon as suits_muon
from minicnn.ops import (
    EPS,
    BlockWeights,
    Pad,
    Statistics,
    conv_size,
    pads,
    transpose_size,
    whole_batch,
)
from minicnn.ranks import mean_of_parts, sum_of_parts
from minicnn.ranks import parts as parts_of_batch

__all__ = [  # the ops; what follows them is there for layers, losses and optimisers
    "batch_norm",
    "batch_norm_backward",
    "conv2d",
    "conv2d_backward",
    "conv_bn_relu",
    "conv_bn_relu_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "relu",
    "relu_backward",
]

LOSSES = {"bce": 0, "dice": 1, "jaccard": 2}  # as in loss.cu
ROWS = 128  # pixels (in convolve_dw: rows of dw) per block, as in tile.cu
TENSOR_CORES = 80  # the first architecture whose tensor cores know TF32
PIXELS_PER_THREAD = 16  # in sums over the pixels: four channels of each
SLICE = 16  # terms of a sum that are multiplied together, as in tile.cu
LEAST = (
    16  # slices to a block where blocks share a sum: with fewer, adding up costs more than it saves
)
RESIDENT = {"any": 8, "16": 8, "32": 4, "64": 3}  # blocks at once on a multiprocessor: docs/gpu.md
MEAN, VAR, INVERSE_STD, SCALE, SHIFT, FOLDED, NORM = range(7)  # rows of `norm`, as in norm.cu


# ---------------------------------------------------------------------------- launching


def _each(module: str, name: str, size: int, *arguments: Any) -> None:
    """Launch a kernel with one thread for each of `size` numbers."""
    launch(module, name, (_blocks(size, THREADS),), (THREADS,), *arguments)


def _fours(x: Array) -> int:
    """How many threads it takes where each works on four channels of a pixel."""
    return int(x.size // x.shape[-1]) * _blocks(x.shape[-1], 4)


def _blocks(size: int, per_block: int) -> int:
    return -(-size // per_block)


def _dense(x: Array) -> Array:
    """`x`, or a copy without gaps that starts where four floats can be read at once."""
    return x if x.flags.c_contiguous and x.data.ptr % 16 == 0 else x.copy()


def _fitting(name: str, x: Array, shape: tuple[int, ...]) -> Array:
    """`x` as `_dense` has it; ValueError unless it has this shape: kernels read what lies there."""
    if x.shape != tuple(shape):
        raise ValueError(f"{name} has the shape {x.shape}, not {tuple(shape)}")
    return _dense(x)


def _plain(x: Array) -> bool:
    return bool(x.dtype != np.float32)


# ---------------------------------------------------------------------------- convolution


def _describe(
    x: Array, skip: Array | None, K: int, stride: int, pad: Pad, out: tuple[int, ...]
) -> np.ndarray:
    """struct Conv of the plain convolution from `x` and `skip` to an `out` of (N, OH, OW, F)."""
    s = np.zeros((), CONV)
    s["N"], s["H"], s["W"], s["C"] = x.shape
    s["D"] = 0 if skip is None else skip.shape[3]
    s["K"], s["stride"], s["phases"], s["share"] = K, stride, 1, K * K * (s["C"] + s["D"])
    _, s["OH"], s["OW"], s["F"] = out
    (s["back_y"], _), (s["back_x"], _) = pads(pad)
    return s


def _variant(s: np.ndarray) -> tuple[str, int, int]:
    """The compiled kernel that suits `s`: its name's end, output channels and threads a block."""
    C, D, F = (int(s[name]) for name in "CDF")
    if C % 4 or D % 4 or F % 4:
        return "any", 16, 64
    return ("16", 16, 64) if F <= 16 else ("32", 32, 128) if F <= 32 else ("64", 64, 128)


@cache
def _multiprocessors(device: int) -> int:
    return int(cupy.cuda.runtime.getDeviceProperties(device)["multiProcessorCount"])


def _slots(variant: str) -> int:
    """How many blocks of a convolution the current GPU works on at once."""
    return _multiprocessors(cupy.cuda.Device().id) * RESIDENT[variant]


def _grid(s: np.ndarray) -> tuple[int, int, int]:
    """The blocks that `s` takes: pixels, channels, phases."""
    N, OH, OW, F, phases = (int(s[name]) for name in ("N", "OH", "OW", "F", "phases"))
    pixels = N * _blocks(OH, phases) * _blocks(OW, phases)
    return _blocks(pixels, ROWS), _blocks(F, _variant(s)[1]), phases**2


def _shares(s: np.ndarray) -> int:
    """Among how many blocks each sum is shared out: several, if else half of the GPU is idle."""
    variant, blocks, terms = _variant(s)[0], prod(_grid(s)), int(s["K"] ** 2 * (s["C"] + s["D"]))
    if variant == "any" or 2 * blocks > _slots(variant):
        return 1
    share = _blocks(_blocks(terms, SLICE), max(1, _slots(variant) // max(1, blocks)))
    return _blocks(terms, max(share, LEAST) * SLICE)


def has_tensor_cores() -> bool:
    """Whether the current GPU can multiply in TF32."""
    return _has_tensor_cores(cupy.cuda.Device().id)


@cache
def _has_tensor_cores(device: int) -> bool:
    return int(cupy.cuda.Device(device).compute_capability) >= TENSOR_CORES


def _kernel(module: str, variant: str) -> tuple[str, str]:
    """The module and the name of a convolution's kernel: on tensor cores, where it may be."""
    if variant != "any" and precision("gpu") == "tf32":
        module += "_tf32"
    return module, f"{module}_{variant}"


def _convolve(
    x: Array,
    skip: Array | None,
    w: Array,
    scale: Array | None,
    b: Array | None,
    moments: Array | None,
    s: np.ndarray,
) -> Array:
    """Run convolve.cu as `s` describes it."""
    shape = tuple(int(s[name]) for name in ("N", "OH", "OW", "F"))
    y = cupy.empty(shape, np.float32)
    variant, _, threads = _variant(s)
    (across, down, phases), shares = _grid(s), _shares(s)
    kernel, grid = _kernel("conv", variant), (across, down, phases * shares)
    if shares == 1:
        launch(*kernel, grid, (threads,), x, skip, w, scale, b, y, moments, s)
        return y
    if moments is not None:
        raise ValueError("blocks that share sums take no moments")
    parts, relu, whole = cupy.empty((shares, *shape), np.float32), int(s["relu"]), s.copy()
    whole["relu"], whole["share"] = 0, _blocks(_blocks(int(s["share"]), SLICE), shares) * SLICE
    launch(*kernel, grid, (threads,), x, skip, w, None, None, parts, None, whole)
    _each("reduce", "sum_shares", y.size // 4, parts, scale, b, y, shares, y.size, shape[3], relu)
    return y


def _output(x: Array, skip: Array | None, w: Array, stride: int, pad: Pad) -> tuple[int, ...]:
    """(N, OH, OW, F) of a convolution of [x, skip] with w."""
    K, _, C, F = w.shape
    channels = x.shape[3]
    if skip is not None:
        if skip.ndim != 4 or skip.shape[:3] != x.shape[:3]:
            raise ValueError(f"a skip of {skip.shape} does not fit an input of {x.shape}")
        channels += skip.shape[3]
    if channels != C or w.shape[1] != K:
        raise ValueError(f"weights {w.shape} do not fit an input of {channels} channels")
    rows, columns = pads(pad)
    OH, OW = conv_size(x.shape[1], K, stride, *rows), conv_size(x.shape[2], K, stride, *columns)
    return len(x), OH, OW, F


def conv2d(x: Array, w: Array, b: Array, stride: int = 1, pad: Pad = 0) -> tuple[Array, Any]:
    """See `minicnn.ops.conv2d`."""
    check_float(x, w, b)
    if _plain(x):
        return ops.conv2d(x, w, b, stride, pad)
    x, w = _dense(x), _dense(w)
    out = _output(x, None, w, stride, pad)
    s, b = _describe(x, None, len(w), stride, pad, out), _fitting("the bias", b, out[3:])
    return _convolve(x, None, w, None, b, None, s), (x, w, stride, pad)


def conv2d_backward(dy: Array, cache: Any) -> tuple[Array, Array, Array]:
    """See `minicnn.ops.conv2d_backward`."""
    x, w, stride, pad = cache
    if _plain(dy):
        return ops.conv2d_backward(dy, cache)
    dy = _fitting("dy", dy, _output(x, None, w, stride, pad))
    dx = _adjoint(dy, w, None, stride, pad, x.shape)
    return dx, _weight_gradient(x, None, dy, len(w), stride, pad), _channel_sums(dy)


def _adjoint(
    dy: Array,
    w: Array,
    b: Array | None,
    stride: int,
    pad: Pad,
    shape: tuple[int, ...],
    first: int = 0,
) -> Array:
    """What `minicnn.ops.conv2d_dx` computes, for the channels from `first` on; b is added."""
    K, _, channels, F = w.shape
    N, H, W, C = shape
    (top, _), (left, _) = pads(pad)
    J = _blocks(K, stride)
    small = cupy.empty((stride, stride, J, J, F, C), np.float32)
    numbers = (K, channels, F, first, C, stride, top, left)
    _each("conv", "phase_weights", small.size, w, small, *numbers)
    s = _describe(dy, None, J, 1, J - 1, (N, H, W, C))
    s["phases"], s["ahead_y"], s["ahead_x"] = stride, top, left
    return _convolve(dy, None, small, None, b, None, s)


def _weight_gradient(
    x: Array, skip: Array | None, dy: Array, K: int, stride: int, pad: Pad
) -> Array:
    """What `minicnn.ops.conv2d_dw` computes, of [x, skip]: convolve_dw.cu, its parts added up."""
    s = _describe(x, skip, K, stride, pad, dy.shape)
    N, OH, _, F = dy.shape
    C = int(s["C"] + s["D"])
    variant, columns, threads = _variant(s)
    tiles = _blocks(K * K * C, ROWS), _blocks(F, columns)
    rows = _blocks(N * OH, max(1, _slots(variant) // prod(tiles)))  # image rows per part
    parts = cupy.empty((_blocks(N * OH, rows), K, K, C, F), np.float32)
    grid = (*tiles, len(parts))
    arguments = (x, skip, dy, parts, rows, s)
    launch(*_kernel("conv_dw", variant), grid, (threads,), *arguments)
    return _sum_parts(parts)


def _sum_parts(parts: Array) -> Array:
    """Sum over the first axis."""
    if len(parts) == 1:
        return parts[0]
    out = cupy.empty(parts.shape[1:], np.float32)
    grid = (_blocks(out.size, 32),)
    launch("reduce", "sum_parts", grid, (32, 8), parts, out, len(parts), out.size)
    return out


def conv_transpose2d(
    x: Array, w: Array, b: Array, stride: int = 2, crop: Pad = 0
) -> tuple[Array, Any]:
    """See `minicnn.ops.conv_transpose2d`."""
    check_float(x, w, b)
    if _plain(x):
        return ops.conv_transpose2d(x, w, b, stride, crop)
    K, _, F, C = w.shape
    N, H, W, channels = x.shape
    if channels != C or w.shape[1] != K:
        raise ValueError(f"weights {w.shape} do not fit an input of {x.shape}")
    rows, columns = pads(crop)
    OH, OW = transpose_size(H, K, stride, *rows), transpose_size(W, K, stride, *columns)
    x, w, b = _dense(x), _dense(w), _fitting("the bias", b, (F,))
    return _adjoint(x, w, b, stride, crop, (N, OH, OW, F)), (x, w, stride, crop)


def conv_transpose2d_backward(dy: Array, cache: Any) -> tuple[Array, Array, Array]:
    """See `minicnn.ops.conv_transpose2d_backward`."""
    x, w, stride, crop = cache
    if _plain(dy):
        return ops.conv_transpose2d_backward(dy, cache)
    if _output(dy, None, w, stride, crop) != x.shape:
        raise ValueError(f"dy of {dy.shape} does not fit an input of {x.shape}")
    dy, s = _dense(dy), _describe(dy, None, len(w), stride, crop, x.shape)
    dx = _convolve(dy, None, w, None, None, None, s)
    return dx, _weight_gradient(dy, None, x, len(w), stride, crop), _channel_sums(dy)


# ---------------------------------------------------------------------------- batch norm, ReLU


class NormCache(NamedTuple):
    z: Array
    norm: Array  # (6, C), see norm.cu
    from_batch: bool

    @property
    def statistics(self) -> Statistics:
        return Statistics(self.norm[MEAN], self.norm[VAR])


def _over_channels(name: str, x: Array, per_channel: int, *arguments: Any) -> tuple[Array, int]:
    """Run a kernel that sums over the pixels: its parts (blocks, per_channel, C), pixels a block.

    The first argument after the arrays is always the number of pixels, then C, then the share.
    """
    C = x.shape[-1]
    fours = _blocks(C, 4)
    M, rows = x.size // C, PIXELS_PER_THREAD * (THREADS // min(fours, THREADS))
    parts = cupy.empty((_blocks(M, rows), per_channel, C), np.float32)
    grid = len(parts), _blocks(fours, THREADS)
    arrays = tuple(a for a in arguments if not isinstance(a, int))
    numbers = tuple(a for a in arguments if isinstance(a, int))
    launch("norm", name, grid, (THREADS,), x, *arrays, parts, M, C, rows, *numbers)
    return parts, rows


def _channel_sums(x: Array) -> Array:
    """x.sum((0, 1, 2)) of an image."""
    return _sum_parts(_over_channels("channel_sums", x, 1)[0])[0]


def _norm(
    moments: Array | None,
    rows: int,
    bias: Array | None,
    statistics: Statistics | None,
    gamma: Array,
    beta: Array,
    M: int,
) -> Array:
    """The rows of `norm` from the moments of the batch, or from given statistics."""
    C = len(gamma)
    norm = cupy.empty((NORM, C), np.float32)
    mean, var = (None, None) if statistics is None else statistics
    given = {"the bias": bias, "the mean": mean, "the variance": var, "gamma": gamma, "beta": beta}
    vectors = (None if a is None else _fitting(name, a, (C,)) for name, a in given.items())
    arrays = (moments, *vectors, norm)
    launch("norm", "bn_statistics", (C,), (THREADS,), *arrays, M, C, rows, EPS)
    if statistics is None and parts_of_batch() > 1:
        whole = whole_batch(Statistics(norm[MEAN], norm[VAR]))
        return _norm(None, rows, bias, whole, gamma, beta, M)
    return norm


def _normalised(z: Array, norm: Array, relu: bool) -> Array:
    y = cupy.empty(z.shape, np.float32)
    C = z.shape[-1]
    _each("norm", "bn_apply", _fours(z), z, norm, y, z.size // C, C, int(relu))
    return y


def _norm_backward(
    dy: Array, cache: NormCache, relu: bool, db: Array | None = None
) -> tuple[Array, Array, Array]:
    """dz, dgamma, dbeta of batch norm with or without a ReLU behind it; db is filled with 0."""
    z, norm, from_batch = cache
    dy, C = _fitting("dy", dy, z.shape), z.shape[-1]
    parts, _ = _over_channels("bn_backward_sums", dy, 2, z, norm, int(relu))
    sums = _sum_parts(parts)
    whole = mean_of_parts(sums) if from_batch and parts_of_batch() > 1 else sums
    dz = cupy.empty(z.shape, np.float32)
    numbers = (z.size // C, C, int(relu), int(from_batch))
    _each("norm", "bn_backward_apply", _fours(z), dy, z, norm, whole, dz, db, *numbers)
    return dz, sums[1], sums[0]


def batch_norm(
    x: Array,
    gamma: Array,
    beta: Array,
    statistics: Statistics | None = None,
) -> tuple[Array, Any]:
    """See `minicnn.ops.batch_norm`."""
    check_float(x, gamma, beta)
    if _plain(x):
        return ops.batch_norm(x, gamma, beta, statistics)
    x, M, gamma = _dense(x), x.size // x.shape[-1], _fitting("gamma", gamma, x.shape[-1:])
    moments, rows = (None, 1)
    if statistics is None:
        moments, rows = _over_channels("channel_moments", x, 2)
    norm = _norm(moments, rows, None, statistics, gamma, beta, M)
    return _normalised(x, norm, relu=False), NormCache(x, norm, statistics is None)


def batch_norm_backward(dy: Array, cache: Any) -> tuple[Array, Array, Array]:
    """See `minicnn.ops.batch_norm_backward`."""
    if _plain(dy):
        return ops.batch_norm_backward(dy, cache)
    return _norm_backward(dy, cache, relu=False)


def relu(x: Array) -> tuple[Array, Any]:
    """See `minicnn.ops.relu`."""
    check_float(x)
    if _plain(x):
        return ops.relu(x)
    x = _dense(x)
    y, positive = cupy.empty(x.shape, np.float32), cupy.empty(x.shape, np.uint8)
    _each("pointwise", "relu", x.size, x, y, positive, x.size)
    return y, positive


def relu_backward(dy: Array, positive: Any) -> Array:
    """See `minicnn.ops.relu_backward`."""
    if _plain(dy):
        return ops.relu_backward(dy, positive)
    dx = cupy.empty(dy.shape, np.float32)
    dy = _fitting("dy", dy, positive.shape)
    _each("pointwise", "relu_backward", dy.size, dy, positive, dx, dy.size)
    return dx


# ---------------------------------------------------------------------------- pooling


def max_pool2d(x: Array, size: int = 2) -> tuple[Array, Any]:
    """See `minicnn.ops.max_pool2d`."""
    check_float(x)
    if _plain(x) or size > 16:  # the winner's place is kept in a byte
        return ops.max_pool2d(x, size)
    x = _dense(x)
    N, H, W, C = x.shape
    shape = N, conv_size(H, size, size, 0, 0), conv_size(W, size, size, 0, 0), C
    y, winner = cupy.empty(shape, np.float32), cupy.empty(shape, np.uint8)
    _each("pool", "max_pool", _fours(y), x, y, winner, *x.shape, size)
    return y, (winner, x.shape, size)


def max_pool2d_backward(dy: Array, cache: Any, other: Array | None = None) -> Array:
    """See `minicnn.ops.max_pool2d_backward`."""
    winner, shape, size = cache
    if _plain(dy) or size > 16:
        return ops.max_pool2d_backward(dy, cache, other)
    dy = _fitting("dy", dy, winner.shape)
    other = None if other is None else _fitting("the other gradient", other, shape)
    dx = cupy.empty(shape, np.float32)
    _each("pool", "max_pool_backward", _fours(dx), dy, winner, other, dx, *shape, size)
    return dx


# ---------------------------------------------------------------------------- the fused block


class BlockCache(NamedTuple):
    x: Array
    skip: Array | None
    w: Array
    b: Array
    pad: Pad
    z: Array | None  # the convolution's output; in inference it is not kept
    norm: Array
    from_batch: bool

    @property
    def statistics(self) -> Statistics:
        return Statistics(self.norm[MEAN], self.norm[VAR])


def conv_bn_relu(
    x: Array,
    skip: Array | None,
    weights: BlockWeights,
    statistics: Statistics | None = None,
    pad: Pad = 0,
) -> tuple[Array, Any]:
    """See `minicnn.ops.conv_bn_relu`. In training two passes over the image, in inference one."""
    check_float(x, *weights)
    if _plain(x):
        return ops.conv_bn_relu(x, skip, weights, statistics, pad)
    w, b, gamma, beta = weights
    x, w, skip = _dense(x), _dense(w), None if skip is None else _dense(skip)
    out = _output(x, skip, w, 1, pad)
    s, (N, OH, OW, F) = _describe(x, skip, len(w), 1, pad, out), out
    M, b, gamma = N * OH * OW, _fitting("the bias", b, (F,)), _fitting("gamma", gamma, (F,))
    if statistics is None:
        if _shares(s) > 1:  # there is not much to read again
            z = _convolve(x, skip, w, None, b, None, s)
            norm = _norm(*_over_channels("channel_moments", z, 2), None, None, gamma, beta, M)
        else:
            moments = cupy.empty((_blocks(M, ROWS), 2, F), np.float32)
            z = _convolve(x, skip, w, None, b, moments, s)
            norm = _norm(moments, ROWS, b, None, gamma, beta, M)
        return _normalised(z, norm, relu=True), BlockCache(x, skip, w, b, pad, z, norm, True)
    norm = _norm(None, 1, b, statistics, gamma, beta, M)
    s["relu"] = 1
    y = _convolve(x, skip, w, _dense(norm[SCALE]), _dense(norm[FOLDED]), None, s)
    return y, BlockCache(x, skip, w, b, pad, None, norm, False)


def conv_bn_relu_predict(
    x: Array,
    skip: Array | None,
    weights: BlockWeights,
    statistics: Statistics,
    pad: Pad = 0,
    kept: dict[str, Any] | None = None,
) -> Array:
    """The block in inference; `kept` serves the CPU only."""
    return conv_bn_relu(x, skip, weights, statistics, pad)[0]


def conv_bn_relu_backward(
    dy: Array, cache: Any, need_dx: bool = True
) -> tuple[Array | None, Array | None, BlockWeights]:
    """See `minicnn.ops.conv_bn_relu_backward`."""
    if _plain(dy):
        return ops.conv_bn_relu_backward(dy, cache, need_dx)
    x, skip, w, b, pad, z, norm, from_batch = cache
    if z is None:
        s = _describe(x, skip, len(w), 1, pad, dy.shape)
        z = _convolve(x, skip, w, None, b, None, s)
    db = cupy.empty(b.shape, np.float32) if from_batch else None
    dz, dgamma, dbeta = _norm_backward(dy, NormCache(z, norm, from_batch), relu=True, db=db)
    dw = _weight_gradient(x, skip, dz, len(w), 1, pad)
    db = _channel_sums(dz) if db is None else db
    dx = dskip = None
    if need_dx:
        dx = _adjoint(dz, w, None, 1, pad, x.shape)
        if skip is not None:
            dskip = _adjoint(dz, w, None, 1, pad, skip.shape, first=x.shape[3])
    return dx, dskip, BlockWeights(dw, db, dgamma, dbeta)


# ---------------------------------------------------------------------------- beside the ops


def lift(x: Array) -> Array:
    """`x` in the form that a network's blocks hand on: here an array."""
    return x


def in_pieces(f: Callable[..., None], *arrays: Array) -> None:
    """Call `f(*arrays)`, which works element by element and in place."""
    f(*arrays)


def for_each(job: Callable[[int], None], count: int) -> None:
    """Call `job(0)` ... `job(count - 1)`, none of which waits for another."""
    for number in range(count):
        job(number)


def normalise(pixels: Array, mean: float, scale: float) -> Array:
    """Bytes to float32: (pixels - mean) / scale."""
    pixels = cupy.ascontiguousarray(pixels)
    y = cupy.empty(pixels.shape, np.float32)
    _each("pointwise", "normalise", y.size, pixels, y, y.size, mean, scale)
    return y


def update_running(
    mean: Array, var: Array, batch: Statistics, momentum: float, unbias: float
) -> None:
    """See `minicnn.layers.update_running`; in place."""
    C = len(mean)
    _each("norm", "bn_running", C, mean, var, *batch, C, momentum, unbias)


def loss(
    kind: str,
    logits: Array,
    labels: Array,
    valid: Array | None,
    weight: float,
) -> tuple[Array, Array]:
    """One of LOSSES with its gradient; `weight` is BCE's `pos_weight`, the others' `smooth`."""
    logits, labels = _dense(logits), _fitting("labels", labels, logits.shape)
    if valid is not None:  # bytes and booleans count as well
        valid = _fitting("valid", valid.astype(np.float32, copy=False), logits.shape)
    per_block = 4 * PIXELS_PER_THREAD * THREADS
    parts = cupy.empty((_blocks(logits.size, per_block), 5), np.float32)
    size, pos_weight = logits.size, weight if kind == "bce" else 1.0
    arguments = (logits, labels, valid, parts, size, per_block, pos_weight)
    launch("loss", "loss_sums", (len(parts),), (THREADS,), *arguments)
    value, dlogits = cupy.empty((), np.float32), cupy.empty(logits.shape, np.float32)
    arrays = (logits, labels, valid, sum_of_parts(_sum_parts(parts)), value, dlogits)
    _each("loss", "loss_gradient", logits.size, *arrays, size, LOSSES[kind], weight)
    return value, dlogits


def adam(
    rows: list[tuple[Array, Array, Array, Array]],
    betas: tuple[float, float],
    step: float,
    root: float,
    eps: float,
) -> None:
    """Adam's step for all (p, g, m, v) in `rows`, as adam.cu has it: a launch for every MOST."""
    for start in range(0, len(rows), MOST):
        part = rows[start : start + MOST]
        for row in part:  # their addresses go in a table, where no launch can check them
            if any(a.dtype != np.float32 or not a.flags.c_contiguous for a in row):
                raise TypeError("Adam moves float32 arrays without gaps only")
            if any(a.shape != row[0].shape for a in row):
                raise ValueError(f"Adam takes arrays of one shape, not {[a.shape for a in row]}")
        table = np.zeros((), TABLE)
        for column, name in enumerate("pgmv"):
            table[name][: len(part)] = [row[column].data.ptr for row in part]
        table["count"], table["size"][: len(part)] = len(part), [row[0].size for row in part]
        blocks = -(-table["size"] // THREADS)
        table["first"] = np.cumsum(blocks) - blocks
        numbers = (*betas, step, root, eps)
        launch("adam", "adam", (int(blocks.sum()),), (THREADS,), table, *numbers)
