"""The ops on CuPy arrays: for now the readable reading, which is written for both."""

from collections.abc import Callable
from typing import Any

from minicnn.backend import Array
from minicnn.ops import (
    Pad,
    Statistics,
    batch_norm,
    batch_norm_backward,
    conv2d,
    conv2d_backward,
    conv_bn_relu,
    conv_bn_relu_backward,
    conv_transpose2d,
    conv_transpose2d_backward,
    max_pool2d,
    max_pool2d_backward,
    relu,
    relu_backward,
)

__all__ = [  # the ops; what else is here serves layers and optimisers
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


def in_pieces(f: Callable[..., None], *arrays: Array) -> None:
    """Call `f(*arrays)`, which works element by element and in place."""
    f(*arrays)


def lift(x: Array) -> Array:
    """`x` in the form that a network's blocks hand on: here an array."""
    return x


def conv_bn_relu_predict(
    x: Array,
    skip: Array | None,
    w: Array,
    b: Array,
    gamma: Array,
    beta: Array,
    statistics: Statistics,
    pad: Pad = 0,
    eps: float = 1e-5,
    kept: dict[Any, Any] | None = None,
) -> Array:
    """The block in inference: by given statistics, with nothing kept for a backward pass.

    kept: what was derived from these very constants before, for use again; None: they may change.
    """
    return conv_bn_relu(x, skip, w, b, gamma, beta, statistics, pad, eps)[0]
