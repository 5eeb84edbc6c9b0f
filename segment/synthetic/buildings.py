"""What stands on a town's land: houses, terraces, slabs and halls, gardens, yards and cars."""

import math
from collections.abc import Callable

import numpy as np

from segment.synthetic.canvas import (
    ASPHALT,
    CARS,
    CLAY,
    CONCRETE,
    DRY,
    GREEN,
    PALE,
    PIXEL,
    POOL,
    SOIL,
    WATER,
    WOOD,
    WORN,
    Colour,
    Drawing,
    Material,
)
from segment.synthetic.town import CityBlock, Frame, Lot, lay_out


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
