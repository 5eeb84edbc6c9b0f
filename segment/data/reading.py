"""Which bands are red, green and blue, which pixels are valid, and how values become 8 bits.

A file says so itself, by names of bands, alpha, mask band, nodata value and palette; a `Reading`
says it where the file doesn't. `look` finds out once for an open raster, `read_pixels` then reads.
"""

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NodataShadowWarning
from rasterio.io import DatasetReader, MemoryFile
from rasterio.windows import Window

from segment.data.rasters import is_placed, is_turned, naming, patiently, unplaced_is_fine
from segment.errors import InputError
from segment.storage.paths import to_source

AUTO = "auto"
PERCENTILES = 2, 98  # of a scene's values, which `auto` makes black and white
_SAMPLE = 2048  # pixels a side: of a larger scene, windows spread over it are looked at
_SPREAD = 8  # windows along each side of such a scene
_MASK_BAND = 0  # stands for the dataset's own mask where a band's number is expected
_COLOURS = ColorInterp.red, ColorInterp.green, ColorInterp.blue

# Of a file with both nodata value and alpha, rasterio says that only one counts: here both do.
warnings.filterwarnings("ignore", category=NodataShadowWarning)


@dataclass(frozen=True)
class Reading:
    """How pixels become 8-bit RGB; None is what an 8-bit RGB picture needs.

    bands: the bands (from 1) that are red, green and blue; None: those that the file calls so, else
    the first three that are not alpha.
    value_range: the values that become 0 and 255, linearly; None: pixels are 8-bit already; "auto":
    the 2nd and the 98th percentile of the scene's valid values, all three bands together.
    """

    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | str | None = None

    def __str__(self) -> str:
        """In the words of the command line."""
        options = []
        if self.bands:
            options.append("--bands " + " ".join(map(str, self.bands)))
        if isinstance(self.value_range, str):
            options.append(f"--value-range {self.value_range}")
        elif self.value_range:
            options.append("--value-range {:g} {:g}".format(*self.value_range))
        return " ".join(options) or "8-bit RGB"

    def but(self, bands: Any = None, value_range: Any = None) -> "Reading":
        """This reading with what was asked for in its place; None leaves it as it is."""
        document = {"bands": bands or self.bands, "value_range": value_range or self.value_range}
        return Reading.of(document)

    @staticmethod
    def of(document: Mapping[str, Any]) -> "Reading":
        """A reading from JSON, which has lists where this has tuples."""
        bands, values = document.get("bands"), document.get("value_range")
        if values and not isinstance(values, str):
            values = float(values[0]), float(values[1])
        return Reading(tuple(bands) if bands else None, values or None)


@dataclass(frozen=True, eq=False)
class Look:
    """How an open raster is to be read, all questions settled.

    masks: bands that say what is valid (0: the dataset's mask band), with the least value that does
    so: half of the largest in them, since an alpha may be 0 and 1, or 0 and 65535.
    palette: (256, 4) the red, green, blue and alpha of each value of band 1.
    notes: what a person should be told about the choices, a sentence each.
    """

    bands: tuple[int, ...]
    value_range: tuple[float, float] | None
    masks: tuple[tuple[int, float], ...]
    nodata: bool
    palette: NDArray[np.uint8] | None
    notes: tuple[str, ...]


_looks: WeakKeyDictionary[DatasetReader, dict[Reading, Look]] = WeakKeyDictionary()


def look(dataset: DatasetReader, reading: Reading | None = None) -> Look:
    """Settle how an open raster is read; InputError where `reading` does not explain its pixels."""
    reading = reading or Reading()
    known = _looks.setdefault(dataset, {})
    if reading not in known:
        with naming(dataset):
            known[reading] = _look(dataset, reading)
    return known[reading]


