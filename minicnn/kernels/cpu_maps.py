"""What passes between the fused blocks: a map whose last steps are not taken, and its gradient.

A block stores only z, its convolution. Batch norm and ReLU, relu(scale * z + shift), are three
cheap passes that whoever reads a map makes on the few rows it has in cache. On the way back,
whoever makes a gradient masks it and sums it up for the batch norm while it is still in cache.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minicnn.memory import empty
from minicnn.threads import run, scratch


class Map:
    """An activation (N, H, W, C): relu(scale * z + shift), or `z` itself where both are None."""

    def __init__(
        self, z: np.ndarray, scale: np.ndarray | None = None, shift: np.ndarray | None = None
    ) -> None:
        self.z, self.shape, self.size, self.dtype = z, z.shape, z.size, z.dtype
        self.lazy = scale is not None
        if scale is not None and shift is not None:
            # For every pixel of a row: loops over C values only are slow.
            self.scales, self.shifts = np.tile(scale, z.shape[2]), np.tile(shift, z.shape[2])

    def band(self, n: int, first: int, last: int) -> np.ndarray:
        """Rows [first, last) of z of image n, (rows, W * C)."""
        return self.z[n, first:last].reshape(last - first, -1)

    def read(self, n: int, first: int, last: int, out: np.ndarray) -> None:
        """The values of those rows, into `out` (rows, W * C)."""
        if not self.lazy:
            np.copyto(out, self.band(n, first, last))
            return
        np.multiply(self.band(n, first, last), self.scales, out=out)
        out += self.shifts
        np.maximum(out, 0, out=out)

    def value(self) -> np.ndarray:
        """The activation as an array."""
        if not self.lazy:
            return self.z
        N, H, W, C = self.shape
        y = empty(N, H, W, C)
        run(N, lambda n: self.read(n, 0, H, y[n].reshape(H, W * C)))
        return y


@dataclass(frozen=True)
class Gradient:
    """The gradient of a lazy map's scale * z + shift: `dy` is 0 wherever the ReLU was.

    `sums` (2, C), float64, holds those of dy and of dy * z over all pixels, for the batch norm.
    """

    dy: np.ndarray
    sums: np.ndarray


Reader = Callable[[int, int, int, np.ndarray], None]


def padded(
    read: Reader,
    shape: tuple[int, ...],
    n: int,
    first: int,
    count: int,
    left: int,
    pitch: int,
    name: str,
) -> np.ndarray:
    """Rows first ... first + count of image n, 0 outside of it: (count + 1, pitch * C).

    Rows are `pitch` pixels long, pixel 0 stands at column `left`. The last row is one of zeros:
    windows may reach into it.
    """
    _, H, W, C = shape
    X = scratch(name, count + 1, pitch * C)
    low, high = max(first, 0), min(first + count, H)
    X[: low - first] = 0
    X[high - first :] = 0
    inside = X[low - first : high - first]
    inside[:, : left * C] = 0
    inside[:, (left + W) * C :] = 0
    read(n, low, high, inside[:, left * C : (left + W) * C])
    return X


def mask_and_sum(dy: np.ndarray, value: np.ndarray, z: np.ndarray, sums: np.ndarray) -> None:
    """Zero `dy` where the activation is 0, and put its sums, and those of dy * z, in `sums`.

    All (rows, W * C), `sums` (2, C).
    """
    mask = scratch("mask", *dy.shape)
    np.greater(value, 0, out=mask, casting="unsafe")
    dy *= mask
    channel_sums(dy, z, sums)


def channel_sums(a: np.ndarray, b: np.ndarray, sums: np.ndarray) -> None:
    """Sums of a and of a * b (rows, W * C) by channel, into `sums` (2, C)."""
    columns = scratch("columns", 2, a.shape[1])
    ones = np.ones((1, len(a)), np.float32)
    np.matmul(ones, a, out=columns[:1])
    np.einsum("ij,ij->j", a, b, out=columns[1])
    np.add.reduce(columns.reshape(2, -1, sums.shape[1]), axis=1, out=sums)


def as_gradient(dy: np.ndarray | Gradient, of: Map) -> Gradient:
    """`dy` masked and summed, whoever it comes from."""
    if isinstance(dy, Gradient):
        return dy
    N, H, W, C = of.shape
    masked, slots = empty(N, H, W, C), np.empty((N, 2, C), np.float32)

    def image(n: int) -> None:
        out, value = masked[n].reshape(H, -1), scratch("x0", H, W * C)
        np.copyto(out, dy[n].reshape(H, -1))
        of.read(n, 0, H, value)
        mask_and_sum(out, value, of.band(n, 0, H), slots[n])

    run(N, image)
    return Gradient(masked, slots.sum(0, dtype=float))
