"""What a drawn town looks like: the style of each city, its streets, blocks and lots.

`segment.synthetic.buildings` builds on the lots; `segment.synthetic` makes scenes of it.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Style(NamedTuple):
    """What makes a city look like itself. Weights need not sum to one; lengths are in metres."""

    plan: str  # grid, organic or radial
    angle: float  # degrees
    block: tuple[float, float]
    street: float
    lot: float  # frontage of a house
    uses: dict[str, float]  # weights of the land uses of a block
    roofs: dict[str, float]  # weights of the materials of pitched roofs
    flats: dict[str, float]  # and of flat ones
    trees: float  # a hectare
    dryness: float  # lawns from green, 0, to dry, 1
    cast: tuple[float, float, float]
    haze: float
    epsg: int
    corner: tuple[float, float]  # UTM easting and northing


# fmt: off
STYLES = {
    "ashford": Style(
        plan="grid", angle=3, block=(110, 64), street=11, lot=17,
        uses={"houses": 8, "halls": 1.2, "park": 0.8},
        roofs={"shingle": 4, "brown": 3, "slate": 2, "metal": 1.5},
        flats={"gravel": 1, "membrane": 1, "felt": 1},
        trees=60, dryness=0.55, cast=(1.0, 1.01, 0.97), haze=0.03,
        epsg=32614, corner=(620000, 3350000),
    ),
    "birkdale": Style(
        plan="grid", angle=31, block=(95, 54), street=12, lot=7.5,
        uses={"rows": 7, "slabs": 1.5, "halls": 1, "park": 0.9},
        roofs={"slate": 4, "brown": 2, "terracotta": 1},
        flats={"felt": 4, "gravel": 3, "membrane": 1, "metal": 1},
        trees=45, dryness=0.3, cast=(0.99, 1.02, 0.95), haze=0.05,
        epsg=32616, corner=(440000, 4620000),
    ),
    "corvo": Style(
        plan="organic", angle=14, block=(70, 54), street=8, lot=15,
        uses={"houses": 6, "rows": 2, "slabs": 0.7, "park": 1.2},
        roofs={"terracotta": 6, "brown": 2, "shingle": 2},
        flats={"gravel": 2, "membrane": 1, "terracotta": 1},
        trees=45, dryness=0.8, cast=(1.02, 1.0, 0.95), haze=0.08,
        epsg=32633, corner=(290000, 4640000),
    ),
    "dornfeld": Style(
        plan="organic", angle=62, block=(100, 70), street=7, lot=18,
        uses={"houses": 6, "fields": 4},
        roofs={"terracotta": 3, "slate": 3, "brown": 2, "metal": 1},
        flats={"gravel": 1, "metal": 1},
        trees=35, dryness=0.25, cast=(0.97, 1.0, 0.98), haze=0.07,
        epsg=32632, corner=(680000, 5340000),
    ),
    "eastport": Style(
        plan="radial", angle=20, block=(120, 84), street=15, lot=8,
        uses={"halls": 6, "slabs": 2.5, "rows": 1, "park": 0.8},
        roofs={"metal": 3, "slate": 2, "shingle": 2},
        flats={"gravel": 4, "felt": 2, "membrane": 1.5, "metal": 2, "blue": 1},
        trees=20, dryness=0.6, cast=(1.0, 1.0, 1.02), haze=0.1,
        epsg=32650, corner=(450000, 4420000),
    ),
}
# fmt: on
CITIES = tuple(STYLES)


# --- the street plan ------------------------------------------------------------------------------


class Frame(NamedTuple):
    """A place, in metres east (x) and south (y) of the drawing's corner, and its axes' turn."""

    x: float
    y: float
    angle: float

    def at(self, a: float, b: float, turn: float = 0.0) -> "Frame":
        """The frame at a metres along and b metres across this one."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        return Frame(self.x + a * c - b * s, self.y + a * s + b * c, self.angle + turn)


