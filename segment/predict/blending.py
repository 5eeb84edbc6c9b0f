"""Whole images through a network that sees windows: blended, and in bands as low as a window.

Overlapping windows are blended by weights that taper off towards a window's edge, where the
network lacks context: the outermost quarter of an overlap counts nothing, a raised cosine leads
over the middle half. An image is worked down in bands of windows; rows that no later window
reaches are handed on at once, so memory grows with an image's width and not with its height.
A box of an image can be had by itself, to the same bits, from the windows that count in it.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW = 512  # pixels: wider than the tiles of training, for less overlap and more context
BATCH = 4
FEW = 32  # rows

Floats = NDArray[np.float32]
Box = tuple[slice, slice]  # rows and columns of an image, with whole numbers for both ends
Read = Callable[[slice, slice], tuple[NDArray[np.uint8], NDArray[np.bool_]]]
Progress = Callable[[Sequence[Any]], Iterable[Any]]


def window_starts(size: int, window: int, overlap: int, multiple: int) -> list[int]:
    """Where along an axis the windows start: evenly, first to last, at multiples of `multiple`.

    `size` and `window` are multiples themselves. The network pools by `multiple`, so windows that
    start there see what the whole image would. Neighbours overlap by at least `overlap`.
    """
    if size <= window:
        return [0]
    stride = (window - overlap) // multiple * multiple
    steps = -(-(size - window) // stride)
    return [step * (size - window) // steps // multiple * multiple for step in range(steps + 1)]


def tapers(starts: list[int], window: int, overlap: int) -> list[Floats]:
    """Each window's weights along an axis; over all windows they add up to 1 at every pixel.

    The axis' own two ends don't taper: no other window covers them.
    """
    size = starts[-1] + window
    total = np.zeros(size)
    weights = []
    for start in starts:
        at = np.arange(window) + 0.5
        edge = np.minimum(
            at if start > 0 else np.inf, window - at if start + window < size else np.inf
        )
        way = np.clip((edge - overlap / 4) / max(overlap / 2, 1e-9), 0, 1)
        weights.append(0.5 - 0.5 * np.cos(np.pi * way))
        total[start : start + window] += weights[-1]
    return [
        (weight / total[start : start + window]).astype(np.float32)
        for start, weight in zip(starts, weights, strict=True)
    ]


def block_edges(size: int, overlap: int, multiple: int, count: int) -> list[int]:
    """Edges of blocks along an axis, 0 and `size` among them: of blocks of about equal size, as
    few as there may be with about `count` windows in each.

    They lie where a window begins to count, so that a block costs one window more than it has.
    """
    aligned = -(-size // multiple) * multiple
    starts = window_starts(aligned, min(aligned, WINDOW), overlap, multiple)
    blocks = -(-len(starts) // count)
    edges = [start + overlap // 4 for start in starts[1:]]
    even = (size * index / blocks for index in range(1, blocks))
    nearest = {min(edges, key=lambda edge: abs(edge - at)) for at in even}
    inner = sorted(nearest) if count > 1 else edges
    return [0, *(edge for edge in inner if edge < size), size]


def blended_bands(
    predict: Callable[[NDArray[np.uint8]], Floats],
    read: Read,
    shape: tuple[int, int],
    overlap: int,
    multiple: int,
    progress: Progress,
    box: Box | None = None,
) -> Iterator[Floats]:
    """Probabilities of an image of `shape`, or of a box of it, as bands of finished rows.

    `read(rows, columns)` gives a window's pixels (h, w, 3) and validity (h, w); `predict` maps
    windows (N, h, w, 3) to probabilities (N, h, w), h and w divisible by `multiple`. An image that
    isn't is mirrored at its bottom and right edges. Windows without a valid pixel are skipped.
    """
    rows, cols = box or (slice(0, shape[0]), slice(0, shape[1]))
    aligned = [-(-size // multiple) * multiple for size in shape]
    window = min(aligned[0], WINDOW), min(aligned[1], WINDOW)
    down, across = (
        _counting(window_starts(aligned[i], window[i], overlap, multiple), window[i], overlap, span)
        for i, span in enumerate((rows, cols))
    )
    batches = [range(i, min(i + BATCH, len(across))) for i in range(0, len(across), BATCH)]
    first = across[0][0]  # the column of the image where `blended` begins
    blended = np.zeros((window[0], across[-1][0] + window[1] - first), np.float32)
    for index, batch in progress(list(itertools.product(range(len(down)), batches))):
        top, weight = down[index]
        seen = []
        for left, taper in (across[i] for i in batch):
            pixels, valid = _window(read, (top, left), window, shape)
            if valid.any():
                seen.append((slice(left - first, left - first + window[1]), taper, pixels))
        if seen:
            found = predict(np.stack([pixels for _, _, pixels in seen]))
            for (span, taper, _), probability in zip(seen, found, strict=True):
                blended[:, span] += weight[:, None] * taper * probability
        if batch[-1] == len(across) - 1:
            done = (down[index + 1][0] if index + 1 < len(down) else rows.stop) - top
            band = blended[max(rows.start - top, 0) : done, cols.start - first : cols.stop - first]
            if len(band):
                yield band.copy()
            blended[:-done] = blended[done:]
            blended[-done:] = 0


def _counting(
    starts: list[int], window: int, overlap: int, span: slice
) -> list[tuple[int, Floats]]:
    """Start and weights of each window that has a weight above zero within the span."""
    weights = zip(starts, tapers(starts, window, overlap), strict=True)
    return [
        (start, weight)
        for start, weight in weights
        if start < span.stop and weight[max(span.start - start, 0) : span.stop - start].any()
    ]


def _window(
    read: Read, start: tuple[int, int], window: tuple[int, int], shape: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read a window, mirrored where it reaches over the image's bottom and right edges."""
    rows, cols = (slice(start[i], min(start[i] + window[i], shape[i])) for i in (0, 1))
    pixels, valid = read(rows, cols)
    missing = (0, window[0] - len(valid)), (0, window[1] - valid.shape[1])
    return np.pad(pixels, (*missing, (0, 0)), mode="symmetric"), np.pad(valid, missing)


