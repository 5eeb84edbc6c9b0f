"""Toom-Cook along the row as well: F(4x4, KxK), for many channels.

What `toom_cook` made of the columns is transformed once more along the rows, tiles of 4 pixels
with K - 1 more to P = K + 3 points each. A 4x4 kernel then takes 49 products for 16 outputs,
49/16 C F a pixel in place of 16 C F:

    M[i, j, tile] = V[i, j, tile] . U[i, j]        U[i, j] (C, F), P * P points.

The transforms along the row are tiny matrix products, C values wide: worth it from C = 64 on, in
the backward pass from 32. Lavin & Gray 2015, arXiv:1509.09308, section 4.3.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np

from minicnn.kernels.cpu.blocking import LIMIT_BYTES, LIMIT_PRODUCTS, PIECES, largest_divisor, share
from minicnn.kernels.cpu.memory import empty
from minicnn.kernels.cpu.threads import run, scratch, shares
from minicnn.kernels.cpu.toom_cook import OUTPUTS, strided, toom

CHUNK = 1024  # weights transformed at a time
SPLIT = 16  # a batch of small images is W / 16 pieces at least: less is not worth waking a thread
FEW = 100  # tiles: with fewer, the weights are most of the work


@cache
def filters(K: int) -> np.ndarray:
    """G along both axes, (P * P, K * K)."""
    G = toom(K).filters
    return np.kron(G, G)


class Tiles:
    """A K x K convolution of `inputs` channels to `outputs`: Toom-Cook along both axes.

    Either may be several maps side by side; at the points their channels are joined.
    """

    sets = 1

    def __init__(self, K: int, inputs: Sequence[int], outputs: Sequence[int], W: int) -> None:
        self.K, self.inputs, self.outputs = K, tuple(inputs), tuple(outputs)
        self.C, self.F = sum(inputs), sum(outputs)
        self.P = K + OUTPUTS - 1
        self.W, self.row_tiles = W, -(-W // OUTPUTS)
        self.out_pitch = self.row_tiles * OUTPUTS  # pixels from row to row
        self.pitch = self.out_pitch + K - 1
        self.small = W <= 32  # few pixels, large weights: all tiles of the batch at once

    def strip_rows(self, images: int, rows: int) -> int:
        """How many output rows to work on at a time, a multiple of 4."""
        values = self.P**2 * self.row_tiles * max(self.C, self.F)
        limit = min(LIMIT_BYTES // (4 * values), LIMIT_PRODUCTS // values)
        pieces = max(1, self.W // SPLIT) if self.small else PIECES
        groups = -(-rows // OUTPUTS)
        return OUTPUTS * share(groups, min(limit, images * groups // pieces))

    def weights(self, w: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """w (K, K, C, F), its inputs times `scale`, to (P * P, C, F)."""
        U = empty(self.P**2, self.C, self.F)
        rows = largest_divisor(self.C, CHUNK // self.F)

        def chunk(j: int) -> None:
            part = slice(j * rows, (j + 1) * rows)
            own = scratch("w", self.K, self.K, rows, self.F)
            np.multiply(w[:, :, part], scale[part, None], out=own)
            out = U[:, part].reshape(len(U), -1)
            np.matmul(filters(self.K), own.reshape(self.K**2, -1), out=out)

        run(self.C // rows, chunk)
        return U

    def adjoint(self, w: np.ndarray) -> tuple["Tiles", np.ndarray]:
        """What takes the gradient of the outputs to that of the inputs, and its weights."""
        back = Tiles(self.K, self.outputs, self.inputs, self.W)
        return back, w[::-1, ::-1].transpose(0, 1, 3, 2)

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

    def products(
        self, V: np.ndarray, U: np.ndarray | tuple[np.ndarray, np.ndarray], M: np.ndarray
    ) -> None:
        """M (P * P, tiles, F) of V (P * P, tiles, C) and the weights U, or (w, `scale`) to be.

        For few tiles U is larger than all else; it is made for some outputs at a time then, and
        does not leave the cache.
        """
        if not isinstance(U, np.ndarray) and V.shape[1] >= FEW:
            U = self.weights(*U)
        if isinstance(U, np.ndarray):
            return _by_points(V, U, M)
        w, scale = U
        wide = self._wide(self.F, self.C)

        def outputs(j: int) -> None:
            part = slice(j * wide, (j + 1) * wide)
            own = scratch("w", self.K, self.K, self.C, wide)
            np.multiply(w[..., part], scale[:, None], out=own)
            some = scratch("U", self.P**2, self.C, wide)
            _by_chunks(filters(self.K), own.reshape(self.K**2, -1), some.reshape(len(some), -1))
            np.matmul(V, some, out=M[:, :, part])

        run(self.F // wide, outputs)

    def gradient(self, V: np.ndarray, dM: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The gradient of w (K, K, C, F), times `scale` (C, F), from V and M's gradient."""
        if V.shape[1] >= FEW:
            sums = empty(1, self.P**2, self.C, self.F)
            _by_points(V.transpose(0, 2, 1), dM, sums[0])
            return self.dw(sums, scale)
        dw = empty(self.K, self.K, self.C, self.F)
        wide = self._wide(self.C, self.F)

        def inputs(j: int) -> None:
            part = slice(j * wide, (j + 1) * wide)
            dU = scratch("U", self.P**2, wide, self.F)
            np.matmul(V[:, :, part].transpose(0, 2, 1), dM, out=dU)
            own = scratch("w", self.K, self.K, wide, self.F)
            _by_chunks(filters(self.K).T, dU.reshape(len(dU), -1), own.reshape(self.K**2, -1))
            np.multiply(own, scale[part], out=dw[:, :, part])

        run(self.C // wide, inputs)
        return dw

    def _wide(self, channels: int, others: int) -> int:
        """Channels to take at a time: their weights fit in cache, and every thread has some."""
        in_cache = LIMIT_BYTES * 4 // 5 // (4 * self.P**2 * others)
        return largest_divisor(channels, min(in_cache, channels // 4))

    def sums(self, lanes: int) -> np.ndarray:
        """Room to add the gradient of the weights up in, for each lane."""
        return empty(lanes, self.P**2, self.C, self.F)

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
        self,
        points: Sequence[np.ndarray],
        dM: np.ndarray,
        strips: int,
        sums: np.ndarray,
        first: bool,
    ) -> None:
        """U's gradient, every tile times the gradient of what it made: put it into `sums`, or,
        if it is not the first there, add it."""
        tiles = strips * self.row_tiles
        V = self.tiled(points, strips, scratch("V2", self.P**2, tiles, self.C))
        dM2 = self.spread(dM, strips, scratch("M2", self.P**2, tiles, self.F))
        product = sums if first else scratch("dU", *sums.shape)
        np.matmul(V.transpose(0, 2, 1), dM2, out=product)
        if not first:
            sums += product

    def dw(self, sums: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The lanes' sums to the gradient of w (K, K, C, F), times `scale` (C, F)."""
        dw = empty(self.K**2, self.C * self.F)
        sums, scale = sums.reshape(len(sums), self.P**2, -1), scale.reshape(-1)

        def chunk(j: int) -> None:
            part = slice(j * CHUNK, (j + 1) * CHUNK)
            np.matmul(filters(self.K).T, sums[:, :, part].sum(0), out=dw[:, part])
            dw[:, part] *= scale[part]

        run(-(-self.C * self.F // CHUNK), chunk)
        return dw.reshape(self.K, self.K, self.C, self.F)


def _by_points(A: np.ndarray, B: np.ndarray, out: np.ndarray) -> None:
    """out[p] = A[p] @ B[p], some points for every thread."""
    parts = shares(len(A), 8)

    def some(j: int) -> None:
        points = slice(parts[j].start, parts[j].stop)
        np.matmul(A[points], B[points], out=out[points])

    run(len(parts), some)


def _by_chunks(matrix: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """out = matrix @ rows, cut into products that OpenBLAS does without copies."""
    (height, width), chunk = matrix.shape, largest_divisor(rows.shape[1], CHUNK)
    count, length = rows.shape[1] // chunk, rows.shape[1]
    source = strided(rows, 0, (count, width, chunk), (chunk, length, 1))
    np.matmul(matrix, source, out=strided(out, 0, (count, height, chunk), (chunk, length, 1)))
