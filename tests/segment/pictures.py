"""Small pictures and masks on the disk, as aerial sets hold them."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

UTM = {"crs": "EPSG:32614", "transform": Affine(0.3, 0, 620000, 0, -0.3, 3350000)}  # Austin


def write_picture(path: Path, pixels: np.ndarray, driver: str = "GTiff", **form) -> Path:
    """Write (H, W) or (H, W, bands) pixels; without a crs in `form`, a picture without a place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = np.moveaxis(np.atleast_3d(pixels), -1, 0)
    size = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    with pytest.warns(NotGeoreferencedWarning) if "crs" not in form else _nothing():
        dataset = rasterio.open(path, "w", driver=driver, dtype=bands.dtype, **size, **form)
    with dataset:
        dataset.write(bands)
    return path


class _nothing:
    __enter__ = __exit__ = lambda *_: None


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) random pixels, black ones among them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[::7, ::5] = 0
    return pixels


def mask(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W) pixels 0 and 255."""
    return np.random.default_rng(seed).integers(0, 2, (height, width), dtype=np.uint8) * 255


def write_pair(folder: Path, stem: str, height: int = 300, width: int = 600, **form) -> Path:
    """images/STEM.tif and gt/STEM.tif in the folder; returns the image."""
    seed = sum(stem.encode())
    write_picture(folder / "gt" / f"{stem}.tif", mask(height, width, seed), **form)
    return write_picture(folder / "images" / f"{stem}.tif", photograph(height, width, seed), **form)