def resampled_bands(
    bands: Iterable[Floats], shape: tuple[int, int], to: tuple[int, int], box: Box | None = None
) -> Iterator[Floats]:
    """Bands of an image of `shape` as bands of the image resized `to` (bilinear).

    With `box`, a box of the resized image is made; the bands are of its `source_box`.
    """
    rows, cols = box or (slice(0, to[0]), slice(0, to[1]))
    source = source_box(shape, to, box) if box else (slice(0, shape[0]), slice(0, shape[1]))
    above, below, share = _between(shape[0], to[0])
    above, below, share = above[rows], below[rows], share[rows]
    left, right, across = _between(shape[1], to[1])
    left, right = left[cols] - source[1].start, right[cols] - source[1].start
    across = across[cols]
    held = np.empty((0, len(across)), np.float32)
    first, row = source[0].start, 0  # `first`: the first row held
    for band in bands:
        wide = np.empty((len(band), len(across)), np.float32)
        for some in _few(0, len(band)):
            wide[some] = _mix(band[some].take(left, 1), band[some].take(right, 1), across)
        held = np.concatenate([held, wide])
        ready = int(np.searchsorted(below, first + len(held)))
        while row < ready:
            part = slice(row, min(row + WINDOW, ready))
            made = np.empty((part.stop - row, len(across)), np.float32)
            for some in _few(row, part.stop):
                upper, lower = held.take(above[some] - first, 0), held.take(below[some] - first, 0)
                made[some.start - row : some.stop - row] = _mix(upper, lower, share[some, None])
            yield made
            row = part.stop
        if row < len(share):
            drop = min(above[row] - first, len(held))
            held, first = held[drop:], first + drop


def _few(start: int, stop: int) -> Iterator[slice]:
    """Rows, so few at a time that what is made of them stays in the cache."""
    return (slice(row, min(row + FEW, stop)) for row in range(start, stop, FEW))


def _mix(one: Floats, other: Floats, share: Floats) -> Floats:
    """So much of the other, the rest of the one; both are overwritten."""
    one *= 1 - share
    other *= share
    one += other
    return one


def source_box(shape: tuple[int, int], to: tuple[int, int], box: Box) -> Box:
    """The box of an image of `shape` from which a box of the image resized `to` follows."""
    spans = []
    for size, goal, part in zip(shape, to, box, strict=True):
        lower, upper, _ = _between(size, goal)
        spans.append(slice(int(lower[part.start]), int(upper[part.stop - 1]) + 1))
    return spans[0], spans[1]


def _between(size: int, to: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """For each of `to` pixels over an axis of `size`: the neighbours, and the second's share."""
    centre = np.clip((np.arange(to) + 0.5) * size / to - 0.5, 0, size - 1)
    lower = centre.astype(np.intp)
    return lower, np.minimum(lower + 1, size - 1), (centre - lower).astype(np.float32)
