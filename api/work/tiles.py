"""Map tiles of a mask in Web Mercator: z / x / y, as Leaflet, MapLibre and QGIS ask for them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from segment.data.ground import ground_pixel_size

SIDE = 256  # pixels of a tile
ZOOMS = 24
AROUND = 2 * math.pi * 6_378_137  # metres of the equator, in EPSG:3857
COLOUR = 216, 57, 11
MOST = 2048  # pixels of a mask along a side that a tile is made from


def tile(path: Path, z: int, x: int, y: int) -> NDArray[np.uint8]:
    """A tile (256, 256, 4): as opaque at each pixel as the share of buildings there.

    A large mask is read from an overview, so that no tile costs much.
    """
    metres = AROUND / 2**z / SIDE  # of a pixel, at the equator
    place = Affine(metres, 0, x * SIDE * metres - AROUND / 2, 0, -metres, 0)
    place = Affine.translation(0, AROUND / 2 - y * SIDE * metres) @ place
    latitude = math.atan(math.sinh(math.pi * (1 - (2 * y + 1) / 2**z)))
    with _reduced(path, metres * math.cos(latitude)) as mask:
        size = {"transform": place, "width": SIDE, "height": SIDE, "resampling": Resampling.average}
        with WarpedVRT(mask, crs="EPSG:3857", **size) as view:
            share = view.read(1)
    colour = np.full((SIDE, SIDE, 3), COLOUR, np.uint8)
    return np.dstack([colour, share])


@contextmanager
def _reduced(path: Path, metres: float) -> Iterator[Any]:
    """The mask, or an overview of it where a tile whose pixels have so many metres would need too
    many of its own. An overview keeps what most of its pixels are, and loses what is small: the
    less it reduces the better."""
    with rasterio.open(path) as mask:
        times = metres / (ground_pixel_size(mask) or metres)
        too_many = min(times * SIDE, max(mask.shape)) / MOST
        level = sum(factor < too_many for factor in mask.overviews(1))
        if too_many <= 1 or not mask.overviews(1):
            yield mask
            return
        level = min(level, len(mask.overviews(1)) - 1)
    with rasterio.open(path, OVERVIEW_LEVEL=level) as mask:
        yield mask


def zoom(path: Path, latitude: float) -> int:
    """The zoom at which a tile's pixels are no larger on the ground than the mask's."""
    with rasterio.open(path) as mask:
        metres = ground_pixel_size(mask) or 1.0
    pixels = AROUND * math.cos(math.radians(latitude)) / metres / SIDE
    return min(ZOOMS, max(0, math.ceil(math.log2(pixels))))
