"""Draws aerial-looking scenes from a seed: training, tests and notebooks then need no download.

A scene is made as a place is: a street plan, blocks with a land use, buildings, trees and cars.
What stands is drawn against a height field, which one sun shades and lets cast shadows; a camera
adds blur, haze, a colour cast and noise. The label is the footprint of the roofs, nothing else.
"""

import math
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rasterio import Affine
from rasterio.features import rasterize

from segment import cli
from segment.errors import InputError
from segment.scenes import open_raster, write_raster
from segment.storage import S3Path, default_cache, to_path

PIXEL = 0.3  # metres
MAX_SIZE = 5000  # pixels
MARGIN = 64  # pixels drawn around a scene and cut off: what stands there throws its shadow in
SPACING = 2000.0  # metres from a scene's corner to the next one's: more than the largest scene

Colour = Sequence[float] | np.ndarray  # red, green, blue, 0 to 255
Window = tuple[slice, slice]


class Material(NamedTuple):
    """A surface: its colour, its roughness and the distance of its ribs in metres."""

    colour: Colour
    rough: float
    rib: float = math.inf


MATERIALS = {
    "terracotta": Material((154, 114, 97), 0.13, 0.9),
    "slate": Material((92, 95, 101), 0.11),
    "shingle": Material((138, 131, 122), 0.12),
    "brown": Material((130, 113, 98), 0.12),
    "gravel": Material((140, 136, 128), 0.10),
    "felt": Material((90, 90, 92), 0.09),
    "metal": Material((160, 164, 168), 0.05, 1.5),
    "blue": Material((92, 116, 156), 0.05, 1.5),
    "membrane": Material((214, 214, 208), 0.05),
}
ASPHALT, WORN, CONCRETE, PALE = (96, 96, 97), (126, 124, 120), (160, 156, 146), (190, 185, 172)
GREEN, DRY, SOIL, CLAY = (94, 108, 72), (142, 134, 108), (128, 110, 92), (150, 119, 102)
WATER, POOL, PAINT, WOOD = (48, 60, 60), (96, 166, 184), (205, 202, 192), (120, 108, 94)
CROWNS = ((78, 92, 62), (92, 104, 70), (70, 82, 62), (124, 116, 102), (112, 106, 84))
CARS = ((225, 225, 225), (190, 192, 195), (38, 38, 42), (78, 80, 84), (120, 122, 126),
        (140, 50, 46), (60, 76, 116))  # fmt: skip


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


class Block(NamedTuple):
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


def lay_out(style: Style, extent: float, rng: np.random.Generator) -> Iterator[Block]:
    """The blocks that touch the drawing."""
    plan, reach = street_plan(style, extent, rng), 1.6 * extent + 80
    columns = spans(reach, style.block[0], style.street, rng)
    for v in spans(reach, style.block[1], style.street, rng):
        for u in columns:
            outline = Block(plan, u, v).outline(-style.street)
            if (outline.max(0) > 0).all() and (outline.min(0) < extent).all():
                yield Block(plan, u, v)


# --- the drawing ----------------------------------------------------------------------------------


