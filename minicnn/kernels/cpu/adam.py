"""Adam's step in place, piece by piece that stays in cache, all parameters in one go.

m, v and p are read and written once each. With m and v moved towards g and g^2, the step

    p -= step m / (sqrt(v) / root + eps)  =  (step root) m / (sqrt(v) + eps root)

is twelve passes over a piece, none of which asks for memory. Kingma & Ba 2015, arXiv:1412.6980.
"""

import numpy as np

from minicnn.kernels.cpu.threads import run, scratch

PIECE = 1 << 17  # values: with smaller ones, threads wait for Python more than they work

Row = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # p, g, m, v


def adam(
    rows: list[Row],
    betas: tuple[float, float],
    step: float,
    root: float,
    eps: float,
) -> None:
    """Move all parameters: see `minicnn.optim`."""
    pieces = [(row, start) for row in rows for start in range(0, row[0].size, PIECE)]

    def piece(j: int) -> None:
        row, start = pieces[j]
        p, g, m, v = (array.reshape(-1)[start : start + PIECE] for array in row)
        x = scratch("adam", p.size)
        np.subtract(g, m, out=x)
        x *= np.float32(1 - betas[0])
        m += x
        np.multiply(g, g, out=x)
        x -= v
        x *= np.float32(1 - betas[1])
        v += x
        np.sqrt(v, out=x)
        x += np.float32(eps * root)
        np.divide(m, x, out=x)
        x *= np.float32(step * root)
        p -= x

    run(len(pieces), piece)
