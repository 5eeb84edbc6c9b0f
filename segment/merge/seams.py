"""Outlines of a mask too large to hold: block by block, then joined where a block's edge cut."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from segment.geo.footprints import pixel_outlines

Outlines = NDArray[np.object_]  # shapely polygons, in pixels (col, row) of the whole mask
Block = tuple[int, int, NDArray[np.uint8]]  # row, col, mask


def seamless(rows: Iterable[Iterable[Block]]) -> Iterator[Outlines]:
    """The `pixel_outlines` of a whole mask, each once, from its blocks.

    Blocks come in rows from the top, those of a row being equally high and side by side; where one
    is left out, the mask is 0. Parts with a common side at a block's edge are one building; parts
    that meet in a corner are two, as in a mask of one block. Memory: a block, and the outlines that
    reach the edges of a row of blocks.
    """
    import shapely

    reaching = _none()  # outlines that the next row may continue
    for blocks in rows:
        whole, cut, bottom = [_none()], [reaching], 0
        for row, col, mask in blocks:
            found, corner = pixel_outlines(mask), np.array([col, row])
            left, top, right, low = shapely.bounds(found).T
            edge = (left == 0) | (top == 0) | (right == mask.shape[1]) | (low == len(mask))
            found = shapely.transform(found, lambda xy, corner=corner: xy + corner)
            whole.append(found[~edge])
            cut.append(found[edge])
            bottom = row + len(mask)
        joined = _joined(np.concatenate(cut))
        below = shapely.bounds(joined)[:, 3] == bottom
        reaching = joined[below]
        yield np.concatenate([*whole, joined[~below]])
    yield reaching


def _none() -> Outlines:
    return np.empty(0, object)


def _joined(parts: Outlines) -> Outlines:
    """Parts united where they have a side in common.

    A valid polygon hangs together by more than points, so what touches in a corner only comes out
    of the union as two. Corners are whole numbers, for which the union is exact.
    """
    import shapely

    polygons = shapely.get_parts(shapely.union_all(parts))
    straight = [
        shapely.Polygon(_turns(polygon.exterior), [_turns(hole) for hole in polygon.interiors])
        for polygon in polygons
    ]
    return shapely.normalize(np.array(straight, dtype=object))


def _turns(ring: NDArray[np.object_]) -> NDArray[np.float64]:
    """A ring's points (N, 2) without those on a straight line, which a union leaves."""
    import shapely

    xy = shapely.get_coordinates(ring)[:-1]
    ahead, behind = np.roll(xy, -1, axis=0) - xy, xy - np.roll(xy, 1, axis=0)
    return xy[ahead[:, 0] * behind[:, 1] != ahead[:, 1] * behind[:, 0]]
