"""A batch in parts, one for each of several processes: what is summed over it, is over all parts.

A convolution knows nothing of this. Batch norm does, whose statistics are the whole batch's, and so
do losses that are means or ratios of sums. They call the last three functions; who adds up
the parts, MPI or NCCL, is the application's business: it says so once, by `sharing`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from minicnn.backend import Array


class Ranks:
    """`count` processes with equally many pixels of a batch each; this one is alone."""

    count = 1
    rank = 0

    def sum(self, a: Array) -> Array:
        """The sum of all ranks' `a`, the same bits on each of them; all must ask for it."""
        return a

    def hand_round(self, arrays: Sequence[Array], owners: Sequence[int]) -> None:
        """Put each array's values on the rank that owns it in its place on all others."""

    def shared_out(self, work: Sequence[float]) -> list[int]:
        """For each of several jobs, given the work it is, the rank that does it: one after the
        other to the rank that has the least to do so far."""
        loads, owners = [0.0] * self.count, []
        for each in work:
            owners.append(loads.index(min(loads)))
            loads[owners[-1]] += each
        return owners


_ranks = Ranks()  # those of this process


@contextmanager
def sharing(ranks: Ranks) -> Iterator[None]:
    """Inside, a batch is this process's part of the one that all `ranks` hold together.

    A forward pass, its loss and its backward pass belong into the same one.
    """
    global _ranks
    before, _ranks = _ranks, ranks
    try:
        yield
    finally:
        _ranks = before


def in_force() -> Ranks:
    """The ranks that share the batch, to share other work as well."""
    return _ranks


def parts() -> int:
    """In how many equal parts the batch is: 1 unless processes share it."""
    return _ranks.count


def sum_of_parts(a: Array) -> Array:
    """The sum of `a` over all parts of the batch."""
    return _ranks.sum(a)


def mean_of_parts(a: Array) -> Array:
    """The mean of `a` over all parts of the batch."""
    return _ranks.sum(a) / _ranks.count
