"""Draws aerial-looking scenes from a seed: training, tests and notebooks then need no download.

A scene is made as a place is: a street plan and blocks with a land use (`town`), then buildings,
trees and cars (`buildings`). What stands is drawn against a height field (`canvas`), which one sun
shades and lets cast shadows; a camera adds blur, haze, a colour cast and noise (`camera`).
"""

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rasterio import Affine

from segment.data.rasters import open_raster, write_raster
from segment.errors import InputError
from segment.progress import progress
from segment.storage.paths import default_cache
from segment.synthetic.buildings import build
from segment.synthetic.camera import photograph
from segment.synthetic.canvas import PIXEL, Drawing
from segment.synthetic.town import CITIES, STYLES

MAX_SIZE = 5000  # pixels
MARGIN = 64  # pixels drawn around a scene and cut off: what stands there throws its shadow in
SPACING = 2000.0  # metres from a scene's corner to the next one's: more than the largest scene
MODULES = ("town", "canvas", "buildings", "camera", "scenes")  # what a scene's pixels depend on


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
