"""Rasters, opened by their content (never their name), and written whole or not at all.

Every raster of the application is opened here, with three drivers only, so that no file can make
GDAL open another one; with more where the file is the user's own.
"""

import logging
import re
import shutil
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.crs import CRS as CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.session import AWSSession
from rasterio.transform import Affine
from rasterio.windows import Window as Window

from minicnn.files import atomic_write
from segment.errors import DiskFull, InputError
from segment.storage import web
from segment.storage.paths import AnyPath, Source, part, to_path, to_source
from segment.storage.s3 import S3Path, gdal_options, session
from segment.storage.web import WebPath

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
_OWN_FIRST_BYTES = {  # of formats that are read where the user runs the command
    b"\0\0\0\x0cjP  \r\n\x87\n": "JP2OpenJPEG",
    b"\xffO\xffQ": "JP2OpenJPEG",
    b"SQLite format 3\0": "GPKG",
    b"<VRTDataset": "VRT",
}
_STRICT = {
    "GDAL_ERROR_ON_LIBJPEG_WARNING": True,  # else what is damaged is painted grey
    "GDAL_OVERVIEW_OVERSAMPLING_THRESHOLD": 0,  # no overviews: they may be of any quality
}
SIDECARS = (".aux.xml", ".msk")  # what GDAL reads beside a picture: its place, its mask
WORLD_FILES = (".tfw", ".jgw", ".pgw", ".wld")
_ORIENTATION = 274  # a TIFF's tag, and EXIF's
_MOST_TAGS = 4096  # of a TIFF's directory: real ones have some twenty
_PNG_END = b"IEND\xaeB`\x82"
_REMOTE = ("s3://", "https://", "http://")
_PAUSES = (0.2, 0.5, 1, 2, 4)  # seconds before a remote raster is tried again


@contextmanager
def open_raster(path: str | Source, own: bool = False) -> Iterator[DatasetReader]:
    """Open a GeoTIFF, JPEG or PNG, told apart by its first bytes; InputError for anything else.

    With `own`, for the files of whoever runs the command, JPEG 2000 and GeoPackage, too, and VRT,
    which makes GDAL open any other file; and files on web servers. What is in a bucket or on a
    server is read where it lies, window by window.
    """
    path = to_source(path) if own else to_path(path)
    driver = driver_of(path, own)
    if driver is None:
        raise InputError(f"{path} is empty or no picture: a GeoTIFF, JPEG or PNG was expected")
    if driver == "PNG" and _PNG_END not in part(path, -1, 4096):  # GDAL reads on without a word
        raise InputError(f"{path} is cut off: its PNG data has no end")
    with _environment(path), _tidied(path, driver) as name:
        try:
            with unplaced_is_fine():
                dataset = _opened(name, driver)
        except RasterioIOError as error:
            raise InputError(f"{path} is cut off or no {driver} picture{_or(path)}") from error
        with dataset:
            if "OVERVIEW_FILE" in dataset.tags(ns="OVERVIEWS"):  # GDAL would open it
                raise InputError(f"{path} names another file for its overviews: that isn't read")
            if not is_placed(dataset) and is_turned(path, dataset):
                raise InputError(
                    f"{path} is to be turned before it is shown (EXIF orientation): save it upright"
                )
            if dataset.count == 0:
                raise InputError(f"{path} holds no picture, or several: one was expected")
            yield dataset


def is_placed(dataset: DatasetReader) -> bool:
    return not dataset.transform.is_identity or bool(dataset.gcps[0])


def is_turned(path: Source, dataset: DatasetReader) -> bool:
    """Whether its rows and columns are not those to show."""
    if dataset.driver == "GTiff":
        return _tiff_orientation(path) not in (0, 1)
    return dataset.tags().get("EXIF_Orientation", "1") not in ("0", "1")


