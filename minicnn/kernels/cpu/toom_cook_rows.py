"""Along a row, a window is contiguous: convolving a row is a matrix product on the row itself.

In NHWC the K pixels of a window lie side by side, K * C values. Windows K pixels apart do not
overlap and are the rows of a matrix that needs no copy; K such matrices hold all windows:

    M[i, x] = V[i, x : x + K] . U[i]         U[i] (K * C, F), for every point i of `toom_cook`.

With F(4, 4) down the columns that makes 7 C F products a pixel in place of 16, and no transform
along the row: best for few channels. Products on overlapping windows of what is there, in place of
copies of them, are the idea of Cho & Brand 2017, arXiv:1706.06873.
"""

from collections.abc import Sequence

import numpy as np

from minicnn.kernels.cpu.blocking import LIMIT_BYTES, LIMIT_PRODUCTS, PIECES, largest_divisor, share
from minicnn.kernels.cpu.memory import empty
from minicnn.kernels.cpu.threads import scratch
from minicnn.kernels.cpu.toom_cook import OUTPUTS, combine, strided, toom

Weights = list[list[np.ndarray]]

MULTIPLIED, CORRELATED = 1100, 300  # pixels in one matrix product that are fastest


def windows(
    a: np.ndarray, planes: int, parts: int, pixels: int, C: int, wide: int, step: int
) -> np.ndarray:
    """Windows of `wide` pixels, one every `step`: (planes, parts, groups, count, wide * C).

    a: flat, `planes` planes of `parts` of `pixels` pixels, a multiple of `wide`. The last windows
    reach into the next part; the caller has no use for them, and room for it behind the last.
    """
    part = pixels * C
    return strided(
        a,
        0,
        (planes, parts, wide // step, pixels // wide, wide * C),
        (parts * part, part, step * C, wide * C, 1),
    )


def interleaved(
    a: np.ndarray, planes: int, parts: int, pixels: int, F: int, groups: int
) -> np.ndarray:
    """Pixels as (planes, parts, groups, count, F), group g every `groups`-th one from g on."""
    part = pixels * F
    return strided(
        a,
        0,
        (planes, parts, groups, pixels // groups, F),
        (parts * part, part, F, groups * F, 1),
    )


class Windows:
    """A K x K convolution of `inputs` channels to `outputs`: Toom-Cook down, windows along.

    Either may be several maps side by side. Two inputs are two sets of points, which the way
    back from the points adds up.
    """

    small = False

    def __init__(self, K: int, inputs: Sequence[int], outputs: Sequence[int], W: int) -> None:
        self.K, self.inputs, self.outputs = K, tuple(inputs), tuple(outputs)
        self.P = K + OUTPUTS - 1
        self.W = W
        self.pitch = self.out_pitch = -(-(W + K - 1) // K) * K  # pixels from row to row
        self.sets = len(self.inputs)

    def strip_rows(self, images: int, rows: int) -> int:
        """How many output rows to work on at a time, a multiple of 4."""
        C, F = sum(self.inputs), sum(self.outputs)
        in_cache = LIMIT_BYTES // (4 * self.P * self.pitch * (C + F))
        small_products = LIMIT_PRODUCTS // (self.pitch * max(self.inputs) * max(self.outputs))
        groups = -(-rows // OUTPUTS)
        return OUTPUTS * share(groups, min(in_cache, small_products, images * groups // PIECES))

    def weights(self, w: np.ndarray, scale: np.ndarray) -> Weights:
        """w (K, K, C, F), its inputs times `scale`, to a (P, 1, 1, K * C, F) for each of its inputs
        and outputs."""
        U = combine(toom(self.K).filters, w * scale[:, None])  # (P, K, C, F)
        return [
            [
                np.ascontiguousarray(part).reshape(self.P, 1, 1, -1, F)
                for part in _split(u, self.inputs, 2)
            ]
            for u, F in zip(_split(U, self.outputs, 3), self.outputs, strict=True)
        ]

    def adjoint(self, w: np.ndarray) -> tuple["Windows", np.ndarray]:
        """What takes the gradient of the outputs to that of the inputs, and its weights."""
        back = Windows(self.K, self.outputs, self.inputs, self.W)
        return back, w[::-1, ::-1].transpose(0, 1, 3, 2)

    def multiply(self, points: Sequence[np.ndarray], U: Weights, strips: int) -> list[np.ndarray]:
        """Inputs at the points to outputs at the points: sets of (P, strips, pitch, F)."""
        pixels = strips * self.pitch
        parts = pixels // self._part(strips, MULTIPLIED)
        shape = self.P, parts, pixels // parts
        results = []
        for index, (row, F) in enumerate(zip(U, self.outputs, strict=True)):
            M = scratch(f"M{index}", self.sets, self.P * pixels * F)
            for V, u, C, m in zip(points, row, self.inputs, M, strict=True):
                out = interleaved(m, *shape, F, self.K)
                np.matmul(windows(V, *shape, C, self.K, 1), u, out=out)
            results.append(M)
        return results

    def _part(self, strips: int, limit: int) -> int:
        """About `limit` pixels, in whole strips."""
        return self.pitch * largest_divisor(strips, limit // self.pitch)

    def sums(self, lanes: int) -> np.ndarray:
        """Room to add the gradient of the weights up in, for each lane."""
        return empty(lanes, self.P, self.K * sum(self.inputs), *self.outputs)

    def correlate(
        self,
        points: Sequence[np.ndarray],
        dM: np.ndarray,
        strips: int,
        sums: np.ndarray,
        first: bool,
    ) -> None:
        """U's gradient, every window times the gradient of what it made: put it into `sums`, or,
        if it is not the first there, add it."""
        pixels = strips * self.pitch
        parts = pixels // self._part(strips, CORRELATED)
        shape = self.P, parts, pixels // parts
        (F,) = self.outputs
        dy = interleaved(dM, *shape, F, self.K)
        start = 0
        for V, C in zip(points, self.inputs, strict=True):
            x = windows(V, *shape, C, self.K, 1)
            products = scratch("dU", self.P, parts, self.K, self.K * C, F)
            np.matmul(x.swapaxes(3, 4), dy, out=products)
            own = sums[:, start : start + self.K * C]
            if first:
                np.add.reduce(products, (1, 2), out=own)
            else:
                own += np.add.reduce(products, (1, 2), out=scratch("dU sum", *own.shape))
            start += self.K * C

    def dw(self, sums: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The lanes' sums to the gradient of w (K, K, C, F), times `scale` (C, F)."""
        total = sums.sum(0)  # (P, K * C of all inputs, F)
        parts = _split(total, [self.K * C for C in self.inputs], 1)
        dU = np.concatenate([part.reshape(self.P, self.K, -1, *self.outputs) for part in parts], 2)
        dw = combine(toom(self.K).filters.T, dU)
        dw *= scale
        return dw


def _split(a: np.ndarray, sizes: Sequence[int], axis: int) -> list[np.ndarray]:
    return [a] if len(sizes) == 1 else np.split(a, np.cumsum(sizes)[:-1], axis)