def _look(dataset: DatasetReader, reading: Reading) -> Look:
    if dataset.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") in ("CMYK", "YCCK"):
        raise InputError(f"{dataset.name} is in the colours of print (CMYK), not RGB")
    notes: list[str] = []
    if is_placed(dataset) and is_turned(to_source(dataset.name), dataset):
        about = f"{dataset.name} has a place, and is to be turned before it is shown (EXIF "
        notes.append(about + "orientation): it is read as it lies, as GIS programs read it")
    alphas = _alphas(dataset, reading, notes)
    palette = _palette(dataset, reading)
    bands = (1,) if palette is not None else _bands(dataset, reading, alphas, notes)
    _check_values(dataset, bands, reading)
    nodata = palette is None and MaskFlags.nodata in dataset.mask_flag_enums[bands[0] - 1]
    found = Look(bands, None, _masks(dataset, alphas), nodata, palette, tuple(notes))
    if reading.value_range is None or palette is not None:
        return found
    if not isinstance(reading.value_range, str):
        return replace(found, value_range=reading.value_range)
    low, high = _percentiles(dataset, found)
    told = f"{dataset.name}: values from {low:g} to {high:g} are taken for black to white"
    return replace(found, value_range=(low, high), notes=(*notes, told))


# ---------------------------------------------------------------- which bands


def _bands(
    dataset: DatasetReader, reading: Reading, alphas: Sequence[int], notes: list[str]
) -> tuple[int, ...]:
    """The three bands to read; InputError, naming the option, where there are none."""
    name = dataset.name
    if reading.bands is not None:
        if len(reading.bands) != 3 or not all(1 <= b <= dataset.count for b in reading.bands):
            asked = f"bands {list(reading.bands)} were asked for"
            raise InputError(f"{name} has bands 1 to {dataset.count}, and three count: {asked}")
        return reading.bands
    named = _named(dataset)
    if named:
        return named
    colours = [band for band in range(1, dataset.count + 1) if band not in alphas]
    if not 3 <= len(colours) <= 4:
        raise InputError(
            f"{name} has {len(colours)} colour band(s) where red, green and blue were expected",
            "--bands says which three to read",
        )
    if len(colours) == 4:
        about = f"{name} has 4 bands of colour and doesn't say which is which: "
        notes.append(about + "the first three are taken for red, green and blue")
    return tuple(colours[:3])


def _named(dataset: DatasetReader) -> tuple[int, ...] | None:
    """The bands that the file calls red, green and blue, each once: by description, or by kind."""
    descriptions = [_colour_in(told or "") for told in dataset.descriptions]
    kinds = [kind.name for kind in dataset.colorinterp]
    for names in (descriptions, kinds):
        if all(names.count(colour.name) == 1 for colour in _COLOURS):
            return tuple(names.index(colour.name) + 1 for colour in _COLOURS)
    return None


def _colour_in(description: str) -> str:
    """The colour that a band's description names ("Band 3: Red"), or nothing ("red edge")."""
    words = re.findall("[a-z]+", description.lower())
    if "edge" in words:
        return ""
    found = [
        colour.name for colour in _COLOURS if colour.name in words or [colour.name[0]] == words
    ]
    return found[0] if len(found) == 1 else ""


def _palette(dataset: DatasetReader, reading: Reading) -> NDArray[np.uint8] | None:
    if reading.bands is not None or dataset.count > 2 or dataset.dtypes[0] != "uint8":
        return None
    if dataset.colorinterp[0] != ColorInterp.palette:
        return None
    palette = np.zeros((256, 4), np.uint8)
    for value, colour in dataset.colormap(1).items():
        if value < 256:
            palette[value] = colour
    if dataset.nodata is not None and 0 <= dataset.nodata < 256:
        palette[int(dataset.nodata), 3] = 0
    return palette


def _check_values(dataset: DatasetReader, bands: Sequence[int], reading: Reading) -> None:
    name, values = dataset.name, reading.value_range
    if values and not isinstance(values, str) and not -math.inf < values[0] < values[1] < math.inf:
        low, high = values
        said = f"values from {low:g} to {high:g} were asked for"
        raise InputError(f"{said}: the first must be below the second", "see --value-range")
    for dtype in {dataset.dtypes[band - 1] for band in bands}:
        if np.dtype(dtype).kind not in "uif":
            raise InputError(f"{name} holds {dtype} pixels: whole or real numbers were expected")
        if values is None and dtype != "uint8":
            raise InputError(
                f"{name} holds {dtype} pixels where 8-bit ones were expected",
                "--value-range LOW HIGH says which values are black and white, "
                "--value-range auto measures them",
            )
        if values and not isinstance(values, str) and dtype == "uint8" and values[1] > 255:
            raise InputError(
                f"{name} holds 8-bit pixels where values of up to {values[1]:g} were expected",
                "--value-range or the model says so",
            )