class Lot(NamedTuple):
    """A piece of land about its frame; the street runs at b = -depth / 2."""

    frame: Frame
    width: float
    depth: float


Plan = Callable[[np.ndarray], np.ndarray]  # straight streets (points, 2) -> metres (points, 2)


class CityBlock(NamedTuple):
    """A rectangle of the straight plan."""

    plan: Plan
    u: tuple[float, float]
    v: tuple[float, float]

    def outline(self, inset: float = 0.0) -> np.ndarray:
        """Its closed outline on the ground, (points, 2) metres, `inset` metres further in."""
        (u0, u1), (v0, v1) = self.u, self.v
        u0, u1, v0, v1 = u0 + inset, u1 - inset, v0 + inset, v1 - inset
        corners = np.array([(u0, v0), (u1, v0), (u1, v1), (u0, v1), (u0, v0)])
        at = np.linspace(0, 4, 33)
        return self.plan(np.stack([np.interp(at, range(5), c) for c in corners.T], 1))

    def lot(self) -> Lot:
        """The same land, straightened, as large as it is on the ground."""
        (u0, u1), (v0, v1) = self.u, self.v
        u, v = (u0 + u1) / 2, (v0 + v1) / 2
        middle, along, across = self.plan(np.array([(u, v), (u + 1, v), (u, v + 1)]))
        (ax, ay), (bx, by) = along - middle, across - middle
        stretch = math.hypot(ax, ay)
        frame = Frame(float(middle[0]), float(middle[1]), math.atan2(ay, ax))
        return Lot(frame, (u1 - u0) * stretch, (v1 - v0) * abs(ax * by - ay * bx) / stretch)

    def lots(self, width: float) -> Iterator[Lot]:
        """Two rows of lots of about this width, back to back, each facing its street."""
        lines = np.linspace(*self.u, max(1, round(self.lot().width / width)) + 1).tolist()
        middle = (self.v[0] + self.v[1]) / 2
        for u in pairwise(lines):
            yield self._replace(u=u, v=(self.v[0], middle)).lot()
            frame, *size = self._replace(u=u, v=(middle, self.v[1])).lot()
            yield Lot(frame.at(0, 0, math.pi), *size)


def street_plan(style: Style, extent: float, rng: np.random.Generator) -> Plan:
    """Bends straight streets into this city's, about the middle of `extent` metres of ground."""
    angle = math.radians(style.angle + rng.normal(0, 2))
    c, s = math.cos(angle), math.sin(angle)
    phase, radius = rng.uniform(0, 2 * math.pi, 2), 1.2 * extent + 60

    def plan(points: np.ndarray) -> np.ndarray:
        u, v = points.T
        if style.plan == "organic":
            u, v = u + 22 * np.sin(v / 60 + phase[0]), v + 22 * np.sin(u / 70 + phase[1])
        elif style.plan == "radial":
            ring, turn = radius + v, u / radius
            u, v = ring * np.sin(turn), ring * np.cos(turn) - radius
        return np.stack([u * c - v * s, u * s + v * c], 1) + extent / 2

    return plan


def spans(
    reach: float, length: float, gap: float, rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Intervals of about `length`, `gap` apart, that cover -reach to reach."""
    found, start = [], -reach - rng.uniform(0, length)
    while start < reach:
        stop = start + length * rng.uniform(0.75, 1.3)
        found.append((start, stop))
        start = stop + gap
    return found


def lay_out(style: Style, extent: float, rng: np.random.Generator) -> Iterator[CityBlock]:
    """The blocks that touch the drawing."""
    plan, reach = street_plan(style, extent, rng), 1.6 * extent + 80
    columns = spans(reach, style.block[0], style.street, rng)
    for v in spans(reach, style.block[1], style.street, rng):
        for u in columns:
            outline = CityBlock(plan, u, v).outline(-style.street)
            if (outline.max(0) > 0).all() and (outline.min(0) < extent).all():
                yield CityBlock(plan, u, v)
