"""Draws a town as it stands: ground, roofs, trees and cars, with their height and their light.

Whatever is drawn knows its height, so that nothing low hides what is higher, and a sun can cast
its shadow. The label is the footprint of the roofs, nothing else.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from rasterio.features import rasterize

from segment.town import CityBlock, Frame, Lot, Style, lay_out

PIXEL = 0.3  # metres

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


def houses(d: Drawing, block: CityBlock) -> None:
    """Detached houses along both streets."""
    for lot in block.lots(d.style.lot):
        house(d, lot)


def rows(d: Drawing, block: CityBlock) -> None:
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


def slabs(d: Drawing, block: CityBlock) -> None:
    """Apartment slabs on a lawn, with parking between."""
    frame, width, depth = block.lot()
    deep, height = d.rng.uniform(11, 15), d.rng.uniform(9, 16)
    for b in np.arange(deep - depth / 2, depth / 2 - deep / 2, deep * 2.3).tolist():
        car_park(d, frame.at(0, b + deep), width * 0.8, 7, d.one_of(ASPHALT, WORN))
        place = frame.at(d.rng.normal(0, 4), b)
        flat_roof(d, place, width * d.rng.uniform(0.6, 0.85), deep, height)
    plant(d, block.lot(), d.style.trees)


def halls(d: Drawing, block: CityBlock) -> None:
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


def park(d: Drawing, block: CityBlock) -> None:
    """Grass, paths and trees about a pond."""
    lot = block.lot()
    reach, t = min(lot.width, lot.depth), np.linspace(0, 2 * math.pi, 40)
    for turn in d.rng.uniform(0, math.pi, 2):
        d.patch(lot.frame.at(0, 0, turn), reach, 2.5, CONCRETE)
    radius = reach * (0.25 + 0.05 * np.sin(2 * t) + 0.04 * np.cos(3 * t))
    shore = np.stack([radius * np.cos(t), radius * np.sin(t)], 1)
    d.area(shore + lot.frame.at(lot.width / 5, 0)[:2], WATER, 0.03)
    plant(d, lot, 4 * d.style.trees)


def fields(d: Drawing, block: CityBlock) -> None:
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


USES: dict[str, Callable[[Drawing, CityBlock], None]] = {
    "houses": houses, "rows": rows, "slabs": slabs, "halls": halls, "park": park, "fields": fields,
}  # fmt: skip


def streets(d: Drawing, block: CityBlock) -> None:
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
