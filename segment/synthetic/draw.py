"""Draws one aerial-looking scene from a seed, with NumPy alone: in a browser, too.

A scene is made as a place is: a street plan and blocks with a land use (`town`), then buildings,
trees and cars (`buildings`). What stands is drawn against a height field (`canvas`), which one sun
shades and lets cast shadows; a camera adds blur, haze, a colour cast and noise (`camera`).
"""

import math
import zlib

import numpy as np

from segment.errors import InputError
from segment.synthetic.buildings import build
from segment.synthetic.camera import photograph
from segment.synthetic.canvas import Drawing
from segment.synthetic.town import CITIES, STYLES

MAX_SIZE = 5000  # pixels
MARGIN = 64  # pixels drawn around a scene and cut off: what stands there throws its shadow in


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
