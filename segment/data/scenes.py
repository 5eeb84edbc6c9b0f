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
from segment.data.layouts import Pair, find_pairs
from segment.data.rasters import SIDECARS, WORLD_FILES, open_raster
from segment.errors import InputError
from segment.storage.paths import AnyPath, local, to_path

_CITY = re.compile(r"^(.+?)(\d+)(_|$)")
_SLIPPY = re.compile(r"(?:^|[-_])(\d+)-(\d+)-(1[4-9]|2[0-4])$")


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
    images = local((pair.image for pair in pairs), cache, SIDECARS + WORLD_FILES)
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
