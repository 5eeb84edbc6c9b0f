"""Folders and CSV files as lists of pictures with their masks: the layouts real sets come in."""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segment.data.polygons import SUFFIXES
from segment.errors import InputError
from segment.storage.paths import AnyPath, join, local

_RASTERS = {".tif", ".tiff", ".jpg", ".jpeg", ".png"}
_POLYGONS = {*SUFFIXES}


@dataclass(frozen=True)
class Pair:
    """A picture and its mask (None where none is asked for), with what its set says about it."""

    image: AnyPath
    label: AnyPath | None
    scene: str = ""
    city: str = ""
    pixel_size: float | None = None


def find_pairs(path: AnyPath, labelled: bool) -> list[Pair]:
    """The pairs in a folder or a CSV file (or, unlabelled, one picture); InputError for none.

    A folder holds `images*` folders, each beside a `gt*`, `masks*` or `labels*` of the same ending
    (at most two folders down: `train/images` and `train/gt` are INRIA's), paired by stem, a
    sites.csv (tile, site) beside them naming scenes; or files NAME.* with NAME_gt.*, NAME_mask.* or
    NAME.geojson; or it is an `images*` folder itself. A CSV has the columns image, mask, scene,
    city, pixel_size, of which image and mask must be there; its paths count from its folder.
    """
    if path.is_dir():
        pairs = _in_folders(path, labelled) or _in_flat_folder(path, labelled)
        if not pairs and labelled:
            raise InputError(
                f"{path} holds no pair of a picture and a mask: expected images/ beside gt/, "
                "masks/ or labels/, or NAME.tif beside NAME_gt.tif, or a CSV file of the pairs"
            )
        if not pairs:
            raise InputError(f"{path} holds no picture (.tif, .jpg, .png), nor does its images/")
        return pairs
    if path.suffix.lower() == ".csv" and path.is_file():
        return _in_csv(path, labelled)
    if path.is_file() and not labelled:
        return [Pair(path, None)]
    raise InputError(f"{path}: no such folder or CSV file")


def _in_folders(path: AnyPath, labelled: bool) -> list[Pair]:
    levels = ("images*", "*/images*", "*/*/images*")
    itself = path.resolve().name.startswith("images")
    named = (f for level in levels for f in path.glob(level))
    folders = [path] if itself else sorted((f for f in named if f.is_dir()), key=str)
    pairs: list[Pair] = []
    for folder in folders:
        home, ending = folder.resolve().parent, folder.resolve().name.removeprefix("images")
        beside = [home / f"{name}{ending}" for name in ("gt", "masks", "labels")]
        labels = next((other for other in beside if other.is_dir()), None)
        if labelled and labels is None:
            continue  # INRIA's test/images has none, by intent
        masks = _by_stem(_files(labels, _RASTERS | _POLYGONS)) if labels and labelled else None
        pairs += _paired(_files(folder, _RASTERS), masks, _sites(home / "sites.csv"))
    return pairs


def _in_flat_folder(path: AnyPath, labelled: bool) -> list[Pair]:
    pictures, polygons = _files(path, _RASTERS), _files(path, _POLYGONS - {".json"})
    masks = [file for file in pictures if file.stem.endswith(("_gt", "_mask"))]
    images = [file for file in pictures if file not in masks]
    if labelled and not masks + polygons:
        return []
    return _paired(images, _by_stem(masks + polygons) if labelled else None, {})


def _files(folder: AnyPath, suffixes: set[str]) -> list[AnyPath]:
    """Files with these suffixes, sorted; hidden ones (macOS leaves ._austin1.tif) are skipped."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in suffixes)
    return sorted((file for file in files if not file.name.startswith(".")), key=str)


def _by_stem(labels: Sequence[AnyPath]) -> dict[str, AnyPath]:
    named: dict[str, AnyPath] = {}
    for label in labels:
        stem = re.sub(r"_(gt|mask)$", "", label.stem)
        if stem in named:
            raise InputError(f"{named[stem]} and {label} are two masks of one image")
        named[stem] = label
    return named


def _sites(path: AnyPath) -> dict[str, str]:
    if not path.is_file():
        return {}
    rows = _rows(path, {"tile", "site"}, {"tile", "site"})
    return {row["tile"]: row["site"] for row in rows}


def _paired(
    images: Sequence[AnyPath], labels: Mapping[str, AnyPath] | None, sites: Mapping[str, str]
) -> list[Pair]:
    for image in images:
        if labels is not None and image.stem not in labels:
            raise InputError(f"{image} has no mask: {image.stem}.* was expected among the masks")
        if sites and image.stem not in sites:
            raise InputError(f"{image} is not in the sites.csv of its set")
    labels = labels or {}
    return [Pair(i, labels.get(i.stem), scene=sites.get(i.stem, "")) for i in images]


def _in_csv(path: AnyPath, labelled: bool) -> list[Pair]:
    needed = {"image", "mask"} if labelled else {"image"}
    return [
        Pair(
            join(path.parent, row["image"]),
            join(path.parent, row["mask"]) if labelled else None,
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
