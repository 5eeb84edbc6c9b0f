"""Outlines as a cartographer would draw them: walls at right angles, in one direction a building.

An outline is simplified and turned into its dominant direction; every edge becomes level or plumb,
edges of a kind in a row become one wall, and jogs shorter than the tolerance go.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_IOU = 0.8  # of a right-angled outline with the one that it was
AGREEMENT = 0.5  # of the edges on a direction, from 0 (a circle) to 1 (a box)

Floats = NDArray[np.float64]
Polygons = NDArray[np.object_]


def right_angled(outlines: Polygons, tolerance: float) -> Polygons:
    """Polygons in metres, valid and not reaching into one another, with right angles.

    Holes are kept, in the direction of their shell, but for those below `tolerance` squared; no
    wall but the last four of a ring is below `tolerance` (metres). An outline is only simplified
    by that much (Douglas-Peucker) where it has no direction, or where its right-angled form isn't
    valid or has an IoU with it below 0.8. What reaches into a neighbour gives way: the larger of
    the two keeps the ground, see `_apart`. The result is as valid and as free of overlaps as
    `outlines`.
    """
    import shapely

    simple, fine = (shapely.simplify(outlines, limit) for limit in (tolerance, tolerance / 2))
    squares = [_squared(*pair, tolerance) for pair in zip(simple, fine, strict=True)]
    square = np.array(squares, dtype=object)
    fits = _like(square, outlines) & shapely.is_valid(square)
    found = np.where(fits, square, np.where(shapely.is_valid(simple), simple, outlines))
    return _apart(found, simple, outlines)


def _like(polygons: Polygons, outlines: Polygons) -> NDArray[np.bool_]:
    """Which polygons have an IoU with their outline of 0.8 or more."""
    import shapely

    shared = shapely.area(shapely.intersection(polygons, outlines))
    either = shapely.area(polygons) + shapely.area(outlines) - shared
    return np.asarray(shared >= LEAST_IOU * either)


def _apart(found: Polygons, simple: Polygons, outlines: Polygons) -> Polygons:
    """The polygons, of which those that reach into another one lose what a larger one has.

    The largest is placed first, then each one without the ground of what is placed: its found
    form, else the simplified one, if the rest is like its outline; else its outline, without which
    the others then do. Buildings that share a wall so meet in one line.
    """
    import shapely

    placed = found.copy()
    clash = np.flatnonzero(_overlapping(found))
    done = np.ones(len(found), bool)
    done[clash] = False
    bounds = np.array([shapely.bounds(form) for form in (found, simple, outlines)])
    reach = shapely.box(*bounds[:, :, :2].min(axis=0).T, *bounds[:, :, 2:].max(axis=0).T)
    tree = shapely.STRtree(reach)
    for index in clash[np.argsort(-shapely.area(outlines[clash]), kind="stable")]:
        near = tree.query(reach[index])
        near = near[done[near] & (near != index)]
        taken = shapely.union_all(placed[near])
        forms = [_largest(shapely.difference(f, taken)) for f in (found[index], simple[index])]
        like = [form for form in forms if _like(np.array([form]), outlines[[index]])[0]]
        placed[index], done[index] = like[0] if like else outlines[index], True
        if not like:  # it stays, and the others lose what they had of it
            rest = shapely.difference(placed[near], outlines[index])
            placed[near] = [_largest(part) for part in rest]
    return placed if not _overlapping(placed).any() and shapely.is_valid(placed).all() else outlines


def _largest(polygons: Any) -> Any:
    import shapely

    parts = [part for part in shapely.get_parts(polygons) if part.geom_type == "Polygon"]
    return max(parts, key=lambda part: part.area, default=shapely.Polygon())


def _overlapping(polygons: Polygons) -> NDArray[np.bool_]:
    """Which polygons share ground with another one."""
    import shapely

    a, b = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    a, b = a[a < b], b[a < b]
    inside = shapely.area(shapely.intersection(polygons[a], polygons[b])) > 1e-6
    result = np.zeros(len(polygons), bool)
    result[a[inside]] = result[b[inside]] = True
    return result


def _squared(simple: Any, fine: Any, tolerance: float) -> Any:
    """The finely simplified polygon with right angles; empty where it has none, or isn't valid.

    Its direction is that of the simple one, whose edges are long, and then of the edges within
    15° of it.
    """
    import shapely

    mean = _direction(simple.exterior)
    if abs(mean) < AGREEMENT:
        return shapely.Polygon()
    mean = _direction(fine.exterior, near=mean)
    cos, sin = np.cos(np.angle(mean) / 4), np.sin(np.angle(mean) / 4)
    turn = np.array([[cos, -sin], [sin, cos]])
    holes = [ring for ring in fine.interiors if shapely.Polygon(ring).area >= tolerance**2]
    shell, *inner = (
        _squared_ring(np.array(ring.coords) @ turn, tolerance) @ turn.T
        for ring in (fine.exterior, *holes)
    )
    drawn = shapely.Polygon(shell, inner)
    return drawn if drawn.is_valid else shapely.Polygon()


def _direction(ring: Any, near: complex | None = None) -> complex:
    """What direction a ring's edges have, modulo 90°: exp(4i angle), shorter the less they agree.

    It is their mean on the circle, weighted by squared lengths; with `near`, of those edges only
    that are within 15° of that direction.
    """
    edge = np.diff(np.array(ring.coords), axis=0) @ (1, 1j)
    weight, fourfold = abs(edge) ** 2, np.exp(4j * np.angle(edge))
    if near is not None and (close := (fourfold * np.conj(near)).real > abs(near) / 2).any():
        weight, fourfold = weight[close], fourfold[close]
    return complex((weight * fourfold).sum() / weight.sum())


def _squared_ring(ring: Floats, tolerance: float) -> Floats:
    """A closed ring (n, 2) as the corners of walls along the axes; its bounds if it is too small.

    A wall lies at the mean of its edges, weighted by their lengths along it.
    """
    step, middle = np.diff(ring, axis=0), (ring[1:] + ring[:-1]) / 2
    level = abs(step[:, 0]) >= abs(step[:, 1])
    begins = np.flatnonzero(level & ~np.roll(level, 1))
    if len(begins) < 2:
        (left, low), (right, high) = ring.min(axis=0), ring.max(axis=0)
        return np.array([(left, low), (right, low), (right, high), (left, high)])
    along = abs(np.where(level, step[:, 0], step[:, 1]))
    across = np.where(level, middle[:, 1], middle[:, 0])
    along, across, level = (np.roll(values, -begins[0]) for values in (along, across, level))
    walls = np.flatnonzero(level != np.roll(level, 1))  # where they begin: level, plumb, level, ...
    length = np.add.reduceat(along, walls)
    place = np.add.reduceat(along * across, walls) / length
    place = _without_jogs(place, length, tolerance)
    x, y = np.repeat(place[1::2], 2), np.roll(np.repeat(place[::2], 2), -1)
    return np.stack([x, y], axis=1)


def _without_jogs(place: Floats, length: Floats, tolerance: float) -> Floats:
    """Walls, level and plumb in turn, of which none but the last four is below the tolerance.

    The shortest wall goes first; its two neighbours become one, at their weighted mean.
    """
    while len(place) > 4:
        wall = abs(np.roll(place, -1) - np.roll(place, 1))
        k = int(wall.argmin())
        if wall[k] >= tolerance:
            break
        before, after = k - 1, (k + 1) % len(place)
        keep, gone = (before, after) if after > k else (after, before)  # level ones stay even
        place[keep] = np.average(place[[before, after]], weights=length[[before, after]])
        length[keep] += length[gone]
        place, length = np.delete(place, [k, gone]), np.delete(length, [k, gone])
    return place