# ---------------------------------------------------------------- what is valid


def _alphas(dataset: DatasetReader, reading: Reading, notes: list[str]) -> list[int]:
    """The bands that say what is valid: those called alpha, unless they look like a picture."""
    bands = [b for b, kind in enumerate(dataset.colorinterp, start=1) if kind == ColorInterp.alpha]
    alphas = []
    for band in bands:
        if band in (reading.bands or ()):
            continue
        if _is_picture(dataset, band):
            about = f"{dataset.name}: band {band} is called alpha, but holds many values"
            notes.append(about + ": it is taken for one more colour, and no pixel for void")
        else:
            alphas.append(band)
    return alphas


def marked_valid(dataset: DatasetReader) -> NDArray[np.bool_]:
    """Where a raster's alpha and mask bands, if it has any, say that it is valid: (H, W)."""
    masks = _masks(dataset, _alphas(dataset, Reading(), []))
    return _valid(dataset, Look((), None, masks, False, None, ()), dataset.shape, {})


def _masks(dataset: DatasetReader, alphas: Sequence[int]) -> tuple[tuple[int, float], ...]:
    """The alphas, and the dataset's own mask band if it has one, with half of its largest value."""
    flags = {*dataset.mask_flag_enums[0]}
    own = MaskFlags.per_dataset in flags and not {MaskFlags.alpha, MaskFlags.nodata} & flags
    bands = [*alphas, _MASK_BAND] if own else alphas
    return tuple((band, _top(dataset, band) / 2) for band in bands)


def _is_picture(dataset: DatasetReader, band: int) -> bool:
    """Whether a band's values are spread as a photograph's are (near infrared, say), and not a
    mask's, which are nearly all close to its largest, or to zero."""
    values = np.concatenate([part.ravel() for part in _sampled(dataset, band)])
    top = values.max()
    shown = values[values > top / 16]
    between = np.count_nonzero(shown < top - top / 16)
    return bool(2 * between > len(shown)) and len(np.unique(values)) > 8


def _top(dataset: DatasetReader, band: int) -> float:
    """The largest value of a mask: of windows spread over it, of all of it where they hold none."""
    top = max(part.max() for part in _sampled(dataset, band))
    if not top:
        blocks = (window for _, window in dataset.block_windows(max(band, 1)))
        top = next((found for w in blocks if (found := _read(dataset, band, w).max())), 1)
    return float(top)


def _read(dataset: DatasetReader, band: int, window: Window) -> NDArray[Any]:
    return dataset.read_masks(1, window=window) if band == 0 else dataset.read(band, window=window)


def _sampled(dataset: DatasetReader, band: int) -> Iterator[NDArray[Any]]:
    return (_read(dataset, band, window) for window in _windows(dataset))


def _windows(dataset: DatasetReader) -> list[Window]:
    """All of a picture, or windows at even distances over a large one."""
    height, width = dataset.shape
    if height * width <= _SAMPLE**2:
        return [Window(0, 0, width, height)]
    side = _SAMPLE // _SPREAD
    rows, cols = (
        np.unique(np.linspace(0, max(size - side, 0), _SPREAD).astype(int))
        for size in dataset.shape
    )
    sizes = min(side, width), min(side, height)
    return [Window(int(col), int(row), *sizes) for row in rows for col in cols]


def _percentiles(dataset: DatasetReader, found: Look) -> tuple[float, float]:
    parts = []
    for window in _windows(dataset):
        shape = int(window.height), int(window.width)
        valid = _valid(dataset, found, shape, {"window": window})
        parts.append(dataset.read(found.bands, window=window)[:, valid].ravel())
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    low, high = map(float, np.percentile(values, PERCENTILES)) if len(values) else (0.0, 1.0)
    return low, high if high > low else low + 1


