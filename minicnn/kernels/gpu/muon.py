"""Muon's step for all kernels of a net: the launches of muon.cu."""

import cupy
import numpy as np

from minicnn.backend import Array
from minicnn.kernels.gpu.launches import KERNELS, MOST_KERNELS, THREADS, launch

A, Q, T, P, NEXT, PARTS = range(6)  # the small matrices, as in muon.cu
ROWS, COLS, BLOCK, SHARE = 128, 64, 128, 512  # a tile; its threads; rows in a part of u'u
MOST_COLS = 256
Row = tuple[Array, Array, Array, Array]


def suits_muon(p: Array) -> bool:
    """Whether muon.cu can move a kernel: as a matrix it is tall, and its columns come in fours."""
    rows, cols = p.size // p.shape[-1], p.shape[-1]
    return bool(p.dtype == np.float32 and cols % 4 == 0 and cols <= min(rows, MOST_COLS))


def muon(
    rows: list[Row], lr: float, momentum: float, polynomial: tuple[float, float, float], rounds: int
) -> None:
    """One step for kernels with their gradients, momenta and lengths; all of them `suits_muon`."""
    for start in range(0, len(rows), MOST_KERNELS):
        _step(rows[start : start + MOST_KERNELS], lr, momentum, polynomial, rounds)


def _step(
    kernels: list[Row],
    lr: float,
    momentum: float,
    polynomial: tuple[float, float, float],
    rounds: int,
) -> None:
    table, blocks, size = _table(kernels)
    work = cupy.empty(size, np.float32)
    squares = cupy.empty(int(blocks["turn"].sum()), np.float32)

    def run(name: str, what: str, *arguments: object, grid: int = 1) -> None:
        counts = blocks[what]
        table["first"][: len(counts)] = np.cumsum(counts) - counts
        threads = THREADS if what in ("fours", "small fours") else BLOCK
        launch("muon", name, (int(counts.sum()), grid), (threads,), table, *arguments)

    def multiply(left: int, right: int, out: int, *more: float, by: int = 0, to: int = -1) -> None:
        a, b, c = more or (0, 0, 1)
        jobs = 1 if to < 0 else 2
        run("muon_product", "small", work, left, right, out, by, to, a, b, c, grid=jobs)

    run("muon_momentum", "fours", work, momentum)
    run("muon_gram", "gram", work)
    run("muon_start", "small fours", work)
    product, following = P, NEXT
    for number in range(rounds):
        multiply(A, A, Q, *polynomial)
        if number < rounds - 1:
            multiply(A, Q, T, by=product, to=following)
            multiply(T, Q, A)
        else:
            multiply(product, Q, following)
        product, following = following, product
    run("muon_turn", "turn", work, squares, product, lr)
    run("muon_length", "fours", squares)


def _table(kernels: list[Row]) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    """The table of muon.cu, how many blocks each launch has for each kernel, numbers in `work`."""
    table, count = np.zeros((), KERNELS), len(kernels)
    for p, g, m, length in kernels:  # their addresses go in a table, where no launch checks them
        for a in (p, g, m, length):
            if a.dtype != np.float32 or not a.flags.c_contiguous or a.data.ptr % 16:
                raise TypeError("Muon moves aligned float32 arrays without gaps only")
        if not p.shape == g.shape == m.shape or length.size != 1:
            raise ValueError(f"Muon takes arrays of one shape, not {p.shape} {g.shape} {m.shape}")
    for column, name in enumerate(("p", "g", "m", "length")):
        table[name][:count] = [kernel[column].data.ptr for kernel in kernels]
    n = np.array([p.shape[-1] for p, *_ in kernels])
    size = np.array([p.size for p, *_ in kernels])
    rows, down, across = size // n, -(-n // ROWS), -(-n // COLS)
    parts, tiles = -(-rows // SHARE), -(-rows // ROWS) * across
    own = size + (PARTS + parts) * n * n  # u and the small matrices
    start = MOST_KERNELS + np.cumsum(own) - own
    table["count"] = count
    values = {"rows": rows, "cols": n, "u": start, "small": start + size}
    for name, each in (values | {"tile": np.cumsum(tiles) - tiles}).items():
        table[name][:count] = each
    fours = 4 * THREADS
    blocks = {"fours": -(-size // fours), "small fours": -(-n * n // fours), "turn": tiles}
    blocks |= {"small": down * across, "gram": down * across * parts}
    return table, blocks, int(start[-1] + own[-1])
