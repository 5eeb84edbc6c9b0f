"""How much of an image to work on at a time: as much as stays in cache, in pieces of one size."""

from functools import cache

LIMIT_BYTES = 2 << 20  # of work arrays at a time: about a core's second cache
LIMIT_PRODUCTS = 1_000_000  # in one matrix product: up to here OpenBLAS need not copy its inputs
PIECES = 2  # of a batch, at least: more of a small one are not worth their calls
BAND_VALUES = 1 << 17  # values of an image worked on at a time, where there are no products


@cache
def largest_divisor(total: int, limit: int) -> int:
    """The largest divisor of `total` that is at most `limit`, at least 1."""
    return next(d for d in range(max(1, min(total, limit)), 0, -1) if total % d == 0)


def band_rows(H: int, row_values: int, multiple: int = 1) -> int:
    """A number of rows that divides H, of at most about BAND_VALUES values."""
    groups = H // multiple
    return multiple * largest_divisor(groups, BAND_VALUES // (multiple * row_values))
