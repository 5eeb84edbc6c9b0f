"""How large a pixel is on the ground, in whatever CRS, and which shape that gives a picture."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rasterio.warp import transform as warp_points

from segment.errors import InputError

WGS84 = CRS.from_epsg(4326)
_SAME_SIZE = 0.02  # pixel sizes that differ by less are one: resampling would only blur
_COARSEST = 8  # times the pixel size to work at: what is coarser shows no building of use


def ground_pixel_size(raster: DatasetReader | Mapping[str, Any]) -> float | None:
    """The side of a pixel in metres on the ground, at the raster's centre; None if not placed.

    Takes an open raster or a profile (crs, transform, width, height). A step along the row and one
    along the column are carried to WGS 84 and measured on the ellipsoid; the size is the root of
    the area they span, so it holds for degrees, feet, Mercator and rotated grids alike.
    """
    profile = raster if isinstance(raster, Mapping) else raster.profile
    crs, transform = profile.get("crs"), profile.get("transform")
    if crs is None or transform is None or transform.is_identity:
        return None
    crs = CRS.from_user_input(crs)
    if not (crs.is_projected or crs.is_geographic):  # a local grid: its unit is all there is
        return math.sqrt(abs(transform.determinant)) * crs.units_factor[1] or None
    step = 10.0
    cols = profile["width"] / 2 + np.array([0, step, 0])
    rows = profile["height"] / 2 + np.array([0, 0, step])
    a, b, c, d, e, f = transform[:6]
    try:
        places = warp_points(crs, WGS84, a * cols + b * rows + c, d * cols + e * rows + f)
    except CPLE_BaseError:  # PROJ knows no way from there to the Earth's longitudes
        return None
    lon, lat = (np.array(line) for line in places)
    if not np.isfinite([lon, lat]).all():
        return None
    metres_east, metres_north = _degree_lengths(lat[0])
    east = ((lon[1:] - lon[0] + 180) % 360 - 180) * metres_east
    north = (lat[1:] - lat[0]) * metres_north
    return math.sqrt(abs(east[0] * north[1] - east[1] * north[0])) / step or None


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

    Sizes within 2 % count as equal: resampling by so little only blurs. InputError where the
    picture's pixels are more than 8 times too large.
    """
    shape = dataset.shape
    scale = pixel_size / target if pixel_size and target else 1.0
    if abs(scale - 1) < _SAME_SIZE:
        return shape
    if scale > _COARSEST:
        raise InputError(
            f"{dataset.name} has pixels of {pixel_size:.3g} m: at most {_COARSEST} times the "
            f"{target:.3g} m to work at was expected"
        )
    return round(shape[0] * scale), round(shape[1] * scale)
