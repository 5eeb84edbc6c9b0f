"""Scenes: pictures with their labels, found in folders, with the place that each belongs to."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rasterio.io import DatasetReader
from rasterio.transform import Affine

from segment.data.ground import ground_pixel_size
from segment.data.layouts import Pair, as_given, composed, find_pairs
from segment.data.rasters import SIDECARS, WORLD_FILES, open_raster
from segment.errors import InputError
from segment.storage.paths import AnyPath, Source, local

_CITY = re.compile(r"^(.+?)(\d+)(_|$)")
_SLIPPY = re.compile(r"(?:^|[-_])(\d+)-(\d+)-(1[4-9]|2[0-4])$")
_ZOOMS = {str(zoom) for zoom in range(14, 25)}
_TILES = ((256, 256), (512, 512))  # shapes of slippy tiles: other pictures are none
_LAST_DAY = 31  # of a month
_HIGHEST = 80  # degrees of latitude: beyond them nobody builds


@dataclass(frozen=True)
class Scene:
    """A picture, its label, and where it belongs: scenes and cities are what splits hold apart.

    stem is unique within the city; pixel_size is in metres on the ground, None where unknown;
    below: the folders between the one that was named and the picture.
    """

    image: Source
    label: Path | None
    stem: str
    scene: str
    city: str
    pixel_size: float | None
    below: str = ""


def find_scenes(
    paths: Iterable[str | Source],
    labelled: bool = True,
    cache: str | Path | None = None,
    faulty: list[InputError] | None = None,
    but: AnyPath | None = None,
) -> list[Scene]:
    """The scenes in folders and CSV files (see `find_pairs`), sorted by city and stem.

    `austin1_7` is in the scene austin1 of the city austin: what stands before the first number that
    ends the name or precedes an underscore is the city, if it begins and ends with a letter. Other
    names tell no city: the file is a scene of its own, in a city named like its folder. What a CSV
    says goes first. Equal cities in two folders are one city, and slippy tiles (x-y-zoom) of the
    same ground are one scene, so that no split parts them. Labelled scenes in a bucket are fetched
    into the cache, since training reads all of them; others stay there. Raises InputError; with a
    list `faulty`, what is wrong with a single picture goes there, and the others are found. What
    lies in the folder `but` is left out.
    """
    pairs = [pair for path in paths for pair in find_pairs(path, labelled)]
    if but is not None:
        pairs = [p for p in pairs if not f"{as_given(p.image)}".startswith(f"{as_given(but)}/")]
    once: dict[Source, Scene] = {}
    for pair in _fetched(pairs, cache) if labelled else pairs:
        try:
            scene = _scene(pair)
        except InputError as error:
            if faulty is None:
                raise
            faulty.append(error)
            continue
        other = once.get(as_given(scene.image), scene)
        if scene.label and other.label and not scene.label.samefile(other.label):
            raise InputError(f"{scene.image} has two masks, {other.label} and {scene.label}")
        once[as_given(scene.image)] = scene
    scenes = sorted(once.values(), key=lambda scene: (scene.city, scene.stem, str(scene.image)))
    return sorted(
        _unique(_one_ground(scenes), labelled), key=lambda scene: (scene.city, scene.stem)
    )


def sized(scenes: Sequence[Scene], pixel_size: float | None) -> list[Scene]:
    """The scenes, their pixels taken to measure so many metres, whatever their files say."""
    return [replace(scene, pixel_size=pixel_size or scene.pixel_size) for scene in scenes]


def _fetched(pairs: Sequence[Pair], cache: str | Path | None) -> list[Pair]:
    images = local((pair.image for pair in pairs), cache, SIDECARS + WORLD_FILES)
    labels = local((pair.label for pair in pairs if pair.label), cache)
    return [
        replace(pair, image=image, label=label)
        for pair, image, label in zip(pairs, images, labels, strict=True)
    ]


def _scene(pair: Pair) -> Scene:
    image, stem = pair.image, composed(pair.image.stem)
    told = _CITY.match(stem)
    if told and told[1][0].isalpha() and told[1][-1].isalpha():
        city, scene = told[1], told[1] + told[2]
    else:
        city, scene = _set_name(image), stem
    label = local([pair.label])[0] if pair.label else None
    if label and not label.is_file():
        raise InputError(f"{label}: no such file, though a mask of {image} was expected there")
    with open_raster(image, own=True) as dataset:
        tile = _tile(image, stem) if dataset.shape in _TILES else None
        size = pair.pixel_size or ground_pixel_size(dataset)
        if tile and not size:
            size = _slippy_size(tile, dataset)
    if tile and not _slippy(stem):  # a tree of z/x/y: its files are called y
        stem = scene = "-".join(map(str, tile))
        city = _set_name(image.parent.parent)
    return Scene(image, label, stem, pair.scene or scene, pair.city or city, size, pair.below)


def _set_name(image: Source) -> str:
    """The name of the folder that holds the set: `images*` and `train` say nothing about it."""
    folder = as_given(image).parent
    while folder.name.startswith("images") or folder.name == "train":
        folder = folder.parent
    return folder.name


def _slippy(stem: str) -> tuple[int, int, int] | None:
    """x, y, zoom of a slippy tile's name, as in OAM-619224-523264-20."""
    told = _SLIPPY.search(stem)
    if not told:
        return None
    return _tile_of(*told.groups())


def _tile(image: Source, stem: str) -> tuple[int, int, int] | None:
    """x, y, zoom of a slippy tile, by its name or by its path, as in 20/619224/523264.png."""
    zoom, x = image.parent.parent.name, image.parent.name
    by_path = all(re.fullmatch(r"\d+", part) for part in (zoom, x, stem)) and zoom in _ZOOMS
    return _tile_of(x, stem, zoom) if by_path else _slippy(stem)


def _tile_of(*parts: str) -> tuple[int, int, int] | None:
    """None where there is no such tile, or it is a date or another number: those would lie at the
    map's edges, mostly near a pole, where no building stands."""
    x, y, zoom = map(int, parts)
    if max(x, y) >= 2**zoom or min(x, y) <= _LAST_DAY:
        return None
    latitude = math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * y / 2**zoom))))
    return (x, y, zoom) if abs(latitude) < _HIGHEST else None


def _slippy_size(tile: tuple[int, int, int], dataset: DatasetReader) -> float | None:
    """The ground pixel size that follows from a slippy tile's place (Web Mercator, EPSG:3857)."""
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


def _unique(scenes: Sequence[Scene], labelled: bool) -> list[Scene]:
    """Where two sets have a picture of one name in one city, the set's name is added to it.

    Labelled ones that are then still of one name are refused: a split could not tell them apart.
    """
    counts = Counter((scene.city, scene.stem) for scene in scenes)
    found = [
        replace(s, stem=f"{s.stem}@{_set_name(s.image)}") if counts[s.city, s.stem] > 1 else s
        for s in scenes
    ]
    seen: dict[tuple[str, str], Scene] = {}
    for scene in found if labelled else []:
        other = seen.setdefault((scene.city, scene.stem), scene)
        if other is not scene:
            raise InputError(
                f"{other.image} and {scene.image} have one name in one city: "
                "rename one, or give their cities in a CSV"
            )
    return found
