"""Pictures and their labels: found in folders, read as 8-bit RGB, placed on the ground, written.

Every raster of the application is opened here, by its content (never its name) and with three
drivers only, so that no file can make GDAL open another one.
"""

import json
import logging
import math
import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioIOError
from rasterio.features import bounds, rasterize
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.session import AWSSession
from rasterio.transform import Affine
from rasterio.warp import transform as warp_points
from rasterio.warp import transform_geom
from rasterio.windows import Window

from minicnn.files import atomic_write
from segment.errors import InputError
from segment.layouts import Pair, find_pairs
from segment.storage.paths import AnyPath, local, part, to_path
from segment.storage.s3 import S3Path, gdal_options, session

BACKGROUND, BUILDING, IGNORE = 0, 1, 255

T = TypeVar("T")

logging.getLogger("rasterio").addHandler(logging.NullHandler())  # it raises what it logs

_FIRST_BYTES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",  # BigTIFF
    b"MM\0+": "GTiff",
}
_STRICT = {
    "GDAL_ERROR_ON_LIBJPEG_WARNING": True,  # else what is damaged is painted grey
    "GDAL_OVERVIEW_OVERSAMPLING_THRESHOLD": 0,  # no overviews: they may be of any quality
}
SIDECARS = (".aux.xml", ".msk")  # what GDAL reads beside a picture: its place, its mask
_WORLD_FILES = (".tfw", ".jgw", ".pgw", ".wld")
_PNG_END = b"IEND\xaeB`\x82"
_CITY = re.compile(r"^(.+?)(\d+)(_|$)")
_SLIPPY = re.compile(r"(?:^|[-_])(\d+)-(\d+)-(1[4-9]|2[0-4])$")
_WGS84 = CRS.from_epsg(4326)
_SAME_SIZE = 0.02  # pixel sizes that differ by less are one: resampling would only blur
_PAUSES = (0.2, 0.5, 1, 2, 4)  # seconds before a remote raster is tried again
_COARSEST = 8  # times the pixel size to work at: what is coarser shows no building of use


@dataclass(frozen=True)
class Reading:
    """How pixels become 8-bit RGB; None is what an 8-bit RGB picture needs.

    bands: the bands (from 1) that are red, green and blue; None: the three that are not alpha.
    value_range: the values that become 0 and 255, linearly; None: pixels are 8-bit already.
    """

    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None

    def __str__(self) -> str:
        """In the words of the command line."""
        options = []
        if self.bands:
            options.append("--bands " + " ".join(map(str, self.bands)))
        if self.value_range:
            options.append("--value-range {:g} {:g}".format(*self.value_range))
        return " ".join(options) or "8-bit RGB"


@dataclass(frozen=True)
class Scene:
    """A picture, its label, and where it belongs: scenes and cities are what splits hold apart.

    stem is unique within the city; pixel_size is in metres on the ground, None where unknown.
    """

    image: AnyPath
    label: Path | None
    stem: str
    scene: str
    city: str
    pixel_size: float | None


# ---------------------------------------------------------------- reading and writing rasters


@contextmanager
def open_raster(path: str | AnyPath) -> Iterator[DatasetReader]:
    """Open a GeoTIFF, JPEG or PNG, told apart by its first bytes; InputError for anything else.

    One in a bucket is read where it lies, window by window.
    """
    path = to_path(path)
    driver = _driver(path)
    if driver is None:
        raise InputError(f"{path} is empty or no picture: a GeoTIFF, JPEG or PNG was expected")
    if driver == "PNG" and _PNG_END not in part(path, -1, 4096):  # GDAL reads on without a word
        raise InputError(f"{path} is cut off: its PNG data has no end")
    with _environment(path):
        try:
            with _unplaced_is_fine():
                dataset = _opened(str(path.absolute()), driver)
        except RasterioIOError as error:
            raise InputError(f"{path} is cut off or no {driver} picture{_or(path)}") from error
        with dataset:
            if "OVERVIEW_FILE" in dataset.tags(ns="OVERVIEWS"):  # GDAL would open it
                raise InputError(f"{path} names another file for its overviews: that isn't read")
            yield dataset


