"""What comes in: streamed to the disk, opened by its content, measured before it is read."""

import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import flask
from rasterio.windows import Window
from werkzeug.datastructures import FileStorage

from api.errors import Problem, plain
from api.file_headers import Excessive, check_header
from api.settings import Settings
from minicnn.files import digest
from segment.data.ground import ground_pixel_size, working_shape
from segment.data.rasters import open_raster
from segment.data.reading import Reading, read_pixels
from segment.errors import DiskFull, InputError
from segment.model import ModelInfo

CHUNK = 1 << 20
WINDOWS = 64  # pixels: what is narrower costs the network as much
MEDIA = {"GTiff": "image/tiff", "JPEG": "image/jpeg", "PNG": "image/png"}
BODIES = (*MEDIA.values(), "application/octet-stream", "")
# What GDAL may not do with an upload: look at files beside it, or go out to the network.
GDAL = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
    "PROJ_NETWORK": "OFF",
    "GDAL_CACHEMAX": "64",  # MB of decoded blocks a process keeps
    "JPEGMEM": "256M",  # a progressive JPEG is unpacked whole before its first row
}


@dataclass(frozen=True)
class Source:
    """A scene on this disk: what it is called outside, and the SHA-256 of its bytes."""

    path: Path
    name: str
    digest: str


@dataclass(frozen=True)
class Look:
    """How a scene is to be looked at, where its file doesn't say, or says it wrongly."""

    pixel_size: float | None = None  # metres on the ground
    bands: tuple[int, ...] | None = None  # red, green and blue, from 1
    rescale: tuple[float, ...] | str | None = None  # what becomes black and white; or auto

    @classmethod
    def of(cls, ask: Mapping[str, Any]) -> "Look":
        bands = ask["bands"] and tuple(map(int, ask["bands"].split(",")))
        rescale = ask["rescale"]
        if rescale and rescale != "auto":
            rescale = tuple(map(float, rescale.split(",")))
        if isinstance(rescale, tuple) and not rescale[0] < rescale[1]:
            raise Problem(422, "The parameter 'rescale' wants the lower value first.")
        return cls(ask["pixel_size"], bands, rescale)

    def reading(self, own: Reading) -> Reading:
        """The model's reading, with what was asked for in its place."""
        return own.but(self.bands, self.rescale)


class Request(flask.Request):
    """A request whose files are written where the settings say, never to memory."""

    max_form_parts = 8

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        return _scratch_file()


def _scratch_file() -> Any:
    folder = flask.current_app.extensions["minicnn"].settings.folder("scratch")
    return tempfile.NamedTemporaryFile(dir=folder)


@contextmanager
def received(settings: Settings) -> Iterator[Source]:
    """The scene that this request brings, as multipart field `file` or as the body itself.

    It is not yet looked at: `checked` does that, once the request has its place in the queue.
    """
    if flask.request.mimetype == "multipart/form-data":
        part = _part()
        part.stream.flush()
        path = Path(part.stream.name)
        yield Source(path, _shown(part.filename or ""), digest(path))
        return
    with _scratch_file() as file:
        while chunk := flask.request.stream.read(CHUNK):
            file.write(chunk)
        file.flush()
        path = Path(file.name)
        yield Source(path, "The body", digest(path))


def _part() -> FileStorage:
    files, form = flask.request.files, flask.request.form
    if list(files) == ["file"] and not form and len(files.getlist("file")) == 1:
        return files["file"]
    if "file" in form:
        raise Problem(422, "The field 'file' holds text: a file was expected, with a file name.")
    raise Problem(422, "One multipart field was expected, called 'file', with one file in it.")


def _shown(name: str) -> str:
    """A client's file name as it may be shown and used again: its last part, harmless letters."""
    last = re.split(r"[\\/]", name)[-1]
    return re.sub(r"[^\w.+ -]", "_", last)[:100].strip(". ") or "The upload"


@contextmanager
def in_plain_words(source: Source) -> Iterator[None]:
    """Turn what `segment` says of a file into a problem that names the upload instead."""
    try:
        yield
    except InputError as error:
        if isinstance(error, DiskFull):
            raise
        raise Problem(422, plain(error, str(source.path.absolute()), source.name)) from error


class Checked(NamedTuple):
    """A scene that can be worked on, open, and how many pixels it costs at most."""

    raster: Any
    media_type: str
    pixels: int


@contextmanager
def checked(
    source: Source, settings: Settings, info: ModelInfo, look: Look | None = None
) -> Iterator[Checked]:
    """Open a scene; Problem 413 or 422 if it can't be worked on, here or in the block.

    Looks at what the file declares and reads its first and its last pixel: a small file may
    declare a huge picture, whole or in one block, or become one when it is resampled to the
    model's pixel size.
    """
    try:
        check_header(source.path)
    except Excessive as error:
        raise Problem(413, f"{source.name} holds {error}: more than is taken.") from None
    with in_plain_words(source), open_raster(source.path) as dataset:
        look, limit = look or Look(), settings.megapixels * 1e6
        shape = dataset.height, dataset.width
        pixel_bytes = sum(_bytes(dtype) for dtype in dataset.dtypes)
        rows, columns = dataset.block_shapes[0]
        own = look.pixel_size or ground_pixel_size(dataset)
        work = working_shape(dataset, own, info.pixel_size)
        for what, (height, width) in (("is", shape), ("resampled to the model would be", work)):
            cost = (height + -height % WINDOWS) * (width + -width % WINDOWS)
            if cost > max(limit, WINDOWS**2) or max(height, width) > settings.side:
                raise Problem(
                    413,
                    f"{source.name} {what} {width} x {height} pixels: at most "
                    f"{settings.megapixels:g} million, and {settings.side} a side, are taken.",
                )
        area, block = shape[0] * shape[1], rows * columns
        if area * pixel_bytes > 16 * limit or block * pixel_bytes > 4 * limit:
            raise Problem(413, f"{source.name} holds too many bytes for its pixels.")
        if dataset.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") in ("CMYK", "YCCK"):
            raise Problem(422, f"{source.name} is in the colours of print (CMYK), not RGB.")
        place = dataset.transform
        if not all(map(math.isfinite, place)) or place.determinant == 0:
            raise Problem(422, f"{source.name} has a georeference that is no place.")
        for row, column in ((0, 0), (shape[0] - 1, shape[1] - 1)):  # a file cut off lacks its end
            read_pixels(dataset, look.reading(info.reading), Window(column, row, 1, 1))
        yield Checked(dataset, MEDIA[dataset.driver], max(math.prod(shape), math.prod(work)))


def _bytes(dtype: str) -> int:
    return int((re.findall(r"\d+", dtype) or ["64"])[0]) // 8 or 1
