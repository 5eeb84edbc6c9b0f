"""What passes between the fused blocks: a map whose last steps are not taken, and its gradient.

A block stores only z, its convolution. Batch norm and ReLU of it are, for a scale above 0,

    relu(scale z + shift) = scale max(z, floor) + shift        floor = -shift / scale

so whoever reads a map only takes the maximum, one cheap pass over the few rows it has in cache:
the scale goes into its weights, and the shift adds a constant to its result. On the way back,
whoever makes a gradient masks it and sums it up for the batch norm while it is still in cache.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from minicnn.kernels.cpu.memory import empty
from minicnn.kernels.cpu.threads import last_use, run, scratch

BORDER = 8  # pixels that rows may be longer by than an image
_tokens: Iterator[int] = itertools.count()


class Source(Protocol):
    """What a convolution reads, row by row: `border` is a row of what surrounds the image."""

    shape: tuple[int, ...]
    border: np.ndarray
    token: int

    def read(self, n: int, first: int, last: int, out: np.ndarray) -> None: ...


class Map:
    """An activation (N, H, W, C), as one of three:

    `z` itself; max(z, 0), `rectified`; or, of a `block`, scale * max(z, floor) + shift, where z
    is a convolution whose batch norm waits for the sums of its gradient.
    """

    def __init__(
        self,
        z: np.ndarray,
        scale: np.ndarray | None = None,
        shift: np.ndarray | None = None,
        rectified: bool = False,
    ) -> None:
        self.z, self.shape, self.size, self.dtype = z, z.shape, z.size, z.dtype
        self.scale, self.shift = scale, shift
        self.of_block = self.scaled = scale is not None
        self.lazy = self.scaled or rectified
        W, C = z.shape[2:]
        if scale is None or shift is None:
            self.border = np.zeros((W + BORDER) * C, np.float32)
        else:  # for every pixel: loops over C values only are slow
            self.border = row_of(-shift / scale, W + BORDER)
        self.floors = self.border[: W * C]
        self.token = next(_tokens)

    def like(self, z: np.ndarray) -> "Map":
        """Another `z` in place of this one's, with the same steps to take; not a block's."""
        other = Map(z, self.scale, self.shift, self.lazy)
        other.of_block = False
        return other

    def band(self, n: int, first: int, last: int) -> np.ndarray:
        """Rows [first, last) of z of image n, (rows, W * C)."""
        return self.z[n, first:last].reshape(last - first, -1)

    def read(self, n: int, first: int, last: int, out: np.ndarray) -> None:
        """max(z, floor), or z, of those rows into `out` (rows, W * C)."""
        if self.lazy:
            np.maximum(self.band(n, first, last), self.floors, out=out)
        else:
            np.copyto(out, self.band(n, first, last))

    def activation(self) -> Source:
        """A source that reads the activation itself, with zeros around."""
        if self.scale is None or self.shift is None:
            return self
        return _Activation(self, self.scale, self.shift)

    def value(self) -> np.ndarray:
        """The activation as an array."""
        if not self.lazy:
            return self.z
        N, H, W, C = self.shape
        y, source = empty(N, H, W, C), self.activation()
        run(N, lambda n: source.read(n, 0, H, y[n].reshape(H, W * C)))
        return y


class _Activation:
    """Reads relu(scale z + shift), for those who can't take the scale into their weights."""

    def __init__(self, x: Map, scale: np.ndarray, shift: np.ndarray) -> None:
        self.x, self.shape, self.token = x, x.shape, next(_tokens)
        self.border = np.zeros_like(x.border)
        self.scales, self.shifts = row_of(scale, x.shape[2]), row_of(shift, x.shape[2])

    def read(self, n: int, first: int, last: int, out: np.ndarray) -> None:
        np.multiply(self.x.band(n, first, last), self.scales, out=out)
        out += self.shifts
        np.maximum(out, 0, out=out)