def _environment(path: AnyPath) -> rasterio.Env:
    if isinstance(path, S3Path):
        return rasterio.Env(AWSSession(session()), **_STRICT, **gdal_options(path))
    return rasterio.Env(**_STRICT)


def _driver(path: AnyPath) -> str | None:
    if isinstance(path, Path) and not path.is_file():
        raise InputError(f"{path}: no such file")
    start = part(path, 0, 8)
    return next((name for magic, name in _FIRST_BYTES.items() if start.startswith(magic)), None)


@contextmanager
def _unplaced_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _opened(name: str, driver: str) -> DatasetReader:
    """Open a raster, a remote one again where a connection breaks.

    GDAL asks again by itself only where a server is busy. Closing a file makes it forget what it
    has read of it, broken as it may be.
    """
    for seconds in _PAUSES if name.startswith("s3://") else ():
        with suppress(RasterioIOError):
            return rasterio.open(name, driver=driver)
        time.sleep(seconds)
    return rasterio.open(name, driver=driver)


def _patiently(dataset: DatasetReader, read: Callable[[DatasetReader], T]) -> T:
    """Read, from a remote raster again where a connection breaks: it must be opened anew then."""
    try:
        return read(dataset)
    except RasterioIOError:
        if not dataset.name.startswith("s3://"):
            raise
    for seconds in _PAUSES:
        time.sleep(seconds)
        _opened(dataset.name, dataset.driver).close()
        with _opened(dataset.name, dataset.driver) as anew, suppress(RasterioIOError):
            return read(anew)
    return read(dataset)


@contextmanager
def _naming(dataset: DatasetReader) -> Iterator[None]:
    try:
        yield
    except RasterioIOError as error:
        name = dataset.name
        broken = f"{name} is cut off or damaged{_or(to_path(name))}: it can't be read whole"
        raise InputError(broken) from error


def _or(path: AnyPath) -> str:
    """What else may be at fault: GDAL doesn't tell."""
    return ", or the connection breaks" if isinstance(path, S3Path) else ""


