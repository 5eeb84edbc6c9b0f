"""Along a row, a window is contiguous: convolving a row is a matrix product on the row itself.

In NHWC the K pixels of a window lie side by side, K * C values. Windows K pixels apart do not
overlap and are the rows of a matrix that needs no copy; K such matrices hold all windows:

    M[i, x] = V[i, x : x + K] . U[i]         U[i] (K * C, F), for every point i of `cpu_toom`.

With F(4, 4) down the columns that makes 7 C F products a pixel in place of 16, and no transform
along the row: best for few channels.
"""

from collections.abc import Sequence

import numpy as np

from minicnn.kernels.cpu_toom import OUTPUTS, strided, toom
from minicnn.threads import scratch

Weights = list[list[np.ndarray]]


def windows(a: np.ndarray, planes: int, pixels: int, C: int, wide: int, step: int) -> np.ndarray:
    """Windows of `wide` pixels, one every `step`, as matrices (planes, groups, count, wide * C).

    a: flat, `planes` planes of `pixels` pixels, a multiple of `wide`. The last windows reach
    into the next plane; the caller has no use for them, and room for it behind the last.
    """
    groups = wide // step
    return strided(
        a, 0, (planes, groups, pixels // wide, wide * C), (pixels * C, step * C, wide * C, 1)
    )


def interleaved(a: np.ndarray, planes: int, pixels: int, F: int, groups: int) -> np.ndarray:
    """Pixels as matrices (planes, groups, count, F), group g every `groups`-th one from g on."""
    return strided(a, 0, (planes, groups, pixels // groups, F), (pixels * F, F, groups * F, 1))


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

    def strips(self, rows: int) -> int:
        """Groups of 4 output rows, out of `rows`, to work on at a time."""
        C, F = sum(self.inputs), sum(self.outputs)
        in_cache = LIMIT_BYTES // (4 * self.P * self.pitch * (C + F))
        small_products = LIMIT_PRODUCTS // (self.pitch * max(self.inputs) * max(self.outputs))
        return largest_divisor(rows // OUTPUTS, min(in_cache, small_products))

    def weights(self, w: np.ndarray, scale: np.ndarray) -> Weights:
        """w (K, K, C, F), its inputs times `scale`, to a (P, 1, K * C, F) for each of its inputs
        and outputs."""
        U = np.tensordot(toom(self.K).filters, w * scale[:, None], 1)  # (P, K, C, F)
        return [
            [
                np.ascontiguousarray(part).reshape(self.P, 1, -1, F)
                for part in _split(u, self.inputs, 2)
            ]
            for u, F in zip(_split(U, self.outputs, 3), self.outputs, strict=True)
        ]

    def adjoint(self, w: np.ndarray, scale: np.ndarray) -> tuple["Windows", Weights]:
        """What takes the gradient of the outputs, times `scale`, to that of the inputs."""
        back = Windows(self.K, self.outputs, self.inputs, self.W)
        return back, back.weights(w[::-1, ::-1].transpose(0, 1, 3, 2), scale)

    def multiply(self, points: Sequence[np.ndarray], U: Weights, strips: int) -> list[np.ndarray]:
        """Inputs at the points to outputs at the points: sets of (P, strips, pitch, F)."""
        pixels = strips * self.pitch
        results = []
        for index, (row, F) in enumerate(zip(U, self.outputs, strict=True)):
            M = scratch(f"M{index}", self.sets, self.P * pixels * F)
            for V, u, C, m in zip(points, row, self.inputs, M, strict=True):
                np.matmul(
                    windows(V, self.P, pixels, C, self.K, 1),
                    u,
                    out=interleaved(m, self.P, pixels, F, self.K),
                )
            results.append(M)
        return results

    def sums(self, lanes: int) -> np.ndarray:
        """Zeros to add the gradient of the weights up in, for each lane."""
        shape = lanes, self.P, self.K, self.K * sum(self.inputs), *self.outputs
        return np.zeros(shape, np.float32)

    def correlate(
        self, points: Sequence[np.ndarray], dM: np.ndarray, strips: int, sums: np.ndarray
    ) -> None:
        """Add U's gradient to `sums`: every window times the gradient of what it made."""
        pixels = strips * self.pitch
        (F,) = self.outputs
        dy = interleaved(dM, self.P, pixels, F, self.K)
        start = 0
        for V, C in zip(points, self.inputs, strict=True):
            x = windows(V, self.P, pixels, C, self.K, 1)
            product = scratch("dU", self.P, self.K, self.K * C, F)
            np.matmul(x.transpose(0, 1, 3, 2), dy, out=product)
            sums[:, :, start : start + self.K * C] += product
            start += self.K * C

    def dw(self, sums: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The lanes' sums to the gradient of w (K, K, C, F), times `scale` (C, F)."""
        total = sums.sum((0, 2))  # (P, K * C of all inputs, F)
        parts = _split(total, [self.K * C for C in self.inputs], 1)
        dU = np.concatenate([part.reshape(self.P, self.K, -1, *self.outputs) for part in parts], 2)
        return np.tensordot(toom(self.K).filters.T, dU, 1) * scale


def _split(a: np.ndarray, sizes: Sequence[int], axis: int) -> list[np.ndarray]:
    return np.split(a, np.cumsum(sizes)[:-1], axis)


LIMIT_BYTES = 2 << 20  # of work arrays at a time: about a core's second cache
LIMIT_PRODUCTS = 1_000_000  # in one matrix product: up to here OpenBLAS need not copy its inputs


def largest_divisor(total: int, limit: int) -> int:
    """The largest divisor of `total` that is at most `limit`, at least 1."""
    return next(d for d in range(max(1, min(total, limit)), 0, -1) if total % d == 0)
