"""Writes drawn scenes as GeoTIFF: training, tests and notebooks then need no download."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rasterio import Affine

from segment.data.rasters import open_raster, write_raster
from segment.errors import InputError
from segment.progress import progress
from segment.storage.paths import default_cache
from segment.synthetic.canvas import PIXEL
from segment.synthetic.draw import draw_scene
from segment.synthetic.town import CITIES, STYLES

SPACING = 2000.0  # metres from a scene's corner to the next one's: more than the largest scene
# What a scene's pixels depend on.
MODULES = ("town", "canvas", "buildings", "camera", "draw", "scenes")


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
    folder, code = Path(folder), code_digest()
    scenes = [(city, number) for city in cities for number in range(1, scenes_per_city + 1)]
    if not scenes:
        raise InputError(f"no scene to draw: {len(cities)} cities, {scenes_per_city} scenes each")
    for name in ("images", "gt"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    paths = []
    for city, number in progress(scenes, desc="drawing scenes", unit="scene"):
        image, label = (folder / name / f"{city}{number}.tif" for name in ("images", "gt"))
        made = f"{city}{number} size={size} seed={seed} code={code:08x}"
        if [made_by(image), made_by(label)] != [made, made]:
            pixels, mask = draw_scene(city, number, size, seed)
            write_layer(image, np.moveaxis(pixels, 2, 0), city, number, made)
            write_layer(label, mask[None], city, number, made)
        paths.append(image)
    return paths


def code_digest() -> int:
    """A checksum of the modules that draw."""
    own = Path(__file__)
    modules = (own.with_name(f"{name}.py") for name in MODULES)
    return zlib.crc32(b"".join(module.read_bytes() for module in modules))


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