def read_pixels(
    dataset: DatasetReader,
    reading: Reading | None = None,
    window: Window | None = None,
    shape: tuple[int, int] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read a window as 8-bit RGB, resampled to `shape`: pixels (H, W, 3) uint8, valid (H, W) bool.

    Valid is what the file itself says (alpha, mask band, nodata value): black is a colour like any
    other. Invalid pixels are 0, and so is whatever part of the window lies outside the picture.
    The window may start and end between pixels; shrinking averages, enlarging is bilinear.
    Raises InputError for damaged files, NaN, and pixels that `reading` does not explain.
    """
    reading = reading or Reading()
    window = window or Window(0, 0, dataset.width, dataset.height)
    height, width = shape or (round(window.height), round(window.width))
    bands = _bands(dataset, reading)
    pixels = np.zeros((height, width, 3), np.uint8)
    valid = np.zeros((height, width), bool)
    rows, row_off, row_count = _overlap(window.row_off, window.height, height, dataset.height)
    cols, col_off, col_count = _overlap(window.col_off, window.width, width, dataset.width)
    out = rows.stop - rows.start, cols.stop - cols.start
    if min(out) < 1:
        return pixels, valid
    shrinks = row_count > out[0] or col_count > out[1]
    how: dict[str, Any] = {
        "window": Window(col_off, row_off, col_count, row_count),
        "resampling": Resampling.average if shrinks else Resampling.bilinear,
    }
    with _naming(dataset):
        values = _patiently(dataset, lambda d: d.read(bands, out_shape=(3, *out), **how))
        inside = _patiently(dataset, lambda d: d.dataset_mask(out_shape=out, **how)) >= 128
    values = np.moveaxis(_to_bytes(values, inside, reading, dataset.name), 0, -1)
    pixels[rows, cols] = np.where(inside[..., None], values, 0)
    valid[rows, cols] = inside
    return pixels, valid


def _overlap(start: float, length: float, count: int, size: int) -> tuple[slice, float, float]:
    """Where `count` output pixels over [start, start + length) meet a picture of `size` pixels.

    Returns the output pixels wholly inside, and the offset and length of their source.
    """
    scale = count / length
    first = max(0, math.ceil(-start * scale - 1e-6))
    last = min(count, math.floor((size - start) * scale + 1e-6))
    offset = max(0.0, start + first / scale)
    return slice(first, max(first, last)), offset, min((last - first) / scale, size - offset)


def _bands(dataset: DatasetReader, reading: Reading) -> list[int]:
    """The three bands to read; InputError, naming the option, where the reading doesn't fit."""
    name, dtype = dataset.name, dataset.dtypes[0]
    bands = list(reading.bands or _colour_bands(dataset))
    if reading.bands is None and len(bands) != 3:
        raise InputError(
            f"{name} has {len(bands)} colour band(s) where red, green and blue were expected; "
            "train with --bands to read three of your choice"
        )
    if len(bands) != 3 or not all(1 <= band <= dataset.count for band in bands):
        raise InputError(f"--bands {bands}: {name} has bands 1 to {dataset.count}, and three count")
    if np.dtype(dtype).kind not in "uif":
        raise InputError(f"{name} holds {dtype} pixels: whole or real numbers were expected")
    if reading.value_range is None and dtype != "uint8":
        raise InputError(
            f"{name} holds {dtype} pixels where 8-bit ones were expected; "
            "train with --value-range LOW HIGH to say which values are black and white"
        )
    if reading.value_range and dtype == "uint8" and reading.value_range[1] > 255:
        raise InputError(
            f"{name} holds 8-bit pixels where values of up to {reading.value_range[1]:g} were "
            "expected, as --value-range or the model says"
        )
    return bands


def _colour_bands(dataset: DatasetReader) -> list[int]:
    kinds = enumerate(dataset.colorinterp, start=1)
    return [band for band, kind in kinds if kind != ColorInterp.alpha]


def _to_bytes(
    values: NDArray[Any], inside: NDArray[np.bool_], reading: Reading, name: str
) -> NDArray[np.uint8]:
    if values.dtype.kind == "f" and not np.isfinite(values[:, inside]).all():
        raise InputError(f"{name} has NaN or infinite pixels that no nodata value or mask excludes")
    if reading.value_range is None:
        return values
    low, high = reading.value_range
    if not low < high:
        raise InputError(f"--value-range {low:g} {high:g}: the first must be below the second")
    scaled = (np.where(inside, values, low).astype(np.float32) - low) * (255 / (high - low))
    return np.clip(scaled, 0, 255).round().astype(np.uint8)


@contextmanager
def write_raster(path: str | Path, profile: Mapping[str, Any]) -> Iterator[DatasetWriter]:
    """Yield a tiled, compressed GeoTIFF to write into; at the end it is whole at `path`, or absent.

    Of `profile`, height, width, count, dtype, crs and transform are used. `write_mask` makes an
    internal mask band: validity never costs a pixel value. What was written is read back before
    it gets its name, because GDAL says nothing when the disk fills up as a file is closed.
    """
    keys = ("height", "width", "count", "dtype", "crs", "transform")
    form: dict[str, Any] = {key: profile[key] for key in keys if profile.get(key) is not None}
    form |= {"driver": "GTiff", "compress": "deflate", "bigtiff": "if_safer"}
    form |= {"tiled": True, "blockxsize": 256, "blockysize": 256}
    if np.dtype(profile["dtype"]).kind == "f":
        form["predictor"] = 3  # for floating point: bytes of a kind lie together, and pack better
    with atomic_write(path) as temporary, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        try:
            with _unplaced_is_fine():
                dataset = rasterio.open(temporary, "w", **form)
            with dataset:
                yield dataset
                flags = dataset.mask_flag_enums
            _read_back(temporary, flags)
        except RasterioIOError as error:
            raise InputError(f"{path} could not be written: is the disk full?") from error


@contextmanager
def write_cog(
    path: str | Path, profile: Mapping[str, Any], tags: Mapping[str, str] | None = None
) -> Iterator[DatasetWriter]:
    """As `write_raster`, laid out to be read over a network: a Cloud-Optimised GeoTIFF.

    Its overviews hold what most of the pixels below them do, so a mask stays a mask. The raster is
    first written as it comes, into the system's folder for temporary files (TMPDIR).
    """
    form = {"compress": "deflate", "bigtiff": "if_safer", "overview_resampling": "mode"}
    with tempfile.TemporaryDirectory(prefix="minicnn-") as folder:
        plain = Path(folder) / "plain.tif"
        with write_raster(plain, profile) as dataset:
            dataset.update_tags(**(tags or {}))
            yield dataset
            flags = dataset.mask_flag_enums
        with atomic_write(path) as temporary, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            try:
                with _unplaced_is_fine():
                    rasterio.shutil.copy(plain, temporary, driver="COG", **form)
                _read_back(temporary, flags)
            except RasterioIOError as error:
                raise InputError(f"{path} could not be written: is the disk full?") from error


def is_whole(path: str | AnyPath, shape: tuple[int, int], tags: Mapping[str, str]) -> bool:
    """Whether a raster of this shape, with these tags, is there and can be read to its end."""
    try:
        with open_raster(path) as dataset:
            own = dataset.tags()
            if dataset.shape != shape or any(own.get(key) != tags[key] for key in tags):
                return False
            _read_blocks(dataset)
            return True
    except (InputError, RasterioIOError):
        return False


def _read_back(path: Path, flags: object) -> None:
    """Raise RasterioIOError unless every block of the file, and its mask, can be read."""
    with _unplaced_is_fine(), rasterio.open(path) as dataset:
        if dataset.mask_flag_enums != flags:
            raise RasterioIOError("the mask is gone")
        _read_blocks(dataset)


def _read_blocks(dataset: DatasetReader) -> None:
    for _, window in dataset.block_windows(1):
        dataset.read(window=window)
        dataset.dataset_mask(window=window)


def shifted(transform: Affine, row: int, col: int) -> Affine:
    """The transform of what begins at (row, col) of a raster."""
    a, b, c, d, e, f = transform[:6]
    return Affine(a, b, a * col + b * row + c, d, e, d * col + e * row + f)


def read_mask(
    dataset: DatasetReader, window: Window
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A window of a mask that prediction wrote: values 0 and 255 (h, w), and where they are valid.

    Raises InputError for damaged files.
    """
    with _naming(dataset):
        return dataset.read(1, window=window), dataset.dataset_mask(window=window) != 0


# ---------------------------------------------------------------- labels


def read_label(scene: Scene, like: DatasetReader) -> NDArray[np.uint8]:
    """The label of a scene, (H, W) like its opened image: 0 background, 1 building, 255 ignore.

    A raster label holds 0 and 1, or 0 and 255; its nodata value means nothing (real masks declare
    0 or 1 as nodata), its mask band or alpha marks what to ignore. Anything else is GeoJSON:
    a pixel is building where its centre lies in a polygon. Raises InputError.
    """
    if scene.label is None:
        raise InputError(f"{scene.image} has no mask")
    if _driver(scene.label) is None:
        return _rasterised(scene.label, like)
    with open_raster(scene.label) as dataset, _naming(dataset):
        if dataset.shape != like.shape:
            raise InputError(
                f"{scene.label} is {dataset.width} x {dataset.height} pixels, "
                f"but its image {scene.image} is {like.width} x {like.height}"
            )
        values = dataset.read(_colour_bands(dataset))
        ignored = (
            dataset.dataset_mask() < 128
            if MaskFlags.per_dataset in dataset.mask_flag_enums[0]
            else np.zeros(dataset.shape, bool)
        )
    building = values[0] != 0
    top = values[0].max()
    if (values != values[0]).any() or top not in (0, 1, 255) or (values[0][building] != top).any():
        raise InputError(f"{scene.label} is no mask: values 0 and 1, or 0 and 255, were expected")
    return np.where(ignored, IGNORE, building).astype(np.uint8)


def _rasterised(path: Path, like: DatasetReader) -> NDArray[np.uint8]:
    polygons, crs = _read_polygons(path)
    label = np.zeros(like.shape, np.uint8)
    if like.crs is None:
        raise InputError(f"{like.name} has no CRS, so the polygons of {path} have no place on it")
    if polygons:
        placed = transform_geom(crs, like.crs, polygons)
        rasterize(placed, out=label, transform=like.transform, default_value=BUILDING)
    return label


def _read_polygons(path: Path) -> tuple[list[Any], CRS]:
    """The polygons of a GeoJSON file and their CRS: WGS 84, or what an old-style `crs` names."""
    try:
        collection = json.loads(path.read_bytes())
        named = collection.get("crs")
        crs = CRS.from_user_input(named["properties"]["name"]) if named else _WGS84
        shapes = [feature["geometry"] for feature in collection["features"]]
        shapes = [shape for shape in shapes if shape and shape.get("coordinates") != []]
    except (ValueError, KeyError, TypeError, AttributeError, CRSError) as error:
        raise InputError(f"{path} is neither a picture nor a GeoJSON FeatureCollection") from error
    for shape in shapes:
        if not _is_area(shape):
            kind = shape.get("type")
            raise InputError(f"{path} holds a faulty shape or a {kind}: polygons were expected")
        west, south, east, north = bounds(shape)
        if crs.is_geographic and not (-360 <= west <= east <= 360 and -90 <= south <= north <= 90):
            raise InputError(f"{path} has no longitudes and latitudes, and names no other CRS")
    return shapes, crs


def _is_area(shape: Any) -> bool:
    """Whether a geometry is a polygon, or several, down to each number: GDAL crashes on others."""
    coordinates = shape.get("coordinates")
    if shape.get("type") == "MultiPolygon":
        return _each(_is_polygon, coordinates, least=1)
    return shape.get("type") == "Polygon" and _is_polygon(coordinates)


def _is_polygon(rings: Any) -> bool:
    return _each(lambda ring: _each(_is_position, ring, least=4), rings, least=1)


def _is_position(point: Any) -> bool:
    return _each(lambda x: type(x) in (int, float) and abs(x) < 1e300, point, least=2)


def _each(test: Callable[[Any], bool], items: Any, least: int) -> bool:
    return isinstance(items, list) and len(items) >= least and all(map(test, items))


# ---------------------------------------------------------------- size on the ground


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
        places = warp_points(crs, _WGS84, a * cols + b * rows + c, d * cols + e * rows + f)
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


# ---------------------------------------------------------------- finding scenes


def find_scenes(
    paths: Iterable[str | AnyPath], labelled: bool = True, cache: str | Path | None = None
) -> list[Scene]:
    """The scenes in folders and CSV files (see `find_pairs`), sorted by city and stem.

    `austin1_7` is in the scene austin1 of the city austin: what stands before the first number that
    ends the name or precedes an underscore is the city, if it begins and ends with a letter. Other
    names tell no city: the file is a scene of its own, in a city named like its folder. What a CSV
    says goes first. Equal cities in two folders are one city, and slippy tiles (x-y-zoom) of the
    same ground are one scene, so that no split parts them. Labelled scenes in a bucket are fetched
    into the cache, since training reads all of them; others stay there. Raises InputError.
    """
    pairs = [pair for path in paths for pair in find_pairs(to_path(path), labelled)]
    found = [_scene(pair) for pair in (_fetched(pairs, cache) if labelled else pairs)]
    once: dict[AnyPath, Scene] = {}
    for scene in found:
        other = once.get(scene.image.resolve(), scene)
        if scene.label and other.label and not scene.label.samefile(other.label):
            raise InputError(f"{scene.image} has two masks, {other.label} and {scene.label}")
        once[scene.image.resolve()] = scene
    scenes = sorted(once.values(), key=lambda scene: (scene.city, scene.stem, str(scene.image)))
    return sorted(_unique(_one_ground(scenes)), key=lambda scene: (scene.city, scene.stem))


def _fetched(pairs: Sequence[Pair], cache: str | Path | None) -> list[Pair]:
    images = local((pair.image for pair in pairs), cache, SIDECARS + _WORLD_FILES)
    labels = local((pair.label for pair in pairs if pair.label), cache)
    return [
        replace(pair, image=image, label=label)
        for pair, image, label in zip(pairs, images, labels, strict=True)
    ]


def _scene(pair: Pair) -> Scene:
    image, told = pair.image, _CITY.match(pair.image.stem)
    if told and told[1][0].isalpha() and told[1][-1].isalpha():
        city, scene = told[1], told[1] + told[2]
    else:
        city, scene = _set_name(image), image.stem
    label = local([pair.label])[0] if pair.label else None
    if label and not label.is_file():
        raise InputError(f"{label}: no such file, though a mask of {image} was expected there")
    with open_raster(image) as dataset:
        size = pair.pixel_size or ground_pixel_size(dataset) or _slippy_size(image.stem, dataset)
    return Scene(image, label, image.stem, pair.scene or scene, pair.city or city, size)


def _set_name(image: AnyPath) -> str:
    """The name of the folder that holds the set: `images*` and `train` say nothing about it."""
    folder = image.resolve().parent
    while folder.name.startswith("images") or folder.name == "train":
        folder = folder.parent
    return folder.name


def _slippy(stem: str) -> tuple[int, int, int] | None:
    """x, y, zoom of a slippy tile's name, as in OAM-619224-523264-20."""
    told = _SLIPPY.search(stem)
    if not told:
        return None
    x, y, zoom = (int(part) for part in told.groups())
    return (x, y, zoom) if max(x, y) < 2**zoom else None


def _slippy_size(stem: str, dataset: DatasetReader) -> float | None:
    """The ground pixel size that follows from a slippy tile's name (Web Mercator, EPSG:3857)."""
    tile = _slippy(stem)
    if tile is None:
        return None
    x, y, zoom = tile
    half = math.pi * 6378137.0  # the map spans [-half, half]; y runs down from the top
    side = 2 * half / 2**zoom
    width, height = dataset.width, dataset.height
    place = Affine(side / width, 0, x * side - half, 0, -side / height, half - y * side)
    profile = {"crs": "EPSG:3857", "transform": place, "width": width, "height": height}
    return ground_pixel_size(profile)


def _one_ground(scenes: Sequence[Scene]) -> list[Scene]:
    """Slippy tiles that lie within another one, of a lower zoom, join its scene and city."""
    tiles = {_slippy(s.stem): s for s in scenes if s.scene == s.stem}

    def joined(scene: Scene) -> Scene:
        tile = _slippy(scene.stem)
        if tile is None or scene.scene != scene.stem:
            return scene
        x, y, zoom = tile
        above = ((x >> up, y >> up, zoom - up) for up in range(zoom, -1, -1))
        top = next(tiles[tile] for tile in above if tile in tiles)
        return replace(scene, scene=top.stem, city=top.city)

    return [joined(scene) for scene in scenes]


def _unique(scenes: Sequence[Scene]) -> list[Scene]:
    """Where two sets have a picture of one name in one city, the set's name is added to it."""
    counts = Counter((scene.city, scene.stem) for scene in scenes)
    seen: dict[tuple[str, str], Scene] = {}
    for scene in scenes:
        if counts[scene.city, scene.stem] > 1:
            scene = replace(scene, stem=f"{scene.stem}@{_set_name(scene.image)}")
        other = seen.setdefault((scene.city, scene.stem), scene)
        if other is not scene:
            raise InputError(
                f"{other.image} and {scene.image} have one name in one city: "
                "rename one, or give their cities in a CSV"
            )
    return list(seen.values())
