"""The layers of a drawn scene, and the surfaces, boxes, roofs and crowns that they are drawn with.

Whatever is drawn knows its height, so that nothing low hides what is higher, and a sun can cast
its shadow. The label is the footprint of the roofs, nothing else.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from segment.synthetic.town import Frame, Style

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
            inside = within(outline / PIXEL - corner, free.shape)
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


def within(outline: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which pixels of `shape` have their centre inside an outline (points, 2) of x and y.

    A ray to the right crosses the outline an odd number of times from inside.
    """
    H, W = shape
    x, y = np.arange(W) + 0.5, np.arange(H)[:, None] + 0.5
    inside = np.zeros((H, W), bool)
    for (x0, y0), (x1, y1) in pairwise([*outline, outline[0]]):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


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