# ---------------------------------------------------------------- pixels


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
    window = window or Window(0, 0, dataset.width, dataset.height)
    height, width = shape or (round(window.height), round(window.width))
    found = look(dataset, reading)
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
    with naming(dataset):
        if found.palette is not None:
            values, inside = _expanded(dataset, found.palette, out, how)
        else:
            values = patiently(dataset, lambda d: d.read(found.bands, out_shape=(3, *out), **how))
            inside = np.ones(out, bool)
        inside &= patiently(dataset, lambda d: _valid(d, found, out, how))
    values = np.moveaxis(_to_bytes(values, inside, found.value_range, dataset.name), 0, -1)
    pixels[rows, cols] = np.where(inside[..., None], values, 0)
    valid[rows, cols] = inside
    return pixels, valid


def read_valid(
    dataset: DatasetReader, reading: Reading | None, window: Window
) -> NDArray[np.bool_]:
    """What `read_pixels` says is valid of a window of whole pixels, without reading colours."""
    found = look(dataset, reading)
    if found.palette is not None:
        return read_pixels(dataset, reading, window)[1]
    with naming(dataset):
        shape, how = (int(window.height), int(window.width)), {"window": window}
        return patiently(dataset, lambda d: _valid(d, found, shape, how))


def _valid(
    dataset: DatasetReader, found: Look, shape: tuple[int, int], how: Mapping[str, Any]
) -> NDArray[np.bool_]:
    """Where a window is valid: what every mask says, and no band's nodata value in all three."""
    valid = np.ones(shape, bool)
    for band, least in found.masks:
        if band == _MASK_BAND:
            values = dataset.read_masks(1, out_shape=shape, **how)
        else:
            values = dataset.read(band, out_shape=shape, **how)
        valid &= values >= least
    if found.nodata:
        masks = dataset.read_masks(found.bands, out_shape=(len(found.bands), *shape), **how)
        valid &= (masks >= 128).any(axis=0)
    return valid


def _expanded(
    dataset: DatasetReader, palette: NDArray[np.uint8], out: tuple[int, int], how: Mapping[str, Any]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A window of a palette's colours (3, h, w), and where they are valid: resampled as colours,
    since halfway between two of a palette's numbers lies any other colour."""
    window = how["window"]
    margin = 2 + math.ceil(max(window.height / out[0], window.width / out[1]))
    row, col = (max(0, math.floor(at) - margin) for at in (window.row_off, window.col_off))
    bottom = min(dataset.height, math.ceil(window.row_off + window.height) + margin)
    right = min(dataset.width, math.ceil(window.col_off + window.width) + margin)
    numbers = patiently(
        dataset, lambda d: d.read(1, window=Window(col, row, right - col, bottom - row))
    )
    colours = np.moveaxis(palette[numbers], -1, 0)
    size = {"height": bottom - row, "width": right - col, "count": 4, "dtype": "uint8"}
    inner = Window(window.col_off - col, window.row_off - row, window.width, window.height)
    with unplaced_is_fine(), MemoryFile() as file:
        with file.open(driver="GTiff", photometric="MINISBLACK", **size) as whole:
            whole.write(colours)
        with file.open() as whole:
            resampled = whole.read(out_shape=(4, *out), **{**how, "window": inner})
    return resampled[:3], resampled[3] >= 128


def _overlap(start: float, length: float, count: int, size: int) -> tuple[slice, float, float]:
    """Where `count` output pixels over [start, start + length) meet a picture of `size` pixels.

    Returns the output pixels wholly inside, and the offset and length of their source.
    """
    scale = count / length
    first = max(0, math.ceil(-start * scale - 1e-6))
    last = min(count, math.floor((size - start) * scale + 1e-6))
    offset = max(0.0, start + first / scale)
    return slice(first, max(first, last)), offset, min((last - first) / scale, size - offset)


def _to_bytes(
    values: NDArray[Any],
    inside: NDArray[np.bool_],
    value_range: tuple[float, float] | None,
    name: str,
) -> NDArray[np.uint8]:
    if values.dtype.kind == "f" and not np.isfinite(values[:, inside]).all():
        raise InputError(f"{name} has NaN or infinite pixels that no nodata value or mask excludes")
    if value_range is None:
        return values
    low, high = value_range
    scaled = (np.where(inside, values, low).astype(np.float32) - low) * (255 / (high - low))
    return np.clip(scaled, 0, 255).round().astype(np.uint8)
