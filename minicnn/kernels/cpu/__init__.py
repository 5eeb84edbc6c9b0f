"""The ops on NumPy arrays: to the fast kernels where these fit, else to the plain op.

They fit float32, stride 1 and 'same' padding, and kernels of 2, 3, 4; for
upsampling 4x4 with stride 2; for pooling 2x2; and 1x1 convolutions. `minicnn.ops` does the rest.

Between `lift` and the last layer, blocks hand on `Map`s in place of arrays: see `feature_maps`.
"""

from collections.abc import Callable

import numpy as np

from minicnn import ops
from minicnn.backend import Array
from minicnn.kernels.cpu import (
    conv_block,
    pointwise,
    pool,
    upsample,
    upsample_small,
)
from minicnn.kernels.cpu.adam import adam as adam
from minicnn.kernels.cpu.feature_maps import Gradient, Map
from minicnn.kernels.cpu.threads import run
from minicnn.ops import (
    BlockWeights,
    Pad,
    Statistics,
    batch_norm,
    batch_norm_backward,
    relu,
    relu_backward,
)

Values = Array | Map  # an activation, as an array or as blocks hand it on

PIECE = 1 << 16  # values

__all__ = [  # the ops; what else is here is there for layers, losses and optimisers
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


def lift(x: Array) -> Values:
    """`x` in the form that a network's blocks hand on; float64 stays an array: the plain path."""
    return Map(x) if x.dtype == np.float32 else x


def in_pieces(f: Callable[..., None], *arrays: Array) -> None:
    """Call `f(*arrays)`, which works element by element and in place, on pieces of the arrays
    that stay in cache, on all threads."""
    flat = [a.reshape(-1) for a in arrays]

    def piece(j: int) -> None:
        part = slice(j * PIECE, (j + 1) * PIECE)
        f(*(a[part] for a in flat))

    run(-(-arrays[0].size // PIECE), piece)


def for_each(job: Callable[[int], None], count: int) -> None:
    """Call `job(0)` ... `job(count - 1)`, none of which waits for another, on all threads."""
    run(count, job)


def suits_muon(p: Array) -> bool:
    """Whether this module has a Muon of its own for a kernel: none, products are NumPy's."""
    return False


def _map(x: Values) -> Map:
    return x if isinstance(x, Map) else Map(np.ascontiguousarray(x))


def _array(x: Values) -> Array:
    return x.value() if isinstance(x, Map) else x


def _like(x: Values, y: Array) -> Values:
    """`y` as a map if the input `x` was one."""
    return Map(y) if isinstance(x, Map) else y


def _plain(dy: Array | Gradient) -> Array:
    return dy.dy if isinstance(dy, Gradient) else dy


def conv2d(x: Values, w: Array, b: Array, stride: int = 1, pad: Pad = 0) -> tuple[Array, object]:
    if x.dtype == w.dtype == np.float32 and len(w) == stride == 1 and pad == 0:
        return pointwise.conv2d(_map(x), w, b)
    return ops.conv2d(_array(x), w, b, stride, pad)


def conv2d_backward(dy: Array, cache: object) -> tuple[Array | Gradient, Array, Array]:
    if isinstance(cache, pointwise.PointwiseCache):
        return pointwise.conv2d_backward(dy, cache)
    return ops.conv2d_backward(dy, cache)


def conv_transpose2d(
    x: Values, w: Array, b: Array, stride: int = 2, crop: Pad = 0
) -> tuple[Values, object]:
    if upsample_small.fits(_map(x), w, stride, crop):
        way = upsample if upsample.fits(_map(x)) else upsample_small
        y, cache = way.conv_transpose2d(_map(x), w, b)
    else:
        y, cache = ops.conv_transpose2d(_array(x), w, b, stride, crop)
    return _like(x, y), cache


def conv_transpose2d_backward(dy: Array, cache: object) -> tuple[Array | Gradient, Array, Array]:
    if isinstance(cache, upsample.UpCache):
        return upsample.conv_transpose2d_backward(np.ascontiguousarray(dy), cache)
    if isinstance(cache, upsample_small.DirectCache):
        return upsample_small.conv_transpose2d_backward(np.ascontiguousarray(dy), cache)
    return ops.conv_transpose2d_backward(dy, cache)


def max_pool2d(x: Values, size: int = 2) -> tuple[Values, object]:
    _, H, W, _ = x.shape
    if x.dtype == np.float32 and size == 2 and H % 2 == W % 2 == 0:
        pooled, cache = pool.max_pool2d(_map(x))
        return (pooled if isinstance(x, Map) else pooled.z), cache
    y, cache = ops.max_pool2d(_array(x), size)
    return _like(x, y), cache


def max_pool2d_backward(dy: Array, cache: object, other: Array | None = None) -> Array | Gradient:
    if isinstance(cache, pool.PoolCache):
        return pool.max_pool2d_backward(np.ascontiguousarray(dy), cache, other)
    dx = ops.max_pool2d_backward(dy, cache)
    return dx if other is None else dx + other


def conv_bn_relu(
    x: Values,
    skip: Values | None,
    weights: BlockWeights,
    statistics: Statistics | None = None,
    pad: Pad = 0,
) -> tuple[Values, object]:
    sources = [_map(x)] if skip is None else [_map(x), _map(skip)]
    if conv_block.fits(sources, weights, pad):
        block, cache = conv_block.conv_bn_relu(sources, weights, statistics, pad)
        return (block if isinstance(x, Map) else block.value()), cache
    plain = None if skip is None else _array(skip)
    y, plain_cache = ops.conv_bn_relu(_array(x), plain, weights, statistics, pad)
    return _like(x, y), plain_cache


def conv_bn_relu_predict(
    x: Values,
    skip: Values | None,
    weights: BlockWeights,
    statistics: Statistics,
    pad: Pad = 0,
    kept: dict[str, conv_block.Folded] | None = None,
) -> Values:
    """The block in inference: by given statistics, with nothing kept for a backward pass.

    kept: this block's own place for what is derived from its weights, for use again.
    """
    sources = [_map(x)] if skip is None else [_map(x), _map(skip)]
    if conv_block.fits(sources, weights, pad):
        y = conv_block.conv_bn_relu_predict(
            sources, weights, statistics, pad, {} if kept is None else kept
        )
        return y if isinstance(x, Map) else y.value()
    return conv_bn_relu(x, skip, weights, statistics, pad)[0]


def conv_bn_relu_backward(
    dy: Array | Gradient, cache: object, need_dx: bool = True
) -> tuple[Array | Gradient | None, Array | None, BlockWeights]:
    if isinstance(cache, conv_block.BlockCache):
        inputs, gradients = conv_block.conv_bn_relu_backward(dy, cache, need_dx)
        dx, dskip = (*inputs, None, None)[:2]
        return dx, dskip, gradients
    assert isinstance(cache, ops.BlockCache)
    return ops.conv_bn_relu_backward(_plain(dy), cache, need_dx)


def normalise(pixels: Array, mean: float, scale: float) -> Array:
    """Bytes to float32: (pixels - mean) / scale."""
    return (pixels.astype(np.float32) - np.float32(mean)) / np.float32(scale)


# A GPU has kernels for these; here the formulas of their users are as good.
loss = update_running = None
