"""Processes that share a batch: what is summed over a batch must be summed over all of them.

A convolution knows nothing of this. Batch norm does, whose statistics are the batch's, and so do
losses that are means or ratios of sums. They ask a `Ranks`; how its sums are made, by MPI or by
NCCL, is the application's business.
"""

from minicnn.backend import Array


class Ranks:
    """`count` processes with equally many pixels of a batch each; this one is alone."""

    count = 1

    def sum(self, a: Array) -> Array:
        """The sum of all ranks' `a`, the same bits on each of them; all must ask for it."""
        return a

    def mean(self, a: Array) -> Array:
        """The mean of all ranks' `a`."""
        return self.sum(a) / self.count

    def __deepcopy__(self, memo: object) -> "Ranks":
        """A copy of a net is among the same ranks."""
        return self


ALONE = Ranks()