def _tiff_orientation(path: Source) -> int:
    """The orientation of a TIFF's first picture, 1 where it says nothing: GDAL doesn't tell.

    Its directory: entries of tag, type, count, value (TIFF 6.0, section 2; BigTIFF has wider ones).
    """
    start = part(path, 0, 16)
    order, big = "<" if start[:2] == b"II" else ">", 43 in start[2:4]
    at, number, entry = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    (first,) = struct.unpack_from(order + at, start, 8 if big else 4)
    (count,) = struct.unpack(order + number, part(path, first, struct.calcsize(order + number)))
    size = struct.calcsize(order + entry)
    table = part(path, first + struct.calcsize(order + number), size * min(count, _MOST_TAGS))
    for tag, _, _, value in struct.iter_unpack(order + entry, table[: len(table) // size * size]):
        if tag == _ORIENTATION:
            return int(struct.unpack_from(order + "H", value)[0])
    return 1


@contextmanager
def _tidied(path: Source, driver: str) -> Iterator[str]:
    """The name to open a file by: of a copy without its stray bytes, if it is a JPEG with some.

    Viewers skip bytes between the segments of a JPEG; here a warning of damage is an error.
    """
    tidy = None
    if driver == "JPEG" and isinstance(path, Path):
        tidy = _without_stray_bytes(path)
    if tidy is None or not isinstance(path, Path):
        yield str(path.absolute() if isinstance(path, Path) else path)
        return
    with tempfile.TemporaryDirectory(prefix="minicnn-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(tidy)
        for ending in (*SIDECARS, *WORLD_FILES):
            for beside in (path.with_name(path.name + ending), path.with_suffix(ending)):
                if beside.is_file():
                    shutil.copy(beside, folder)
        yield str(copy)


def _without_stray_bytes(path: Path) -> bytes | None:
    """A JPEG's segments one after another; None where they lie so already, or it is cut off."""
    data = path.read_bytes()
    parts, at, stray = [data[:2]], 2, False
    while at < len(data):
        marker = re.compile(rb"\xff+[^\xff\x00]").search(data, at)
        if marker is None:
            return None
        stray |= marker.start() > at
        kind, at = data[marker.end() - 1], marker.end()
        parts.append(b"\xff" + data[at - 1 : at])
        if kind == 0xD9:  # the end
            return b"".join(parts) if stray else None
        length = int.from_bytes(data[at : at + 2], "big")
        parts.append(data[at : at + length])
        at += length
        if kind == 0xDA:  # a scan: its data reach to the next marker that is no restart
            following = re.compile(rb"\xff+[^\xff\x00\xd0-\xd7]").search(data, at)
            end = following.start() if following else len(data)
            parts.append(data[at:end])
            at = end
    return None


def _environment(path: Source) -> rasterio.Env:
    if isinstance(path, WebPath):
        return rasterio.Env(**_STRICT, **web.gdal_options(path))
    if isinstance(path, S3Path):
        return rasterio.Env(AWSSession(session()), **_STRICT, **gdal_options(path))
    return rasterio.Env(**_STRICT)


def driver_of(path: Source, own: bool = False) -> str | None:
    """The GDAL driver for a file's content; None where it is no raster that may be opened.

    A VRT is one's own only where it lies on this machine or in one's bucket.
    """
    if isinstance(path, Path) and not path.is_file():
        raise InputError(f"{path}: no such file")
    start, known = part(path, 0, 64), _FIRST_BYTES
    if own:
        known = known | _OWN_FIRST_BYTES
        start = re.sub(rb"^(\xef\xbb\xbf)?\s*(<\?xml[^>]*>)?\s*(?=<)", b"", start)
    driver = next((name for magic, name in known.items() if start.startswith(magic)), None)
    return None if driver == "VRT" and isinstance(path, WebPath) else driver


@contextmanager
def unplaced_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _opened(name: str, driver: str) -> DatasetReader:
    """Open a raster, a remote one again where a connection breaks.

    GDAL asks again by itself only where a server is busy. Closing a file makes it forget what it
    has read of it, broken as it may be.
    """
    for seconds in _PAUSES if name.startswith(_REMOTE) else ():
        with suppress(RasterioIOError):
            return rasterio.open(name, driver=driver)
        time.sleep(seconds)
    return rasterio.open(name, driver=driver)


def patiently(dataset: DatasetReader, read: Callable[[DatasetReader], T]) -> T:
    """Read, from a remote raster again where a connection breaks: it must be opened anew then."""
    try:
        return read(dataset)
    except RasterioIOError:
        if not dataset.name.startswith(_REMOTE):
            raise
    for seconds in _PAUSES:
        time.sleep(seconds)
        _opened(dataset.name, dataset.driver).close()
        with _opened(dataset.name, dataset.driver) as anew, suppress(RasterioIOError):
            return read(anew)
    return read(dataset)


@contextmanager
def naming(dataset: DatasetReader) -> Iterator[None]:
    try:
        yield
    except RasterioIOError as error:
        name = dataset.name
        broken = f"{name} is cut off or damaged{_or(name)}: it can't be read whole"
        raise InputError(broken) from error


def _or(path: object) -> str:
    """What else may be at fault: GDAL doesn't tell."""
    return ", or the connection breaks" if f"{path}".startswith(_REMOTE) else ""


@contextmanager
def write_raster(path: str | Path, profile: Mapping[str, Any]) -> Iterator[DatasetWriter]:
    """Yield a tiled, compressed GeoTIFF to write into; at the end it is whole at `path`, or absent.

    Of `profile`, height, width, count, dtype, crs and transform are used, and, where there are
    any, gcps, rpcs and the colormap. `write_mask` makes an
    internal mask band: validity never costs a pixel value. What was written is read back before
    it gets its name, because GDAL says nothing when the disk fills up as a file is closed.
    """
    keys = ("height", "width", "count", "dtype", "crs", "transform")
    form: dict[str, Any] = {key: profile[key] for key in keys if profile.get(key) is not None}
    form |= {"driver": "GTiff", "compress": "deflate", "bigtiff": "if_safer"}
    form |= {"tiled": True, "blockxsize": 256, "blockysize": 256}
    if np.dtype(profile["dtype"]).kind == "f":
        form["predictor"] = 3  # for floating point: bytes of a kind lie together, and pack better
        form["zlevel"] = 1  # level 6 packs probabilities 2 % better, at 1.6 times the time
    with _written(path) as temporary:
        with unplaced_is_fine():
            dataset = rasterio.open(temporary, "w", **form)
        with dataset:
            for key in ("gcps", "rpcs"):
                if profile.get(key):
                    setattr(dataset, key, profile[key])
            if profile.get("colormap"):
                dataset.write_colormap(1, profile["colormap"])
            yield dataset
            flags = dataset.mask_flag_enums
        _read_back(temporary, flags)


@contextmanager
def _written(path: str | Path) -> Iterator[Path]:
    """`atomic_write` for GDAL, which says little of a disk that is full."""
    with atomic_write(path) as temporary, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        try:
            yield temporary
        except RasterioIOError as error:
            raise DiskFull(f"{path} could not be written: is the disk full?") from error


@contextmanager
def write_cog(
    path: str | Path, profile: Mapping[str, Any], tags: Mapping[str, str] | None = None
) -> Iterator[DatasetWriter]:
    """As `write_raster`, laid out to be read over a network: a Cloud-Optimised GeoTIFF.

    The overviews of bytes hold what most of the pixels below them do, so a mask stays a mask;
    those of other numbers are their averages. The raster is
    first written as it comes, into the system's folder for temporary files (TMPDIR).
    """
    overviews = "mode" if np.dtype(profile["dtype"]).kind == "u" else "average"
    form = {"compress": "deflate", "bigtiff": "if_safer", "overview_resampling": overviews}
    form["num_threads"] = "all_cpus"
    if np.dtype(profile["dtype"]).kind == "f":
        form["predictor"] = "FLOATING_POINT"
    with tempfile.TemporaryDirectory(prefix="minicnn-") as folder:
        plain = Path(folder) / "plain.tif"
        with write_raster(plain, profile) as dataset:
            dataset.update_tags(**(tags or {}))
            yield dataset
            flags = dataset.mask_flag_enums
        with _written(path) as temporary:
            with unplaced_is_fine():
                rasterio.shutil.copy(plain, temporary, driver="COG", **form)
            _read_back(temporary, flags)


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
    with unplaced_is_fine(), rasterio.open(path) as dataset:
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
