"""Whole images through a network that sees windows: blended, and in bands as low as a window.

Overlapping windows are blended by weights that taper off towards a window's edge, where the
network lacks context: the outermost quarter of an overlap counts nothing, a raised cosine leads
over the middle half. An image is worked down in bands of windows; rows that no later window
reaches are handed on at once, so memory grows with an image's width and not with its height.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW = 512  # pixels: wider than the tiles of training, for less overlap and more context
BATCH = 4

Floats = NDArray[np.float32]
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


def blended_bands(
    predict: Callable[[NDArray[np.uint8]], Floats],
    read: Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.bool_]]],
    shape: tuple[int, int],
    overlap: int,
    multiple: int,
    progress: Progress,
) -> Iterator[Floats]:
    """Probabilities of an image of `shape`, as bands of finished rows from the top.

    `read(row, rows)` gives pixels (rows, W, 3) and validity (rows, W); `predict` maps windows
    (N, h, w, 3) to probabilities (N, h, w), h and w divisible by `multiple`. An image that isn't
    is mirrored at its bottom and right edges. Windows without a valid pixel are skipped.
    """
    height, width = shape
    aligned = [-(-size // multiple) * multiple for size in shape]
    window = [min(size, WINDOW) for size in aligned]
    tops, lefts = (window_starts(aligned[i], window[i], overlap, multiple) for i in (0, 1))
    down, across = tapers(tops, window[0], overlap), tapers(lefts, window[1], overlap)
    batches = [range(i, min(i + BATCH, len(lefts))) for i in range(0, len(lefts), BATCH)]
    blended = np.zeros((window[0], aligned[1]), np.float32)
    for index, batch in progress(list(itertools.product(range(len(tops)), batches))):
        top = tops[index]
        if batch[0] == 0:
            pixels, valid = read(top, min(window[0], height - top))
            missing = (0, window[0] - len(pixels)), (0, aligned[1] - width)
            pixels = np.pad(pixels, (*missing, (0, 0)), mode="symmetric")
            valid = np.pad(valid, missing)
        spans = {i: slice(lefts[i], lefts[i] + window[1]) for i in batch}
        seen = [i for i in batch if valid[:, spans[i]].any()]
        if seen:
            found = predict(np.stack([pixels[:, spans[i]] for i in seen]))
            for i, probability in zip(seen, found, strict=True):
                blended[:, spans[i]] += down[index][:, None] * across[i] * probability
        if batch[-1] == len(lefts) - 1:
            done = (tops[index + 1] if index + 1 < len(tops) else height) - top
            yield blended[:done, :width].copy()
            blended[:-done] = blended[done:]
            blended[-done:] = 0


def resampled_bands(
    bands: Iterable[Floats], shape: tuple[int, int], to: tuple[int, int]
) -> Iterator[Floats]:
    """Bands of an image of `shape` as bands of the image resized `to` (bilinear)."""
    (above, below, share), (left, right, across) = (_between(shape[i], to[i]) for i in (0, 1))
    held, first, row = np.empty((0, to[1]), np.float32), 0, 0  # `first`: the first row held
    for band in bands:
        band = band[:, left] * (1 - across) + band[:, right] * across
        held = np.concatenate([held, band])
        ready = int(np.searchsorted(below, first + len(held)))
        while row < ready:
            part = slice(row, min(row + WINDOW, ready))
            down = share[part, None]
            yield held[above[part] - first] * (1 - down) + held[below[part] - first] * down
            row = part.stop
        if row < to[0]:
            drop = min(above[row] - first, len(held))
            held, first = held[drop:], first + drop


def _between(size: int, to: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """For each of `to` pixels over an axis of `size`: the neighbours, and the second's share."""
    centre = np.clip((np.arange(to) + 0.5) * size / to - 0.5, 0, size - 1)
    lower = centre.astype(np.intp)
    return lower, np.minimum(lower + 1, size - 1), (centre - lower).astype(np.float32)
