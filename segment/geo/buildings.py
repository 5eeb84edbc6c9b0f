"""Every building of a scene too large to hold: block by block, joined where an edge cut one."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize, shapes

from segment.geo.separate import (
    Ints,
    Separation,
    Side,
    confidence,
    descending,
    inner_passes,
    joined,
    passes,
    pieces,
    smoothed,
)

BLOCK = 1024  # pixels along the side of what is taken apart at once

Outlines = NDArray[np.object_]  # shapely polygons, in pixels (col, row) of the whole scene
Read = Callable[[slice, slice], NDArray[np.uint8]]  # rows and columns of a scene -> its marks
Place = tuple[int, int]  # the row and column of a block's first pixel


@dataclass(frozen=True)
class Buildings:
    """n buildings of a scene; `id` is 1 + row x width + column of the pixel that is surest."""

    outlines: Outlines
    id: Ints
    confidence: NDArray[np.float64]  # the mean probability of its pixels

    def numbers(self, rows: slice, width: int) -> NDArray[np.uint32]:
        """Whose each pixel is, in some rows of the scene of `width`: its id, 0 where none's."""
        import shapely

        _, top, _, bottom = shapely.bounds(self.outlines).reshape(-1, 4).T
        here = (top < rows.stop) & (bottom > rows.start)
        drawn = list(zip(self.outlines[here], self.id[here].tolist(), strict=True))
        numbers = np.zeros((rows.stop - rows.start, width), np.uint32)
        if drawn:
            rasterize(drawn, out=numbers, transform=Affine.translation(0, rows.start))
        return numbers

    def parted(self, rows: slice, width: int) -> NDArray[np.uint8]:
        """The mask of some rows, 0 and 255, with a line of 0 between buildings that touch."""
        number = self.numbers(slice(rows.start, rows.stop + 1), width + 1)
        own = number[:-1, :-1]
        below, right = number[1:, :-1], number[:-1, 1:]
        gap = ((below > 0) & (below != own)) | ((right > 0) & (right != own))
        return np.where((own > 0) & ~gap, 255, 0).astype(np.uint8)


@dataclass(frozen=True)
class _Parts:
    """What is known of n parts of buildings: their peaks, pixels, and polygons."""

    peak: Ints
    level: Ints
    pixels: Ints
    mass: NDArray[np.floating[Any]]  # millionths of probability, over all pixels
    outlines: Outlines

    def __getitem__(self, where: NDArray[np.bool_]) -> "_Parts":
        return _Parts(*(getattr(self, field.name)[where] for field in fields(self)))


@dataclass(frozen=True)
class _Block:
    """A block taken apart: its parts, the passes between them, and its pixels for neighbours."""

    row: int
    col: int
    parts: _Parts
    between: Ints
    peak: Ints  # (H, W): of each pixel's part; -1 where there is no building
    level: Ints
    place: Ints

    def side(self, part: tuple[slice | int, slice | int]) -> Side:
        # Copies: a view would keep the whole block in memory as long as its side is needed.
        return Side(self.peak[part].copy(), self.level[part].copy(), self.place[part].copy())


def blocks_of(shape: tuple[int, int]) -> list[list[Place]]:
    """The places of all blocks of a scene, row by row from the top."""
    height, width = shape
    return [[(row, col) for col in range(0, width, BLOCK)] for row in range(0, height, BLOCK)]


def buildings(
    read: Read, rows: Iterable[Iterable[Place]], shape: tuple[int, int], how: Separation
) -> Iterator[Buildings]:
    """The buildings of a scene of `shape` from its marks, each once, as rows of blocks are done.

    A block that is left out holds none. Parts with a common side at a block's edge are of one
    building unless `how` parts them; parts that meet in a corner are of two. However the scene is
    cut into blocks the result is the same. Memory: a block, a row of the scene, and the parts of
    what reaches from a row of blocks into the next one.
    """
    parts, between = _none(), np.empty((0, 6), np.int64)
    above: dict[int, Side] = {}  # the lowest pixels of the row of blocks above, by their column
    for places in rows:
        found, edges, below, left = [parts], [between], {}, None
        for row, col in places:
            block = _taken_apart(read, row, col, shape, how)
            found.append(block.parts)
            edges.append(block.between)
            if left is not None and left.col + BLOCK == col:
                edges.append(passes(left.side(np.s_[:, -1]), block.side(np.s_[:, 0])))
            if (over := above.get(col)) is not None and over.place[0] // shape[1] + 1 == row:
                edges.append(passes(over, block.side(np.s_[0, :])))
            below[col] = block.side(np.s_[-1, :])
            left = block
        above = below
        parts, between = _concatenated(found), np.concatenate(edges)
        done, parts, between = _finished(parts, between, above, how)
        yield done
    if len(parts.peak):
        yield _finished(parts, between, {}, how)[0]


def all_buildings(mark: NDArray[np.uint8], how: Separation) -> Buildings:
    """The buildings of a scene's marks (H, W), an array in memory or on the disk, by rising id."""
    found = list(buildings(lambda r, c: mark[r, c], blocks_of(mark.shape), mark.shape, how))
    columns = [np.concatenate([getattr(part, f.name) for part in found]) for f in fields(Buildings)]
    order = np.argsort(columns[1])
    return Buildings(*(column[order] for column in columns))


