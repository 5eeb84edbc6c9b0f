"""How large a pixel is on the ground, in whatever CRS, and which shape that gives a picture."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rasterio.transform import Affine, from_gcps
from rasterio.warp import transform as warp_points

from segment.errors import InputError

WGS84 = CRS.from_epsg(4326)
HALF_A_PIXEL = 0.5  # what may lie between two places that count as one
SAME_SIZE = 0.02  # pixel sizes that differ by less are one: resampling would only blur
_COARSEST = 8  # times the pixel size to work at: what is coarser shows no building of use
_FINEST = 1000  # times finer: less is no photograph's, but a mistaken unit, degrees for metres


def place_of(raster: DatasetReader | Mapping[str, Any]) -> tuple[CRS | None, Affine | None]:
    """CRS and transform of an open raster or a profile; each None where there is none.

    Where only ground control points place it, those of the affine map through them, if that is
    within half a pixel of all.
    """
    if isinstance(raster, Mapping):
        crs, transform = raster.get("crs"), raster.get("transform")
        crs = CRS.from_user_input(crs) if crs else None
        return crs, None if transform is None or transform.is_identity else transform
    if not raster.transform.is_identity:
        return raster.crs, raster.transform
    points, crs = raster.gcps
    if len(points) < 3 or not crs:
        return raster.crs, None
    transform = from_gcps(points)
    if transform.determinant == 0:
        return raster.crs, None
    back = ~transform
    misses = (math.dist(back @ (point.x, point.y), (point.col, point.row)) for point in points)
    return (crs, transform) if max(misses) <= HALF_A_PIXEL else (raster.crs, None)


def in_crs(raster: DatasetReader, crs: CRS | None) -> Any:
    """The open raster, its coordinates taken to be in `crs` if it doesn't say."""
    return raster if crs is None or raster.crs else _InCrs(raster, crs)


class _InCrs:
    """An open raster with a CRS that its file lacks."""

    def __init__(self, raster: DatasetReader, crs: CRS) -> None:
        self._raster, self.crs = raster, crs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raster, name)


def same_crs(one: CRS | None, other: CRS | None) -> bool:
    """Whether two CRSs mean the same plane: however spelled, and whatever heights they add."""
    return one == other or bool(one and other and _horizontal(one) == _horizontal(other))


def _horizontal(crs: CRS) -> CRS:
    """The CRS without heights, by its EPSG code where it has one."""
    document = crs.to_dict(projjson=True)
    if document.get("type") == "CompoundCRS":
        crs = CRS.from_user_input(json.dumps(document["components"][0]))
    code = crs.to_epsg()
    return CRS.from_epsg(code) if code else crs


def ground_pixel_size(raster: DatasetReader | Mapping[str, Any]) -> float | None:
    """The side of a pixel in metres on the ground, at the raster's centre; None if not placed.

    Takes an open raster or a profile (crs, transform, width, height). The size is the root of the
    area of a pixel, so it holds for degrees, feet, Mercator and rotated grids alike.
    """
    steps = _steps(raster)
    if steps is None:
        return None
    (east, north), (south_east, south_north) = steps
    return math.sqrt(abs(east * south_north - south_east * north)) or None


def pixel_aspect(raster: DatasetReader | Mapping[str, Any]) -> float:
    """How many times as high as wide a pixel is on the ground: 2 for square degrees at 60° north.

    1 where it isn't known, or within 2 % of that.
    """
    steps = _steps(raster)
    if steps is None:
        return 1.0
    across, down = (math.hypot(*step) for step in steps)
    aspect = down / across if across and down else 1.0
    return 1.0 if abs(aspect - 1) < SAME_SIZE else aspect


Step = tuple[float, float]  # metres east and north


def _steps(raster: DatasetReader | Mapping[str, Any]) -> tuple[Step, Step] | None:
    """Metres (east, north) of a step of a pixel along a row, and along a column.

    Both are carried to WGS 84 at the raster's centre and measured on the ellipsoid.
    """
    crs, transform = place_of(raster)
    if crs is None or transform is None:
        return None
    a, b, c, d, e, f = transform[:6]
    if not (crs.is_projected or crs.is_geographic):  # a local grid: its unit is all there is
        unit = crs.units_factor[1]
        return (a * unit, d * unit), (b * unit, e * unit)
    profile = raster if isinstance(raster, Mapping) else raster.profile
    step = 10.0
    cols = profile["width"] / 2 + np.array([0, step, 0])
    rows = profile["height"] / 2 + np.array([0, 0, step])
    try:
        places = warp_points(crs, WGS84, a * cols + b * rows + c, d * cols + e * rows + f)
    except CPLE_BaseError:  # PROJ knows no way from there to the Earth's longitudes
        return None
    lon, lat = (np.array(line) for line in places)
    if not np.isfinite([lon, lat]).all():
        return None
    metres_east, metres_north = _degree_lengths(lat[0])
    east = ((lon[1:] - lon[0] + 180) % 360 - 180) * metres_east / step
    north = (lat[1:] - lat[0]) * metres_north / step
    return (float(east[0]), float(north[0])), (float(east[1]), float(north[1]))


def _degree_lengths(latitude: float) -> tuple[float, float]:
    """Metres in a degree of longitude and of latitude on the WGS 84 ellipsoid.

    With a the semi-major axis, e the eccentricity and w = √(1 - e² sin² φ), the radii of curvature
    are N = a / w across and M = a (1 - e²) / w³ along the meridian (Snyder, USGS PP 1395, p. 24).
    """
    axis, e2 = 6378137.0, 0.00669437999014
    w = math.sqrt(1 - e2 * math.sin(math.radians(latitude)) ** 2)
    across, along = axis / w, axis * (1 - e2) / w**3
    return math.radians(across * math.cos(math.radians(latitude))), math.radians(along)


def working_shape(
    dataset: DatasetReader, pixel_size: float | None, target: float | None
) -> tuple[int, int]:
    """(H, W) of a picture at the target pixel size (metres); as it is where either is unknown.

    `pixel_size` is the root of a pixel's area; where a pixel is not square on the ground, the two
    axes are resampled by as much as each needs. Sizes within 2 % count as equal: resampling by so
    little only blurs. InputError where the pixels are 8 times too large, or 1,000 times too small.
    """
    shape = dataset.shape
    if not pixel_size or not target:
        return shape
    stretch = math.sqrt(pixel_aspect(dataset))
    scales = pixel_size * stretch / target, pixel_size / stretch / target
    if all(abs(scale - 1) < SAME_SIZE for scale in scales):
        return shape
    if max(scales) > _COARSEST or min(scales) < 1 / _FINEST:
        most = f"at most {_COARSEST} times" if max(scales) > 1 else f"at least 1/{_FINEST} of"
        raise InputError(
            f"{dataset.name} has pixels of {pixel_size:.3g} m: {most} the {target:.3g} m to work "
            "at was expected",
            "its CRS may be wrong; --pixel-size says what a pixel measures",
        )
    height, width = (round(size * scale) for size, scale in zip(shape, scales, strict=True))
    return height, width