class Normed:
    """Reads dy + slope * z + offset: the gradient of a convolution, from the one of its map."""

    def __init__(self, dy: np.ndarray, y: Map, slope: np.ndarray, offset: np.ndarray) -> None:
        self.dy, self.y, self.shape, self.token = dy, y, y.shape, next(_tokens)
        self.border = np.zeros_like(y.border)
        self.slopes = row_of(slope, y.shape[2])
        self.offsets = row_of(offset, y.shape[2])

    def read(self, n: int, first: int, last: int, out: np.ndarray) -> None:
        np.multiply(self.y.band(n, first, last), self.slopes, out=out)
        out += self.offsets
        out += self.dy[n, first:last].reshape(last - first, -1)


@dataclass(frozen=True)
class Gradient:
    """The gradient of a block's scale * z + shift: `dy` is 0 wherever the ReLU was.

    `sums` (2, C), float64, holds those of dy and of dy * z over all pixels, for the batch norm.
    """

    dy: np.ndarray
    sums: np.ndarray


def row_of(pixel: np.ndarray, count: int) -> np.ndarray:
    """`count` times the same pixel, as one row of float32 values."""
    row = np.empty((count, len(pixel)), np.float32)
    row[...] = pixel
    return row.reshape(-1)


def padded(
    source: Source, n: int, first: int, count: int, left: int, pitch: int, name: str
) -> np.ndarray:
    """Rows first ... first + count of image n, its border around it: (count + 1, pitch * C).

    Rows are `pitch` pixels long, pixel 0 stands at column `left`. The last row is all border:
    windows may reach into it. Work arrays of these names are for this function alone: what the
    same source left there still has its border on the sides.
    """
    _, H, W, C = source.shape
    X = scratch(name, count + 1, pitch * C)
    border = source.border[: pitch * C]
    if not last_use(name, (source.token, X.shape, left)):
        X[...] = border
    low, high = max(first, 0), min(first + count, H)
    if low > first:
        X[: low - first] = border
    if high < first + count:
        X[high - first :] = border
    source.read(n, low, high, X[low - first : high - first, left * C : (left + W) * C])
    return X


def mask_and_sum(dy: np.ndarray, of: Map, n: int, first: int, last: int, sums: np.ndarray) -> None:
    """Zero dy (rows, W * C), rows [first, last) of `of`, where the ReLU did; sum it up in `sums`.

    `sums` (2, C): of dy and of dy * z.
    """
    z = of.band(n, first, last)
    mask = scratch("mask", *dy.shape)
    np.greater(z, of.floors, out=mask, casting="unsafe")
    dy *= mask
    channel_sums(dy, z, sums)


def channel_sums(a: np.ndarray, b: np.ndarray, sums: np.ndarray) -> None:
    """Sums of a and of a * b (rows, W * C) by channel, into `sums` (2, C)."""
    columns = scratch("columns", 2, a.shape[1])
    np.matmul(_ones(len(a)), a, out=columns[:1])
    np.einsum("ij,ij->j", a, b, out=columns[1])
    pixels = columns.reshape(2, -1, sums.shape[1])
    np.matmul(_ones(pixels.shape[1]), pixels, out=sums[:, None])


@cache
def _ones(count: int) -> np.ndarray:
    return np.ones((1, count), np.float32)


def as_gradient(dy: np.ndarray | Gradient, of: Map) -> Gradient:
    """`dy` masked and summed, whoever it comes from."""
    if isinstance(dy, Gradient):
        return dy
    N, H, W, C = of.shape
    masked, slots = empty(N, H, W, C), np.empty((N, 2, C), np.float32)

    def image(n: int) -> None:
        out = masked[n].reshape(H, -1)
        np.copyto(out, dy[n].reshape(H, -1))
        mask_and_sum(out, of, n, 0, H, slots[n])

    run(N, image)
    return Gradient(masked, slots.sum(0, dtype=float))
