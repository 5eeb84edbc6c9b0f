"""Folders and CSV files as lists of pictures with their masks: the layouts real sets come in."""

import csv
import math
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from segment.data.polygons import SUFFIXES
from segment.errors import InputError
from segment.storage.paths import AnyPath, Source, join, local, to_path, to_source
from segment.storage.web import WebPath

_RASTERS = {".tif", ".tiff", ".jpg", ".jpeg", ".png", ".jp2", ".j2k", ".vrt"}
_LABELS = ("gt", "masks", "labels")  # folders of labels, beside images*
_OF_LABELS = re.compile(f"({'|'.join(_LABELS)})(?![a-z])", re.IGNORECASE)  # gt_old, but no gtown
_DEEP = 8  # folders below the one that was named
_POLYGONS = {*SUFFIXES}


AsGiven = TypeVar("AsGiven", AnyPath, Source)


@dataclass(frozen=True)
class Pair:
    """A picture and its mask (None where none is asked for), with what its set says about it.

    below: the folders between the one that was named and the picture, as in `north/2023`.
    """

    image: Source
    label: AnyPath | None
    scene: str = ""
    city: str = ""
    pixel_size: float | None = None
    below: str = ""


def as_given(path: AsGiven) -> AsGiven:
    """The path in full, links not followed: a file is what its owner called it."""
    return Path(os.path.abspath(path)) if isinstance(path, Path) else path


def composed(name: str) -> str:
    """A name with each accented letter as one character (NFC): macOS writes two."""
    return unicodedata.normalize("NFC", name)


def find_pairs(name: str | Source, labelled: bool) -> list[Pair]:
    """The pairs in a folder or a CSV file (or, unlabelled, one picture); InputError for none.

    A folder holds `images*` folders, each beside a `gt*`, `masks*` or `labels*` of the same ending
    (at most two folders down: `train/images` and `train/gt` are INRIA's), paired by stem, a
    sites.csv (tile, site) beside them naming scenes; or files NAME.* with NAME_gt.*, NAME_mask.* or
    NAME.geojson; or it is an `images*` folder itself. A CSV has the columns image, mask, scene,
    city, pixel_size, of which image and mask must be there; its paths count from its folder.
    Where no masks are asked for, all pictures below a folder are taken, but those in folders of
    labels; a picture, or those of a CSV, may then be on a web server.
    """
    path = to_path(name) if labelled else to_source(name)
    if isinstance(path, WebPath):
        return [Pair(path, None)]
    if path.is_dir():
        if labelled:
            pairs = _in_flat_folder(path) + _in_folders(path)
        else:
            pairs = [pair for pair in _below(path, "") if not _is_mask(pair.image)]
        if not pairs and labelled:
            raise InputError(
                f"{path} holds no pair of a picture and a mask: expected images/ beside gt/, "
                "masks/ or labels/, or NAME.tif beside NAME_gt.tif, or a CSV file of the pairs"
            )
        if not pairs:
            raise InputError(f"{path} holds no picture (.tif, .jpg, .png), nor do its folders")
        return pairs
    if path.suffix.lower() == ".csv" and path.is_file():
        return _in_csv(path, labelled)
    if path.is_file() and not labelled:
        return [Pair(path, None)]
    what = "folder or CSV file" if labelled else "file or folder"
    raise InputError(f"{path}: no such {what}")


def _in_folders(path: AnyPath) -> list[Pair]:
    levels = ("images*", "*/images*", "*/*/images*")
    named = (f for level in levels for f in path.glob(level))
    folders = [path] if _is_images(path) else sorted((f for f in named if f.is_dir()), key=str)
    pairs: list[Pair] = []
    for folder in folders:
        home, ending = as_given(folder).parent, as_given(folder).name.removeprefix("images")
        beside = [home / f"{name}{ending}" for name in _LABELS]
        labels = next((other for other in beside if other.is_dir()), None)
        if labels is None:
            continue  # INRIA's test/images has none, by intent
        sites = _sites(home / "sites.csv")
        masks = _by_stem(_files(labels, _RASTERS | _POLYGONS))
        pairs += _paired(_files(folder, _RASTERS), masks, sites)
        pairs += _in_twin_folders(folder, labels, sites)
    return pairs


def _in_twin_folders(images: AnyPath, labels: AnyPath, sites: Mapping[str, str]) -> list[Pair]:
    """The pairs in folders within `images` that are within `labels`, too: tiles of z/x/y, say."""
    pairs: list[Pair] = []
    for folder in _folders(images):
        twin = labels / folder.name
        if twin.is_dir():
            masks = _by_stem(_files(twin, _RASTERS | _POLYGONS))
            pairs += _paired(_files(folder, _RASTERS), masks, sites)
            pairs += _in_twin_folders(folder, twin, sites)
    return pairs


