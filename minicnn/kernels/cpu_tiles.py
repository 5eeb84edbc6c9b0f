"""Toom-Cook along the row as well: F(4x4, KxK), for many channels.

What `cpu_toom` made of the columns is transformed once more along the rows, tiles of 4 pixels
with K - 1 more to P = K + 3 points each. A 4x4 kernel then takes 49 products for 16 outputs,
49/16 C F a pixel in place of 16 C F:

    M[i, j, tile] = V[i, j, tile] . U[i, j]        U[i, j] (C, F), P * P points.

The transforms along the row are tiny matrix products, C values wide: worth it from C = 32 on.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np

from minicnn.kernels.cpu_toom import OUTPUTS, strided, toom
from minicnn.kernels.cpu_windows import LIMIT_BYTES, LIMIT_PRODUCTS, largest_divisor
from minicnn.memory import empty
from minicnn.threads import run, scratch

CHUNK = 1024  # weights transformed at a time


@cache
def filters(K: int) -> np.ndarray:
    """G along both axes, (P * P, K * K)."""
    G = toom(K).filters
    return np.einsum("ik,jl->ijkl", G, G).reshape(len(G) ** 2, K**2)


class Tiles:
    """A K x K convolution of `inputs` channels to `outputs`: Toom-Cook along both axes.

    Either may be several maps side by side; at the points their channels are joined.
    """

    sets = 1

    def __init__(self, K: int, inputs: Sequence[int], outputs: Sequence[int], W: int) -> None:
        self.K, self.inputs, self.outputs = K, tuple(inputs), tuple(outputs)
        self.C, self.F = sum(inputs), sum(outputs)
        self.P = K + OUTPUTS - 1
        self.W, self.row_tiles = W, W // OUTPUTS
        self.pitch, self.out_pitch = W + K - 1, W  # pixels from row to row
        self.small = W <= 32  # few pixels, large weights: all tiles of the batch at once

    def strips(self, rows: int) -> int:
        """Groups of 4 output rows, out of `rows`, to work on at a time."""
        values = self.P**2 * self.row_tiles * max(self.C, self.F)
        limit = min(LIMIT_BYTES // (4 * values), LIMIT_PRODUCTS // values)
        return largest_divisor(rows // OUTPUTS, limit)

    def weights(self, w: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """w (K, K, C, F), its inputs times `scale`, to (P * P, C, F)."""
        K, C, F = self.K, self.C, self.F
        G, U = filters(K), empty(self.P**2, C, F)
        rows = max(1, CHUNK // F)

        def chunk(j: int) -> None:
            part = slice(j * rows, (j + 1) * rows)
            scaled = w[:, :, part] * scale[part, None]
            np.matmul(G, scaled.reshape(K * K, -1), out=U[:, part].reshape(len(G), -1))

        run(-(-C // rows), chunk)
        return U

    def adjoint(self, w: np.ndarray, scale: np.ndarray) -> tuple["Tiles", np.ndarray]:
        """What takes the gradient of the outputs, times `scale`, to that of the inputs."""
        back = Tiles(self.K, self.outputs, self.inputs, self.W)
        return back, back.weights(w[::-1, ::-1].transpose(0, 1, 3, 2), scale)

    def tiled(
        self, points: Sequence[np.ndarray], strips: int, V: np.ndarray, first: int = 0
    ) -> np.ndarray:
        """Inputs at the column points (P, strips, pitch, C) to V (P * P, tiles, C) from tile
        `first` on, the inputs' channels joined."""
        P, C, plane = self.P, self.C, V.shape[1] * self.C
        start = first * C
        for x, own in zip(points, self.inputs, strict=True):
            row = self.pitch * own
            source = strided(
                x,
                0,
                (P, strips, self.row_tiles, P, own),
                (strips * row, row, OUTPUTS * own, own, 1),
            )
            target = strided(V, start, source.shape, (P * plane, self.row_tiles * C, C, plane, 1))
            np.matmul(toom(self.K).inputs, source, out=target)
            start += own
        return V

    def untiled(self, M: np.ndarray, strips: int, first: int = 0) -> list[np.ndarray]:
        """Outputs at all points M (P * P, tiles, F) back along the row: (P, strips, W, F) each."""
        P, F, plane = self.P, self.F, M.shape[1] * self.F
        results, start = [], first * F
        for index, own in enumerate(self.outputs):
            out = scratch(f"M{index}", P, strips, self.row_tiles, OUTPUTS, own)
            source = strided(
                M,
                start,
                (P, strips, self.row_tiles, P, own),
                (P * plane, self.row_tiles * F, F, plane, 1),
            )
            np.matmul(toom(self.K).outputs, source, out=out)
            results.append(out)
            start += own
        return results

    def multiply(
        self, points: Sequence[np.ndarray], U: np.ndarray, strips: int
    ) -> list[np.ndarray]:
        """Inputs at the column points to outputs at the column points, (P, strips, W, F) each."""
        tiles = strips * self.row_tiles
        V = self.tiled(points, strips, scratch("V2", self.P**2, tiles, self.C))
        M = scratch("M2", self.P**2, tiles, self.F)
        np.matmul(V, U, out=M)
        return self.untiled(M, strips)

    def sums(self, lanes: int) -> np.ndarray:
        """Zeros to add the gradient of the weights up in, for each lane."""
        return np.zeros((lanes, self.P**2, self.C, self.F), np.float32)

    def spread(self, dM: np.ndarray, strips: int, out: np.ndarray, first: int = 0) -> np.ndarray:
        """The adjoint of `untiled`: dM (P, strips, pitch, F) to (P * P, tiles, F)."""
        P, F, row, plane = self.P, self.F, self.pitch * self.F, out.shape[1] * self.F
        source = strided(
            dM, 0, (P, strips, self.row_tiles, OUTPUTS, F), (strips * row, row, OUTPUTS * F, F, 1)
        )
        target = strided(
            out,
            first * F,
            (P, strips, self.row_tiles, P, F),
            (P * plane, self.row_tiles * F, F, plane, 1),
        )
        np.matmul(toom(self.K).spread, source, out=target)
        return out

    def correlate(
        self, points: Sequence[np.ndarray], dM: np.ndarray, strips: int, sums: np.ndarray
    ) -> None:
        """Add U's gradient to `sums`: every tile times the gradient of what it made."""
        tiles = strips * self.row_tiles
        V = self.tiled(points, strips, scratch("V2", self.P**2, tiles, self.C))
        dM2 = self.spread(dM, strips, scratch("M2", self.P**2, tiles, self.F))
        product = scratch("dU", *sums.shape)
        np.matmul(V.transpose(0, 2, 1), dM2, out=product)
        sums += product

    def dw(self, sums: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The lanes' sums to the gradient of w (K, K, C, F), times `scale` (C, F)."""
        G = filters(self.K)
        dw = empty(self.K**2, self.C * self.F)
        sums, scale = sums.reshape(len(sums), self.P**2, -1), scale.reshape(-1)

        def chunk(j: int) -> None:
            part = slice(j * CHUNK, (j + 1) * CHUNK)
            total = sums[0, :, part] if len(sums) == 1 else sums[:, :, part].sum(0)
            np.matmul(G.T, total, out=dw[:, part])
            dw[:, part] *= scale[part]

        run(-(-self.C * self.F // CHUNK), chunk)
        return dw.reshape(self.K, self.K, self.C, self.F)