def _none() -> _Parts:
    whole, real = np.empty(0, np.int64), np.empty(0, np.float64)
    return _Parts(whole, whole, whole, real, np.empty(0, object))


def _concatenated(parts: list[_Parts]) -> _Parts:
    columns = ([getattr(part, field.name) for part in parts] for field in fields(_Parts))
    return _Parts(*map(np.concatenate, columns))


def _taken_apart(read: Read, row: int, col: int, shape: tuple[int, int], how: Separation) -> _Block:
    """The parts of a block. What touches none of its edges is joined at once."""
    size = min(BLOCK, shape[0] - row), min(BLOCK, shape[1] - col)
    margin = how.margin + 1
    window = how.kept(_around(read, (row, col), size, margin, shape))
    levels = smoothed(window, how.smoothing)[margin - 1 :, margin - 1 :]
    levels = levels[: size[0] + 2, : size[1] + 2]
    found = pieces(levels, row, col, shape[1])
    mark, level = window[margin:-margin, margin:-margin], levels[1:-1, 1:-1].astype(np.int64)
    place = (row + np.arange(size[0]))[:, None] * shape[1] + (col + np.arange(size[1]))
    between = inner_passes(found.number, level, found.peak, place)
    together = joined(found.peak, found.level, between, np.inf)
    cut = np.isin(together, together[_on_edges(found.number) - 1])
    top = np.where(cut, np.arange(len(cut)), joined(found.peak, found.level, between, how.least))
    tops, part = np.unique(top, return_inverse=True)
    number = np.append(0, part + 1).astype(np.int32)[found.number]
    pixels = np.bincount(number.ravel(), minlength=len(tops) + 1)[1:]
    mass = np.bincount(number.ravel(), confidence(mark).ravel(), len(tops) + 1)[1:].astype(float)
    parts = _Parts(found.peak[tops], found.level[tops], pixels, mass, _drawn(number, row, col))
    inner = np.isin(between[:, 0], found.peak[cut])  # of finished buildings none is needed
    peaks = np.append(found.peak[tops], -1)[number - 1]
    return _Block(row, col, parts, between[inner], peaks, level, place)


def _around(
    read: Read, start: Place, size: tuple[int, int], margin: int, shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """The marks of a block with a margin around it; outside of the scene they are 0."""
    spans, pads = [], []
    for begin, length, whole in zip(start, size, shape, strict=True):
        low, high = begin - margin, begin + length + margin
        spans.append(slice(max(low, 0), min(high, whole)))
        pads.append((max(-low, 0), max(high - whole, 0)))
    return np.pad(read(*spans), pads)


def _on_edges(number: NDArray[np.int32]) -> NDArray[np.int32]:
    edges = np.concatenate([number[0], number[-1], number[:, 0], number[:, -1]])
    return np.unique(edges[edges > 0])


def _drawn(number: NDArray[np.int32], row: int, col: int) -> Outlines:
    """The polygon of each of the numbers 1 to n, in pixels of the scene."""
    import shapely

    found = {
        int(value): shapely.geometry.shape(shape)
        for shape, value in shapes(number, mask=number > 0, connectivity=4)
    }
    drawn = np.array([found[value] for value in sorted(found)], dtype=object)
    return shapely.transform(drawn, lambda xy: xy + np.array([col, row]))


def _finished(
    parts: _Parts, between: Ints, below: dict[int, Side], how: Separation
) -> tuple[Buildings, _Parts, Ints]:
    """The buildings that no further block can add to, and what is left: parts, and passes."""
    import shapely

    between = descending(between)
    together = joined(parts.peak, parts.level, between, np.inf)
    open_peaks = np.unique(np.concatenate([side.peak for side in below.values()] or [_none().peak]))
    left = np.isin(together, together[np.isin(parts.peak, open_peaks)])
    waiting = np.isin(between[:, 0], parts.peak[left])
    done, ready = parts[~left], between[~waiting]
    top = joined(done.peak, done.level, ready, how.least)
    tops, building = np.unique(top, return_inverse=True)
    order = np.argsort(building, kind="stable")
    groups = np.split(done.outlines[order], np.searchsorted(building[order], range(1, len(tops))))
    outlines = shapely.normalize(np.array([_one(group) for group in groups if len(group)], object))
    pixels = np.bincount(building, done.pixels, len(tops))
    mass = np.bincount(building, done.mass, len(tops))
    held = how.holds(pixels, mass)
    sure = mass[held] / pixels[held] / 1e6
    made = Buildings(outlines[held], done.peak[tops][held] + 1, sure)
    return made, parts[left], between[waiting]


def _one(polygons: Outlines) -> object:
    """Parts of one building as one polygon. Corners are whole numbers: the union is exact."""
    import shapely

    if len(polygons) == 1:
        return polygons[0]
    whole = shapely.union_all(polygons)
    return shapely.Polygon(_turns(whole.exterior), [_turns(hole) for hole in whole.interiors])


def _turns(ring: object) -> NDArray[np.float64]:
    """A ring's points (N, 2) without those on a straight line, which a union leaves."""
    import shapely

    xy = shapely.get_coordinates(ring)[:-1]
    ahead, behind = np.roll(xy, -1, axis=0) - xy, xy - np.roll(xy, 1, axis=0)
    return xy[ahead[:, 0] * behind[:, 1] != ahead[:, 1] * behind[:, 0]]
