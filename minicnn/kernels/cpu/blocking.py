"""How much of an image to work on at a time: strips of rows that stay in cache."""

from dataclasses import dataclass
from functools import cache

LIMIT_BYTES = 2 << 20  # of work arrays at a time: about a core's second cache
LIMIT_PRODUCTS = 1_000_000  # in one matrix product: up to here OpenBLAS need not copy its inputs
PIECES = 2  # of a batch, at least: more of a small one are not worth their calls
BAND_VALUES = 1 << 17  # values of an image worked on at a time, where there are no products


@cache
def largest_divisor(total: int, limit: int) -> int:
    """The largest divisor of `total` that is at most `limit`, at least 1."""
    return next(d for d in range(max(1, min(total, limit)), 0, -1) if total % d == 0)


def share(total: int, limit: int) -> int:
    """At most `limit`: a divisor of `total`, or, if none is near, what leaves little over."""
    limit = max(1, min(total, limit))
    divisor = largest_divisor(total, limit)
    return divisor if 2 * divisor > limit else -(-total // -(-total // limit))


@dataclass(frozen=True)
class Strips:
    """Images of H rows in strips of `rows` rows. The last of an image may reach below its end."""

    rows: int
    H: int
    count: int  # of strips in all images

    def place(self, j: int) -> tuple[int, int, int]:
        """Strip j: its image, its first row there, and the row behind its last."""
        n, k = divmod(j, -(-self.H // self.rows))
        return n, k * self.rows, min((k + 1) * self.rows, self.H)


def strips(N: int, H: int, rows: int) -> Strips:
    """N images of H rows, cut into strips of `rows`."""
    return Strips(rows, H, N * -(-H // rows))


def bands(N: int, H: int, row_values: int, multiple: int = 1) -> Strips:
    """Strips of about BAND_VALUES values, each a `multiple` of so many rows."""
    return strips(N, H, multiple * share(H // multiple, BAND_VALUES // (multiple * row_values)))
