"""Fewer multiplications for a convolution along one axis: Toom and Cook's trick.

Four outputs of a filter g with r taps, slid over r + 3 inputs d, are

    y = A^T [(G g) * (B^T d)]        with r + 3 products where the plain sum needs 4 r:

read g and d as polynomials, evaluate both at r + 3 points (G and B^T), multiply point by point,
interpolate (A^T). With r = 4: 7 products for 16. The transforms are small constant matrices; what
they act on are whole rows of an image, so each is one matrix product with a very long side.

Lavin & Gray 2015, arXiv:1509.09308; for the matrices Toom 1963, Cook 1966. All functions work on
flat float32 buffers: `strided` cuts the view that is meant, offsets and strides counted in values.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from minicnn.kernels.cpu.threads import run, scratch

OUTPUTS = 4  # made at a time, along the axis
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5)  # small numbers: their powers are what costs digits
ONE = 1  # where 1 is among them: its powers are all 1, what is added there reaches every output


class Toom(NamedTuple):
    """The matrices for `taps` taps: one column of `outputs`, one row of the others per point."""

    outputs: np.ndarray  # A^T (4, P)
    filters: np.ndarray  # G (P, taps)
    inputs: np.ndarray  # B^T (P, P), P = taps + 3
    spread: np.ndarray  # A (P, 4)
    twice: np.ndarray  # [A^T A^T] (4, 2 P): adds two sets of points


@cache
def toom(taps: int) -> Toom:
    """The matrices from the points, the last of which is infinity: see docs/performance.md.

    Column p of A^T holds the powers of p; row p of G the powers over prod(p - q); row p of B^T
    the coefficients of prod(x - q), q being all other finite points. At infinity a polynomial is
    its leading coefficient.
    """
    P = taps + OUTPUTS - 1
    points = POINTS[: P - 1]
    outputs, filters, inputs = np.zeros((OUTPUTS, P)), np.zeros((P, taps)), np.zeros((P, P))
    for i, p in enumerate(points):
        others = [q for q in points if q != p]
        outputs[:, i] = p ** np.arange(OUTPUTS)
        filters[i] = p ** np.arange(taps) / np.prod([p - q for q in others])
        inputs[i, : P - 1] = np.poly(others)[::-1]
    outputs[-1, -1] = filters[-1, -1] = 1
    inputs[-1] = np.poly(points)[::-1]
    twice = np.hstack([outputs, outputs])
    matrices = outputs, filters, inputs, outputs.T, twice
    return Toom._make(np.ascontiguousarray(m, np.float32) for m in matrices)


def strided(a: np.ndarray, offset: int, shape: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """A view of the flat buffer that `a` is, offset and strides in values."""
    return np.ndarray(shape, np.float32, a, 4 * offset, _bytes(*strides))


@cache
def _bytes(*strides: int) -> tuple[int, ...]:
    return tuple(4 * step for step in strides)


def combine(matrix: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """A sum of planes (first axis) for each row of `matrix`."""
    out = np.empty((len(matrix), *planes.shape[1:]), np.float32)

    def product(_: int) -> None:
        np.matmul(matrix, planes.reshape(len(planes), -1), out=out.reshape(len(matrix), -1))

    run(1, product)  # where BLAS has one thread
    return out


def to_points(
    rows: np.ndarray,
    taps: int,
    strips: int,
    length: int,
    step: int,
    out: np.ndarray,
    offset: int = 0,
) -> None:
    """B^T down the columns: `strips` groups of 4 rows, with taps - 1 more, to P rows each.

    rows: rows of `step` values, from `offset` on; out (P, strips, length).
    """
    P = taps + OUTPUTS - 1
    source = strided(rows, offset, (strips, P, length), (OUTPUTS * step, step, 1))
    target = strided(out, 0, (strips, P, length), (length, strips * length, 1))
    np.matmul(toom(taps).inputs, source, out=target)


def from_points(
    points: np.ndarray,
    taps: int,
    strips: int,
    length: int,
    step: int,
    out: np.ndarray,
    sets: int = 1,
    offset: int = 0,
) -> None:
    """A^T down the columns: points (sets * P, strips, step), of which `length` values from
    `offset` on, to rows out (4 strips, length) of any strides. Sets of points are added up. Rows
    that `out` has no place for, because its image ends there, are left out.
    """
    whole = len(out) == OUTPUTS * strips
    rows = out if whole else scratch("rows", OUTPUTS * strips, length)
    P = sets * (taps + OUTPUTS - 1)
    source = strided(points, offset, (strips, P, length), (step, strips * step, 1))
    matrix = toom(taps).outputs if sets == 1 else toom(taps).twice
    np.matmul(matrix, source, out=rows.reshape(strips, OUTPUTS, length))
    if not whole:
        np.copyto(out, rows[: len(out)])


def spread(
    rows: np.ndarray,
    taps: int,
    strips: int,
    length: int,
    step: int,
    out: np.ndarray,
    offset: int = 0,
) -> None:
    """A down the columns, the adjoint of `from_points`: out (P, strips, length)."""
    P = taps + OUTPUTS - 1
    source = strided(rows, offset, (strips, OUTPUTS, length), (OUTPUTS * step, step, 1))
    target = strided(out, 0, (strips, P, length), (length, strips * length, 1))
    np.matmul(toom(taps).spread, source, out=target)
