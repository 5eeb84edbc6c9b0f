"""The ops on CuPy arrays: for now the readable reading, which is written for both."""

from collections.abc import Callable

from minicnn.backend import Array
from minicnn.ops import (
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

__all__ = [  # the ops; `lift` and `in_pieces` are there for their users
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