def _in_flat_folder(path: AnyPath) -> list[Pair]:
    pictures, polygons = _files(path, _RASTERS), _files(path, _POLYGONS - {".json"})
    masks = [file for file in pictures if _is_mask(file)]
    if _is_images(path) or not masks + polygons:
        return []
    return _paired([f for f in pictures if f not in masks], _by_stem(masks + polygons), {})


def _is_mask(picture: Source) -> bool:
    return picture.stem.endswith(("_gt", "_mask"))


def _below(folder: AnyPath, below: str) -> list[Pair]:
    """The pictures in a folder and in its folders, those of labels left out."""
    sites = _sites(folder.parent / "sites.csv") if _is_images(folder) else {}
    pairs = [replace(pair, below=below) for pair in _paired(_files(folder, _RASTERS), None, sites)]
    if below.count("/") < _DEEP:
        for inner in _folders(folder):
            if not _OF_LABELS.match(inner.name):
                pairs += _below(inner, f"{below}/{inner.name}".lstrip("/"))
    return pairs


def _is_images(folder: AnyPath) -> bool:
    return as_given(folder).name.startswith("images")


def _folders(folder: AnyPath) -> list[AnyPath]:
    inner = (f for f in folder.iterdir() if not f.name.startswith(".") and f.is_dir())
    return sorted(inner, key=str)


def _files(folder: AnyPath, suffixes: set[str]) -> list[AnyPath]:
    """Files with these suffixes, sorted; hidden ones (macOS leaves ._austin1.tif) are skipped."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in suffixes)
    return sorted((file for file in files if not file.name.startswith(".")), key=str)


def _by_stem(labels: Sequence[AnyPath]) -> dict[str, AnyPath]:
    named: dict[str, AnyPath] = {}
    for label in labels:
        stem = composed(re.sub(r"_(gt|mask)$", "", label.stem))
        if stem in named:
            raise InputError(f"{named[stem]} and {label} are two masks of one image")
        named[stem] = label
    return named


def _sites(path: AnyPath) -> dict[str, str]:
    if not path.is_file():
        return {}
    rows = _rows(path, {"tile", "site"}, {"tile", "site"})
    return {composed(row["tile"]): row["site"] for row in rows}


def _paired(
    images: Sequence[AnyPath], labels: Mapping[str, AnyPath] | None, sites: Mapping[str, str]
) -> list[Pair]:
    pairs = []
    for image in images:
        stem = composed(image.stem)
        if labels is not None and stem not in labels:
            raise InputError(f"{image} has no mask: {image.stem}.* was expected among the masks")
        if sites and stem not in sites:
            raise InputError(f"{image} is not in the sites.csv of its set")
        pairs.append(Pair(image, (labels or {}).get(stem), scene=sites.get(stem, "")))
    return pairs


def _in_csv(path: AnyPath, labelled: bool) -> list[Pair]:
    needed = {"image", "mask"} if labelled else {"image"}
    return [
        Pair(
            (to_path if labelled else to_source)(join(path.parent, row["image"])),
            to_path(join(path.parent, row["mask"])) if labelled else None,
            row.get("scene", ""),
            row.get("city", ""),
            _metres(row.get("pixel_size", ""), path),
        )
        for row in _rows(path, needed, {"image", "mask", "scene", "city", "pixel_size"})
    ]


def _rows(path: AnyPath, needed: set[str], known: set[str]) -> list[dict[str, str]]:
    """The rows of a CSV file that has all `needed` columns, filled in, and only `known` ones."""
    try:
        (here,) = local([path])
        with here.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            rows, columns = list(reader), set(reader.fieldnames or ())
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no CSV file in UTF-8") from error
    if not needed <= columns <= known:
        raise InputError(
            f"{path} has the columns {', '.join(sorted(columns)) or '(none)'}; "
            f"expected {', '.join(sorted(needed))} and at most {', '.join(sorted(known))}"
        )
    for number, row in enumerate(rows, start=2):
        if None in row or not all(row[name] for name in needed):
            raise InputError(f"{path}, line {number}: a cell too many, or {sorted(needed)} empty")
    if not rows:
        raise InputError(f"{path} has no rows")
    return rows


def _metres(text: str, path: AnyPath) -> float | None:
    if not text:
        return None
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise InputError(f"{path}: pixel_size {text} is no number of metres above 0")
    return size