class Drawing:
    """The layers of a scene: colour, height (metres), sunlight on the surface, label."""

    def __init__(self, style: Style, size: int, sun: np.ndarray, rng: np.random.Generator):
        self.style, self.size, self.sun, self.rng = style, size, sun, rng
        shape = (size, size)
        self.height, self.light = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        self.mask = np.zeros(shape, np.uint8)
        self.grain = 0.7 * noise(rng, size, 2) + 0.6 * rng.standard_normal(shape, np.float32)
        self.patches = noise(rng, size, 17) + noise(rng, size, 90)
        self.colour = np.full((*shape, 3), ASPHALT, np.float32)
        self.crowns = [crown(rng, radius, sun) for radius in np.linspace(1.2, 5.5, 30)]

    def window(self, x: float, y: float, half_x: float, half_y: float) -> Window:
        """The pixels up to half_x and half_y metres from a point; none if it is far outside."""
        low = np.floor(np.array((y - half_y, x - half_x)) / PIXEL)
        high = np.ceil(np.array((y + half_y, x + half_x)) / PIXEL)
        (top, left), (bottom, right) = np.clip((low, high), 0, self.size).astype(int).tolist()
        return np.s_[top:bottom, left:right]

    def local(
        self, frame: Frame, length: float, width: float
    ) -> tuple[Window, np.ndarray, np.ndarray, np.ndarray]:
        """Window of a rectangle; its pixel centres in metres along and across; which are in it."""
        c, s = math.cos(frame.angle), math.sin(frame.angle)
        half_x, half_y = abs(length * c) + abs(width * s), abs(length * s) + abs(width * c)
        window = self.window(frame.x, frame.y, half_x / 2, half_y / 2)
        y, x = (PIXEL * (np.arange(w.start, w.stop) + 0.5) for w in window)
        x, y = x - frame.x, y[:, None] - frame.y
        a, b = x * c + y * s, y * c - x * s
        return window, a, b, (abs(a) <= length / 2) & (abs(b) <= width / 2)

    def fill(
        self, window: Window, where: np.ndarray, material: Material, along: np.ndarray | float = 0.0
    ) -> None:
        """Colour the pixels `where` of a window; `along` is their distance across the ribs."""
        texture = 1 + material.rough * (self.grain[window] + 0.7 * self.patches[window])
        texture = texture + 0.07 * np.sin(2 * math.pi * along / material.rib)
        self.colour[window][where] = np.multiply.outer(texture[where], np.array(material.colour))

    def area(self, outline: np.ndarray, colour: Colour, rough: float = 0.07) -> None:
        """Ground inside an outline (points, 2), where nothing stands."""
        low, high = outline.min(0), outline.max(0)
        window = self.window(*(low + high) / 2, *(high - low) / 2)
        free = self.height[window] == 0
        if free.size:
            corner = np.array([window[1].start, window[0].start])
            shape = {"type": "Polygon", "coordinates": [(outline / PIXEL - corner).tolist()]}
            inside = rasterize([shape], out_shape=free.shape, dtype="uint8") > 0
            self.fill(window, inside & free, Material(colour, rough))

    def patch(
        self,
        frame: Frame,
        length: float,
        width: float,
        colour: Colour,
        rough: float = 0.07,
        furrow: float = math.inf,
    ) -> None:
        """A rectangle of ground, where nothing stands."""
        window, _, b, inside = self.local(frame, length, width)
        free = self.height[window] == 0
        self.fill(window, inside & free, Material(colour, rough, furrow), b)

    def line(self, points: np.ndarray) -> None:
        """White paint, one pixel wide, on the ground at points (points, 2)."""
        cols, rows = np.floor(points / PIXEL).astype(int).T
        inside = (cols >= 0) & (rows >= 0) & (cols < self.size) & (rows < self.size)
        rows, cols = rows[inside], cols[inside]
        free = self.height[rows, cols] == 0
        self.colour[rows[free], cols[free]] = PAINT

    def solid(
        self,
        frame: Frame,
        length: float,
        width: float,
        base: float,
        material: Material,
        kind: str = "flat",
        pitch: float = 0.0,
        building: bool = False,
    ) -> None:
        """A box under a roof, seen where nothing higher stands; a building marks the label."""
        window, a, b, inside = self.local(frame, length, width)
        if building:
            self.mask[window][inside] = 255
        run, slope_a, slope_b = roof(kind, a, b, length, width)
        top = base + pitch * run
        c, s = math.cos(frame.angle), math.sin(frame.angle)
        east, south = pitch * (slope_a * c - slope_b * s), pitch * (slope_a * s + slope_b * c)
        seen = inside & (top > self.height[window])
        self.height[window][seen] = top[seen]
        self.light[window][seen] = sunlight(east, south, self.sun)[seen]
        self.fill(window, seen, material, b)

    def tree(self, x: float, y: float) -> None:
        """One of the scene's crowns, not on a roof; every third is bare and shows the ground."""
        kind = int(self.rng.integers(len(self.crowns)))
        top, light = self.crowns[kind]
        row, col = int(y / PIXEL) - len(top) // 2, int(x / PIXEL) - len(top) // 2
        if min(row, col) < 0 or max(row, col) + len(top) > self.size:
            return
        if self.mask[int(y / PIXEL), int(x / PIXEL)]:
            return
        window = np.s_[row : row + len(top), col : col + len(top)]
        seen = top > self.height[window]
        if kind % 3 == 0:
            seen &= self.grain[window] > -0.2
        self.height[window][seen], self.light[window][seen] = top[seen], light[seen]
        colour = np.array(CROWNS[kind % len(CROWNS)]) * self.rng.uniform(0.85, 1.2)
        self.fill(window, seen, Material(colour, 0.2))

    def pick(self, weights: dict[str, float]) -> str:
        """A key, drawn by its weight."""
        shares = np.array(list(weights.values()))
        return str(self.rng.choice(list(weights), p=shares / shares.sum()))

    def one_of(self, *colours: Colour) -> np.ndarray:
        """One of the colours, a little darker or lighter."""
        return np.array(colours[self.rng.integers(len(colours))]) * self.rng.normal(1, 0.08)

    def material(self, weights: dict[str, float]) -> Material:
        """A material as this one building has it: darker or lighter, warmer or cooler."""
        material = MATERIALS[self.pick(weights)]
        tint = self.rng.normal(1, 0.12) + self.rng.normal(0, 0.015, 3)
        return material._replace(colour=np.array(material.colour) * tint)

    def lawn(self) -> np.ndarray:
        """The colour of a lawn; in a dry city some are bare soil."""
        if self.rng.random() < 0.3 * self.style.dryness:
            return self.one_of(SOIL, CLAY)
        dry = np.clip(self.rng.normal(self.style.dryness, 0.25), 0, 1)
        return (1 - dry) * np.array(GREEN) + dry * np.array(DRY)


