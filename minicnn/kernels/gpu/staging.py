"""Batches on their way to the GPU: the next one is copied while this one is used."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import cupy
import numpy as np

from minicnn.backend import Array


def staged(batches: Iterable[tuple[np.ndarray, ...]]) -> Iterator[tuple[Array, ...]]:
    """See `minicnn.backend.staged`: two sets of arrays take turns, filled by a second stream."""
    copying, computing = cupy.cuda.Stream(non_blocking=True), cupy.cuda.get_current_stream()
    slots = deque([_Slot(), _Slot()])
    ready: deque[_Slot] = deque()
    try:
        for batch in batches:
            slots[0].fill(batch, copying, computing)
            ready.append(slots[0])
            slots.rotate()
            if len(ready) == 2:
                yield from ready.popleft().lend(computing)
        for slot in ready:
            yield from slot.lend(computing)
    finally:
        copying.synchronize()  # else memory would go back to its pool with a copy under way


class _Slot:
    """A batch's place on the device, and the page-locked memory through which it gets there."""

    def __init__(self) -> None:
        self.copied, self.used = cupy.cuda.Event(), cupy.cuda.Event()
        self.locked: list[np.ndarray] = []
        self.arrays: list[Array] = []

    def fill(self, batch: tuple[np.ndarray, ...], copying: Any, computing: Any) -> None:
        """Start the copy. It waits on the GPU until the batch before has been used."""
        self.copied.synchronize()  # the copy before this one has left the page-locked memory
        if [a.shape for a in self.arrays] != [a.shape for a in batch]:
            self.locked = [_page_locked(a) for a in batch]
            self.arrays = [cupy.empty(a.shape, a.dtype) for a in batch]
            self.used.record(computing)  # their memory may come from arrays that are still in use
        copying.wait_event(self.used)
        for source, locked, array in zip(batch, self.locked, self.arrays, strict=True):
            locked[...] = source
            array.set(locked, stream=copying)
        self.copied.record(copying)

    def lend(self, stream: Any) -> Iterator[tuple[Array, ...]]:
        """The batch, for as long as the caller's next kernels take."""
        stream.wait_event(self.copied)
        yield tuple(self.arrays)
        self.used.record(stream)


def _page_locked(like: np.ndarray) -> np.ndarray:
    memory = cupy.cuda.alloc_pinned_memory(like.nbytes)
    return np.frombuffer(memory, like.dtype, like.size).reshape(like.shape)
