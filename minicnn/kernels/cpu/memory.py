"""Large arrays out of memory that is used again: a fresh page costs more than the arithmetic on it.

`empty` is `numpy.empty` but for where the memory comes from. When the last view of an array dies,
its block goes to a list of free ones and serves the next array of about that size; nobody has to
give anything back, and no array that someone still holds is ever written over.
"""

import threading
import weakref
from collections import deque

import numpy as np

SMALL = 1 << 16  # below this many bytes, NumPy's own allocator is as good
KEEP = 1 << 31  # bytes of free blocks kept at most

_lock = threading.RLock()  # a finaliser may run inside any allocation, this module's too
_free: dict[int, list[np.ndarray]] = {}  # by size; the sizes longest unused come first
_returned: deque[np.ndarray] = deque()


def empty(*shape: int) -> np.ndarray:
    """An uninitialised float32 array."""
    size = 1
    for length in shape:
        size *= length
    if size * 4 < SMALL:
        return np.empty(shape, np.float32)
    block = _take(size)
    # Views remember the array they were cut from, up to one whose memory is not an array's: this.
    handle = np.frombuffer(block.data, np.float32)
    weakref.finalize(handle, _returned.append, block)
    return handle[:size].reshape(shape)


def _take(size: int) -> np.ndarray:
    """The smallest free block of at least `size` values, if it is not too large; else a new one."""
    with _lock:
        while _returned:
            block = _returned.popleft()
            _free.setdefault(block.size, []).append(block)
        fitting = (
            size
            if size in _free
            else min((known for known in _free if size <= known <= size + size // 4), default=None)
        )
        if fitting is not None:
            blocks = _free.pop(fitting)
            block = blocks.pop()
            if blocks:
                _free[fitting] = blocks
            return block
        while sum(4 * known * len(blocks) for known, blocks in _free.items()) > KEEP:
            del _free[next(iter(_free))]
    return np.empty(size, np.float32)


def clear() -> None:
    """Give all free blocks back to the system."""
    with _lock:
        _returned.clear()
        _free.clear()