def noise(rng: np.random.Generator, size: int, cell: int) -> np.ndarray:
    """Smooth noise (size, size) float32: normal at nodes `cell` pixels apart, linear between."""
    nodes = rng.standard_normal((size // cell + 2, size // cell + 2), np.float32)
    at = np.arange(size, dtype=np.float32) / cell
    low = at.astype(int)
    part = at - low
    rows = nodes[low] + part[:, None] * (nodes[low + 1] - nodes[low])
    return rows[:, low] + part * (rows[:, low + 1] - rows[:, low])


def sunlight(east: np.ndarray, south: np.ndarray, sun: np.ndarray) -> np.ndarray:
    """Light on a slope (dh/dx, dh/dy) as a share of that on level ground: max(n . s, 0) / s_z."""
    cosine = (sun[2] - east * sun[0] - south * sun[1]) / np.sqrt(1 + east**2 + south**2)
    return np.maximum(cosine, 0) / sun[2]


def roof(
    kind: str, a: np.ndarray, b: np.ndarray, length: float, width: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A roof of pitch 1 at (a, b): height above the eaves, its slopes along a and along b."""
    side, end = width / 2 - abs(b), length / 2 - abs(a)
    if kind == "flat":  # its height is that of the parapet
        return np.where(np.minimum(side, end) < 0.45, 1.0, 0.0), 0 * a, 0 * b
    hipped = (end < side) & (kind == "hip")
    return np.where(hipped, end, side), -np.sign(a) * hipped, -np.sign(b) * ~hipped


def crown(
    rng: np.random.Generator, radius: float, sun: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A tree of this radius (metres) from above: height, 0 outside, and sunlight."""
    n = 2 * math.ceil(1.5 * radius / PIXEL) + 1
    x = PIXEL * (np.arange(n) - n // 2) / radius
    lumps = noise(rng, n, max(2, n // 7))
    inner = 1 - np.hypot(x, x[:, None]) + 0.2 * lumps
    rough = 0.2 * lumps + 0.06 * noise(rng, n, 2)
    dome = radius * (0.8 * np.sqrt(np.clip(inner, 0, 1)) + rough)
    south, east = np.gradient(dome, PIXEL)
    light = np.clip(sunlight(east, south, sun), 0.35, 1.4)
    return np.where(inner > 0, 3 + 0.7 * radius + dome, 0), light


# --- what stands on the land ----------------------------------------------------------------------


def plant(d: Drawing, lot: Lot, density: float) -> None:
    """Trees anywhere on a lot, `density` a hectare."""
    for _ in range(d.rng.poisson(density * lot.width * lot.depth / 1e4)):
        a, b = d.rng.uniform(-0.5, 0.5, 2) * (lot.width, lot.depth)
        d.tree(*lot.frame.at(a, b)[:2])


def car(d: Drawing, frame: Frame) -> None:
    """Body, windows, roof."""
    body = Material(d.one_of(*CARS), 0.02)
    d.solid(frame, d.rng.uniform(4.0, 4.9), 1.8, 1.0, body)
    d.solid(frame.at(-0.3, 0), 2.6, 1.5, 1.35, Material((46, 50, 56), 0.02))
    d.solid(frame.at(-0.3, 0), 1.5, 1.4, 1.4, body)


def car_park(d: Drawing, frame: Frame, length: float, width: float, colour: Colour) -> None:
    """Rows of marked bays of 2.6 x 5 m, partly taken."""
    d.patch(frame, length, width, colour)
    taken, stroke = d.rng.uniform(0.1, 0.8), np.linspace(-2.5, 2.5, 34)
    for b in np.arange(3 - width / 2, width / 2 - 2.5, 8.5).tolist():
        for a in np.arange(2 - length / 2, length / 2 - 2, 2.6).tolist():
            bay = frame.at(a, b, math.pi / 2)
            d.line(np.array([bay.at(t, 1.3)[:2] for t in stroke]))
            if d.rng.random() < taken:
                car(d, bay.at(d.rng.normal(0, 0.2), 0, d.rng.choice((0, math.pi))))


def flat_roof(d: Drawing, frame: Frame, length: float, width: float, height: float) -> None:
    """A building with a flat roof, its parapet and what is mounted on it."""
    material = d.material(d.style.flats)
    d.solid(frame, length, width, height, material, "flat", 0.5, building=True)
    for _ in range(d.rng.poisson(length * width / 130)):
        a, b = d.rng.uniform(-0.4, 0.4, 2) * (length, width)
        unit = Material(d.one_of((165, 167, 167), (72, 74, 78)), 0.05)
        deep, high = d.rng.uniform(0.9, 3), height + d.rng.uniform(0.3, 1.5)
        d.solid(frame.at(a, b), d.rng.uniform(0.9, 3), deep, high, unit)


def pitched_roof(d: Drawing, frame: Frame, length: float, width: float, eaves: float) -> None:
    """A building with a gable or hip roof, some with a wing (an L), and a chimney."""
    material, pitch = d.material(d.style.roofs), d.rng.uniform(0.25, 0.65)
    kind = ("gable", "hip")[d.rng.integers(2)]
    if width > length:
        frame, length, width = frame.at(0, 0, math.pi / 2), width, length
    d.solid(frame, length, width, eaves, material, kind, pitch, building=True)
    if d.rng.random() < 0.5:
        deep, end = width * d.rng.uniform(0.55, 0.8), d.rng.choice((-1, 1))
        wing = frame.at(end * (length - deep) / 2, 0.45 * width, math.pi / 2)
        d.solid(wing, width * 1.1, deep, eaves, material, kind, pitch, building=True)
    a, b = d.rng.uniform(-0.3, 0.3, 2) * (length, width)
    d.solid(frame.at(a, b), 0.9, 0.7, eaves + pitch * width / 2 + 0.6, Material(WOOD, 0.05))


def house(d: Drawing, lot: Lot) -> None:
    """A detached house with drive, terrace and garden; some have a fence, a shed or a pool."""
    rng, (frame, width, depth) = d.rng, lot
    length, deep = min(width - 2.5, rng.uniform(10, 16)), min(depth * 0.55, rng.uniform(8, 13))
    a, front = rng.uniform(-0.5, 0.5) * (width - length - 1), rng.uniform(3, 7) - depth / 2
    side, paving = rng.choice((-1, 1)) * (width / 2 - 2), d.one_of(WORN, CONCRETE, PALE, CLAY)
    d.patch(frame, width, depth, d.lawn(), 0.15)
    d.patch(frame.at(side, -depth / 4 - 1), rng.uniform(2.8, 4), depth / 2 + 4, paving)
    d.patch(frame.at(a, front + deep + 2), length * 0.6, 5, paving)
    pitched_roof(d, frame.at(a, front + deep / 2), length, deep, rng.uniform(2.7, 6))
    if rng.random() < 0.5:
        car(d, frame.at(side, rng.uniform(1, 6) - depth / 2, math.pi / 2))
    if rng.random() < 0.6:
        d.solid(frame.at(width / 2, depth / 5), 0.4, depth * 0.6, 1.7, Material(WOOD, 0.1))
    if rng.random() < 0.35:
        shed, boards = frame.at(-side * 0.7, depth / 2 - 3), d.material(d.style.roofs)
        d.solid(shed, rng.uniform(3, 6), 4, 2.2, boards, "gable", 0.4, building=True)
    elif rng.random() < 0.12:
        d.patch(frame.at(-side * 0.5, depth / 2 - 4), 8, 4, POOL, 0.02)
    plant(d, lot, d.style.trees)


def houses(d: Drawing, block: Block) -> None:
    """Detached houses along both streets."""
    for lot in block.lots(d.style.lot):
        house(d, lot)


def rows(d: Drawing, block: Block) -> None:
    """Terraces: party walls, a roof for each house, yards and garages behind."""
    flat, eaves = d.rng.random() < 0.5, d.rng.uniform(5, 9)
    for lot in block.lots(min(d.style.lot, 8)):
        frame, width, depth = lot
        yard = d.one_of(WORN, CONCRETE, CLAY, d.lawn(), d.lawn(), d.lawn())
        d.patch(frame.at(0, depth / 4), width, depth / 2, yard, 0.12)
        deep, height = depth * d.rng.uniform(0.45, 0.56), eaves + d.rng.choice((0, 0, 0.4, 1.5))
        place = frame.at(0, 2.5 + deep / 2 - depth / 2)
        if flat:
            flat_roof(d, place, width - d.rng.choice((0, 0.9)), deep, height)
        else:
            tiles = d.material(d.style.roofs)
            d.solid(place, width, deep, height, tiles, "gable", 0.5, building=True)
        if d.rng.random() < 0.45:
            garage = frame.at(0, depth / 2 - 3)
            d.solid(garage, width * 0.8, 5, 2.6, d.material(d.style.flats), building=True)
        plant(d, lot, d.style.trees)


def slabs(d: Drawing, block: Block) -> None:
    """Apartment slabs on a lawn, with parking between."""
    frame, width, depth = block.lot()
    deep, height = d.rng.uniform(11, 15), d.rng.uniform(9, 16)
    for b in np.arange(deep - depth / 2, depth / 2 - deep / 2, deep * 2.3).tolist():
        car_park(d, frame.at(0, b + deep), width * 0.8, 7, d.one_of(ASPHALT, WORN))
        place = frame.at(d.rng.normal(0, 4), b)
        flat_roof(d, place, width * d.rng.uniform(0.6, 0.85), deep, height)
    plant(d, block.lot(), d.style.trees)


def halls(d: Drawing, block: Block) -> None:
    """Sheds and shops in paved yards, whose grey is that of many of their roofs."""
    paving = d.one_of(ASPHALT, WORN, CONCRETE, PALE)
    d.area(block.outline(1.5), paving)
    for lot in block.lots(block.lot().width / d.rng.integers(1, 4)):
        frame, width, depth = lot
        length, deep = width * d.rng.uniform(0.5, 0.85), depth * d.rng.uniform(0.4, 0.7)
        place = frame.at(0, depth / 2 - deep / 2 - 1)
        if d.rng.random() < 0.3:
            sheet = d.material(d.style.flats)
            d.solid(place, length, deep, 7, sheet, "gable", 0.12, building=True)
        else:
            flat_roof(d, place, length, deep, d.rng.uniform(5, 11))
        car_park(d, frame.at(0, -deep / 2 - 1), width * 0.9, depth - deep - 4, paving)
        plant(d, lot, d.style.trees / 3)


def park(d: Drawing, block: Block) -> None:
    """Grass, paths and trees about a pond."""
    lot = block.lot()
    reach, t = min(lot.width, lot.depth), np.linspace(0, 2 * math.pi, 40)
    for turn in d.rng.uniform(0, math.pi, 2):
        d.patch(lot.frame.at(0, 0, turn), reach, 2.5, CONCRETE)
    radius = reach * (0.25 + 0.05 * np.sin(2 * t) + 0.04 * np.cos(3 * t))
    shore = np.stack([radius * np.cos(t), radius * np.sin(t)], 1)
    d.area(shore + lot.frame.at(lot.width / 5, 0)[:2], WATER, 0.03)
    plant(d, lot, 4 * d.style.trees)


def fields(d: Drawing, block: Block) -> None:
    """Strips of field, or a wood."""
    frame, width, depth = lot = block.lot()
    if d.rng.random() < 0.2:
        plant(d, lot, 220)
        return
    strips = int(d.rng.integers(1, 4))
    for k in range(strips):
        place, furrow = frame.at(0, depth * ((k + 0.5) / strips - 0.5)), d.rng.uniform(0.9, 3)
        crop = d.one_of(SOIL, DRY, GREEN, CLAY, DRY)
        d.patch(place, width - 2, depth / strips - 1, crop, 0.1, furrow)
    plant(d, lot, 4)


USES: dict[str, Callable[[Drawing, Block], None]] = {
    "houses": houses, "rows": rows, "slabs": slabs, "halls": halls, "park": park, "fields": fields,
}  # fmt: skip


def streets(d: Drawing, block: Block) -> None:
    """The streets on two sides of a block, with a crossing, middle line and parked cars."""
    (u0, u1), (v0, _), gap = block.u, block.v, d.style.street
    d.area(block._replace(u=(u0 - gap, u0)).outline(), d.one_of(ASPHALT, WORN))
    d.area(block._replace(u=(u0 - gap, u1), v=(v0 - gap, v0)).outline(), d.one_of(ASPHALT, WORN))
    dashes = np.arange(u0, u1, PIXEL / 2)
    dashes = dashes[dashes % 9 < 3]
    d.line(block.plan(np.stack([dashes, np.full(len(dashes), v0 - gap / 2)], 1)))
    for u in np.arange(u0, u1, 6.0).tolist():
        if d.rng.random() < 0.3:
            car(d, block._replace(u=(u, u + 5), v=(v0 - 2, v0)).lot().frame)


def build(d: Drawing) -> None:
    """Draw every block and its streets."""
    for block in lay_out(d.style, d.size * PIXEL, d.rng):
        d.area(block.outline(), CONCRETE)
        d.area(block.outline(1.5), d.lawn(), 0.15)
        streets(d, block)
        USES[d.pick(d.style.uses)](d, block)


# --- light and camera -----------------------------------------------------------------------------


def cast_shadows(height: np.ndarray, sun: np.ndarray) -> np.ndarray:
    """Shadow (H, W), 0 lit to 1 dark, of heights (H, W) under a sun: (east, south, up), unit.

    A point is dark if it lies below horizon(p) = max over t of height(p + t s) - t drop, where s
    is a pixel's step towards the sun and drop the fall of its rays on that step. The maximum over
    t < 2n is that over t < n and the same seen from p + n s: few passes for long shadows.
    """
    level = math.hypot(sun[0], sun[1])
    drop = PIXEL * sun[2] / level
    horizon, step = height.copy(), 1
    while step * drop < height.max():
        cols, from_cols = overlap(height.shape[1], round(step * sun[0] / level))
        rows, from_rows = overlap(height.shape[0], round(step * sun[1] / level))
        ray = horizon[from_rows, from_cols] - np.float32(step * drop)
        np.maximum(horizon[rows, cols], ray, out=horizon[rows, cols])
        step *= 2
    penumbra = 0.4  # metres of height over which the shadow's edge fades
    horizon -= height
    horizon /= penumbra
    return np.clip(horizon, 0, 1, out=horizon)


def overlap(size: int, shift: int) -> Window:
    """The slices of i and of i + shift for which both lie in range(size)."""
    shift = max(-size, min(shift, size))
    low, high = max(0, -shift), min(size, size - shift)
    return slice(low, high), slice(low + shift, high + shift)


def photograph(d: Drawing) -> np.ndarray:
    """What a camera sees of the drawing, (H, W, 3) uint8: light, blur, haze, cast, noise."""
    sunlit = d.light * (1 - cast_shadows(d.height, d.sun))
    image = np.empty(d.colour.shape, np.uint8)
    soft, exposure, haze = d.rng.uniform(0.04, 0.14), d.rng.uniform(1.05, 1.3), d.style.haze
    for band, sky in enumerate((0.27, 0.30, 0.35)):  # the blue sky lights the shadows
        plane = d.colour[..., band] * (sky + np.float32(1 - sky) * sunlit)
        for lines in (plane, plane.T):
            lines[1:-1] += soft * (lines[:-2] + lines[2:] - 2 * lines[1:-1])
        plane *= exposure * d.style.cast[band] * (1 - haze)
        plane += 190 * haze
        plane += 3 * d.rng.standard_normal(plane.shape, np.float32)
        image[..., band] = np.clip(plane, 0, 255, out=plane)
    return image


# --- scenes and files -----------------------------------------------------------------------------


def generator(city: str, number: int, seed: int, purpose: int) -> np.random.Generator:
    """Random numbers of one scene alone, whatever else is drawn."""
    return np.random.default_rng([seed, zlib.crc32(city.encode()), number, purpose])


def sun_position(city: str, number: int, seed: int = 0) -> tuple[float, float]:
    """The sun over a scene: azimuth, clockwise from north, and elevation, in degrees."""
    azimuth, elevation = generator(city, number, seed, 0).uniform((110, 32), (250, 58))
    return float(azimuth), float(elevation)


def draw_scene(city: str, number: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene: the same for the same arguments, on every run.

    Returns the image (size, size, 3) uint8, north up, 0.3 m a pixel, and the mask (size, size)
    uint8: 255 where a roof is, 0 elsewhere. Raises InputError on what can't be drawn.
    """
    if city not in STYLES:
        raise InputError(f"no synthetic city is called {city}; there are {', '.join(CITIES)}")
    if not 1 <= size <= MAX_SIZE:
        raise InputError(f"a synthetic scene is 1 to {MAX_SIZE} pixels wide, not {size}")
    if number < 1 or seed < 0:
        raise InputError(f"scenes count from 1 and seeds from 0; got scene {number}, seed {seed}")
    azimuth, elevation = np.radians(sun_position(city, number, seed)).tolist()
    level, up = math.cos(elevation), math.sin(elevation)
    sun = np.array([level * math.sin(azimuth), -level * math.cos(azimuth), up])
    d = Drawing(STYLES[city], size + 2 * MARGIN, sun, generator(city, number, seed, 1))
    build(d)
    inner = np.s_[MARGIN : MARGIN + size, MARGIN : MARGIN + size]
    return photograph(d)[inner].copy(), d.mask[inner].copy()


def write_scenes(
    folder: str | Path,
    cities: Sequence[str] = CITIES,
    scenes_per_city: int = 3,
    size: int = 512,
    seed: int = 0,
) -> list[Path]:
    """Write scenes as GeoTIFF pairs images/CITY1.tif, gt/CITY1.tif ...; returns the images' paths.

    A scene already there, drawn by this very code with the same size and seed, is kept; an older
    one is drawn anew; other files stay. Raises InputError rather than overwrite another's raster.
    """
    folder, code = Path(folder), zlib.crc32(Path(__file__).read_bytes())
    scenes = [(city, number) for city in cities for number in range(1, scenes_per_city + 1)]
    if not scenes:
        raise InputError(f"no scene to draw: {len(cities)} cities, {scenes_per_city} scenes each")
    for name in ("images", "gt"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    paths = []
    for city, number in cli.progress(scenes, desc="drawing scenes", unit="scene"):
        image, label = (folder / name / f"{city}{number}.tif" for name in ("images", "gt"))
        made = f"{city}{number} size={size} seed={seed} code={code:08x}"
        if [made_by(image), made_by(label)] != [made, made]:
            pixels, mask = draw_scene(city, number, size, seed)
            write_layer(image, np.moveaxis(pixels, 2, 0), city, number, made)
            write_layer(label, mask[None], city, number, made)
        paths.append(image)
    return paths


def made_by(path: Path) -> str | None:
    """How the scene at a path was made; None if there is none. InputError if it is not ours."""
    if not path.exists():
        return None
    with open_raster(path) as source:
        made = source.tags().get("SYNTHETIC")
    if made is None:
        raise InputError(f"{path} was not drawn by segment.synthetic; choose another folder")
    return made


def write_layer(path: Path, bands: np.ndarray, city: str, number: int, made: str) -> None:
    """Write bands (count, H, W) as a GeoTIFF at the scene's own place in its city's UTM zone."""
    style, (row, col) = STYLES[city], divmod(number - 1, 100)
    west, north = style.corner[0] + SPACING * col, style.corner[1] - SPACING * row
    profile = dict(zip(("count", "height", "width"), bands.shape, strict=True)) | {
        "dtype": "uint8",
        "crs": f"EPSG:{style.epsg}",
        "transform": Affine(PIXEL, 0, west, 0, -PIXEL, north),
    }
    with write_raster(path, profile) as target:
        target.write(bands)
        target.update_tags(SYNTHETIC=made)


def default_scenes(cache: str | Path | None = None) -> list[Path]:
    """The folder of the scenes that stand in where no data is given, drawn on first use."""
    folder = (Path(cache) if cache else default_cache()) / "synthetic"
    write_scenes(folder, CITIES, scenes_per_city=8, size=512, seed=0)
    return [folder]


def main(argv: list[str] | None = None) -> None:
    """The command `python -m segment.synthetic`."""
    parser = cli.parser("synthetic", "Draw synthetic aerial scenes with their building masks.")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="gets images/ and gt/")
    parser.add_argument("--size", type=int, default=512, metavar="N", help="pixels a side")
    parser.add_argument("--scenes", type=int, default=3, metavar="N", help="scenes a city")
    counts = range(1, len(CITIES) + 1)
    parser.add_argument("--cities", type=int, default=len(CITIES), choices=counts, help="of them")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws other scenes")
    args = parser.parse_args(argv)
    out = to_path(args.out)
    with tempfile.TemporaryDirectory(prefix="minicnn-") as temporary:
        folder = out if isinstance(out, Path) else Path(temporary)
        paths = write_scenes(folder, CITIES[: args.cities], args.scenes, args.size, args.seed)
        if isinstance(out, S3Path):
            for file in sorted(folder.rglob("*.tif")):
                (out / str(file.relative_to(folder))).upload(file)
    print(f"{len(paths)} scenes of {args.size} px in {args.out}")


if __name__ == "__main__":
    cli.run(main)
