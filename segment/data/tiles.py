"""The tile store: scenes resampled once, kept on the disk, cut into tiles as they are asked for.

A store is a folder in the cache: images.u8 and labels.u8 (the scenes, one after another, row by
row), numbers.u32 (the same of scenes whose labels tell buildings apart), store.json (what they are)
and digests.json (of these four). It is named by a digest of all it depends on: the bytes of every
source, how they are read, the pixel size, the format. It is built under a lock in a folder beside
it, which then gets its name; a damaged one is built again.

Digests of gigabytes take their time, so each is remembered with the file's size, inode and times
of change: only a file in which one of these differs is read again. That finds every write and
every cut; a disk that forgets a bit by itself goes unnoticed.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from minicnn.backend import array_module
from minicnn.files import digest, stamp, write_text
from segment.data.ground import working_shape
from segment.data.labels import BACKGROUND, BUILDING, IGNORE, Elsewhere, Numbering, read_buildings
from segment.data.rasters import SIDECARS, open_raster
from segment.data.reading import Reading, look, read_pixels
from segment.data.resample import averaged, in_the_middle
from segment.data.scenes import Scene
from segment.errors import InputError
from segment.progress import progress
from segment.storage.paths import default_cache, local

log = logging.getLogger(__name__)

TILE = 256
FULL = 254  # the coverage of a pixel that a building fills; IGNORE (255) says that nobody knows
_FORMAT = 4  # raise it whenever the same sources would give other bytes
FILES = ("images.u8", "labels.u8", "numbers.u32", "store.json")


@dataclass(frozen=True)
class Tile:
    """Where a tile comes from; row and col are its first pixels in the (resampled) scene."""

    scene: str
    city: str
    stem: str
    row: int
    col: int

    @property
    def id(self) -> str:
        return f"{self.city}/{self.stem}/{self.row}_{self.col}"


@dataclass(frozen=True)
class Picture:
    """A scene at the size that is worked at: pixels (H, W, 3), and how much of each is building.

    coverage (H, W) runs from 0 to FULL; IGNORE where the label or the picture says nothing.
    number (H, W): which building the middle of a pixel is of, 0 where of none; None where the label
    doesn't tell buildings apart.
    """

    pixels: NDArray[np.uint8]
    coverage: NDArray[np.uint8]
    number: NDArray[np.uint32] | None = None

    def cut(self, row: int, col: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The square from (row, col) on; what lies outside the picture is black and ignored."""
        return _square(self.pixels, row, col, size), _square(self.coverage, row, col, size, IGNORE)


def _square(plane: NDArray[Any], row: int, col: int, size: int, beyond: int = 0) -> NDArray[Any]:
    """The square of a plane (H, W, ...) from (row, col) on."""
    height, width = plane.shape[:2]
    cut = plane[max(row, 0) : row + size, max(col, 0) : col + size]
    if cut.shape[:2] == (size, size):
        return cut
    pad = [(0, 0)] * plane.ndim
    pad[:2] = (
        (max(-row, 0), max(row + size - height, 0)),
        (max(-col, 0), max(col + size - width, 0)),
    )
    return np.pad(cut, pad, constant_values=beyond)


class Cuts:
    """An array (T, ...) that is made as it is read: cuts[3], cuts[[3, 5]], for cut in cuts."""

    def __init__(self, cut: Callable[[int], NDArray[Any]], count: int) -> None:
        self._cut, self._count = cut, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> NDArray[Any]:
        chosen = np.arange(self._count)[index]
        if np.ndim(chosen) == 0:
            return self._cut(int(chosen))
        return np.stack([self._cut(int(i)) for i in chosen])

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return map(self._cut, range(self._count))


@dataclass(frozen=True)
class TileStore:
    """Pictures, and the tiles of 256 pixels on the grid over each.

    pixel_size: metres on the ground; None where it is unknown or differs among the scenes.
    """

    pictures: dict[tuple[str, str], Picture]  # by city and stem
    tiles: list[Tile]
    pixel_size: float | None
    reading: Reading
    key: str
    notes: tuple[str, ...] = ()  # what a person should know of the scenes

    def __len__(self) -> int:
        return len(self.tiles)

    def picture(self, tile: Tile) -> Picture:
        return self.pictures[tile.city, tile.stem]

    @property
    def images(self) -> Cuts:
        """Pixels (T, 256, 256, 3)."""
        return Cuts(lambda i: self._tile(i)[0], len(self))

    @property
    def coverage(self) -> Cuts:
        """How much of each pixel is building, (T, 256, 256): see `Picture`."""
        return Cuts(lambda i: self._tile(i)[1], len(self))

    @property
    def labels(self) -> Cuts:
        """Labels (T, 256, 256): BACKGROUND, BUILDING where at least half of a pixel is, IGNORE."""
        return Cuts(lambda i: classes(self._tile(i)[1]), len(self))

    @property
    def numbers(self) -> Cuts:
        """Which building the pixels are of, (T, 256, 256): see `Picture`. All 0 in a tile whose
        label doesn't tell buildings apart."""
        return Cuts(self._number, len(self))

    def _number(self, index: int) -> NDArray[np.uint32]:
        tile = self.tiles[index]
        number = self.picture(tile).number
        if number is None:
            return np.zeros((TILE, TILE), np.uint32)
        return _square(number, tile.row, tile.col, TILE)

    def _tile(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        tile = self.tiles[index]
        return self.picture(tile).cut(tile.row, tile.col, TILE)


def classes(coverage: Any) -> Any:
    """BACKGROUND, BUILDING or IGNORE by coverage, on whatever device it is."""
    xp = array_module(coverage)
    building = (coverage >= FULL // 2) & (coverage != IGNORE)
    kinds = xp.where(building, xp.uint8(BUILDING), xp.uint8(BACKGROUND))
    return xp.where(coverage == IGNORE, xp.uint8(IGNORE), kinds)


def open_store(
    scenes: Sequence[Scene],
    reading: Reading | None = None,
    pixel_size: float | None = None,
    cache: str | Path | None = None,
) -> TileStore:
    """The tiles of the scenes, from the cache (default: the user's), where they are put if missing.

    With a pixel_size (metres on the ground), scenes whose own is known are resampled to it. Memory
    holds one row of tiles and one label, however many scenes there are. Two processes may call
    this at once: one builds, the other waits. Raises InputError (see scenes) and for a full disk.
    """
    reading = reading or Reading()
    folder = Path(cache) if cache else default_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        key = _key(scenes, reading, pixel_size, folder)
        with _lock(folder / f"{key}.lock"):
            store = _load(folder / key)
            if store is None:
                _build(folder / key, scenes, reading, pixel_size)
                store = _load(folder / key)
    except OSError as error:
        where, reason = str(error.filename or folder), error.strerror or error
        if not where.startswith(str(folder)):  # it is a source that can't be read
            raise
        raise InputError(f"{where}: tiles can't be kept in {folder}: {reason}") from error
    if store is None:
        raise InputError(f"{folder / key} doesn't hold what was written there: is the disk sound?")
    for note in store.notes:
        log.warning("%s", note)
    return store


# ---------------------------------------------------------------- names and digests


def _key(scenes: Sequence[Scene], reading: Reading, pixel_size: float | None, cache: Path) -> str:
    sources = [_sources(scene) for scene in scenes]
    files = [file for group in sources for file in group]
    memo = cache / f"sources-{_digest_json([str(file) for file in files])}.json"
    digest = dict(zip(files, _digests(files, memo), strict=True))
    what = [
        [scene.city, scene.scene, scene.stem, scene.pixel_size, [digest[file] for file in group]]
        for scene, group in zip(scenes, sources, strict=True)
    ]
    return _digest_json([_FORMAT, TILE, pixel_size, asdict(reading), what])


def _sources(scene: Scene) -> list[Path]:
    if scene.label is None:
        raise InputError(f"{scene.image} has no mask")
    image, label = local([scene.image])[0].absolute(), scene.label.absolute()
    beside = [image.with_name(image.name + ending) for ending in SIDECARS]
    return [image, *filter(Path.exists, beside), label]


def _digests(files: Sequence[Path], memo: Path) -> list[str]:
    """The digest of each file; those that `memo` knows, and that have not changed, go unread."""
    try:
        known = json.loads(memo.read_bytes())
    except (OSError, ValueError):
        known = []
    if len(known) != len(files):
        known = [(None, "")] * len(files)
    stamps = [stamp(file) for file in files]  # before reading: a change meanwhile is then seen
    work = progress(zip(files, stamps, known, strict=True), len(files), "checking files", "file")
    digests = [old if was == now else digest(file) for file, now, (was, old) in work]
    if [was for was, _ in known] != stamps:
        write_text(memo, json.dumps(list(zip(stamps, digests, strict=True))))
    return digests


def _digest_json(value: object) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


# ---------------------------------------------------------------- building and loading


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock that the system takes back from a process that dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another run that cuts the same tiles", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _load(folder: Path) -> TileStore | None:
    """The store, or None where it is missing or not as it was written."""
    files = [folder / name for name in FILES]
    try:
        expected = json.loads((folder / "digests.json").read_bytes())
        if _digests(files, folder / "checked.json") != expected:
            return None
        about = json.loads(files[3].read_bytes())
        tiles = [Tile(*fields) for fields in about["tiles"]]
        reading = Reading.of(about["reading"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    images, labels, numbers = (_mapped(file) for file in files[:3])
    return TileStore(
        dict(_pictures(images, labels, numbers.view(np.uint32), about["pictures"])),
        tiles,
        about["pixel_size"],
        reading,
        folder.name,
        tuple(about["notes"]),
    )


def _mapped(file: Path) -> NDArray[np.uint8]:
    """A file's bytes, in memory only where they are read; an empty one can't be mapped."""
    return np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)


def _pictures(
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    numbers: NDArray[np.uint32],
    shapes: Sequence[Any],
) -> Iterator[tuple[tuple[str, str], Picture]]:
    start = numbered = 0
    for city, stem, height, width, apart in shapes:
        size = height, width
        end, then = start + height * width, numbered + height * width * apart
        pixels = images[3 * start : 3 * end].reshape(*size, 3)
        number = numbers[numbered:then].reshape(size) if apart else None
        yield (city, stem), Picture(pixels, labels[start:end].reshape(size), number)
        start, numbered = end, then


def _build(
    folder: Path, scenes: Sequence[Scene], reading: Reading, pixel_size: float | None
) -> None:
    """Write the store into a folder beside `folder`, then move it there; call it under the lock."""
    part = folder.with_suffix(".part")  # under the lock, a folder of this name is a dead builder's
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        files = [part / name for name in FILES]
        tiles: list[Tile] = []
        notes: list[str] = []
        shapes: list[tuple[str, str, int, int, bool]] = []
        with ExitStack() as stack:
            images, labels, numbers = (stack.enter_context(f.open("wb")) for f in files[:3])
            for scene in progress(scenes, len(scenes), "cutting tiles", "scene"):
                height, width, apart = 0, 0, False
                for pixels, coverage, number in _rows(scene, reading, pixel_size, notes):
                    images.write(pixels.tobytes())
                    labels.write(coverage.tobytes())
                    tiles += _tiles(scene, height, coverage)
                    height, width = height + len(coverage), coverage.shape[1]
                    if number is not None:
                        numbers.write(number.astype(np.uint32).tobytes())
                        apart = True
                if height:
                    shapes.append((scene.city, scene.stem, height, width, apart))
            for file in (images, labels, numbers):
                file.flush()
                os.fsync(file.fileno())
        if not tiles:
            why = f": {notes[0]}" if notes else ""
            raise InputError(f"none of the {len(scenes)} scenes has a tile with a valid pixel{why}")
        about = {
            "pictures": shapes,
            "tiles": [astuple(tile) for tile in tiles],
            "pixel_size": pixel_size or _common_size(scenes),
            "reading": asdict(reading),
            "notes": notes,
        }
        write_text(files[3], json.dumps(about))
        write_text(part / "digests.json", json.dumps(_digests(files, part / "checked.json")))
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _common_size(scenes: Sequence[Scene]) -> float | None:
    """The median of the known pixel sizes where they agree within 5 %; None otherwise."""
    sizes = sorted(scene.pixel_size for scene in scenes if scene.pixel_size)
    return sizes[len(sizes) // 2] if sizes and sizes[-1] <= 1.05 * sizes[0] else None


def _rows(
    scene: Scene, reading: Reading, pixel_size: float | None, notes: list[str]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], Numbering]]:
    """A scene at the size to work at, a row of tiles at a time: pixels, coverage and numbers of
    buildings; nothing of one whose label lies elsewhere."""
    with open_raster(scene.image, own=True) as dataset:
        notes += look(dataset, reading).notes
        height, width = working_shape(dataset, scene.pixel_size, pixel_size)
        try:
            label, number = read_buildings(scene, dataset, notes)
        except Elsewhere as error:
            notes.append(f"{error}; the scene is left out")
            return
        coverage = covered(label, (height, width))
        number = None if number is None else in_the_middle(number, (height, width))
        step = dataset.height / height  # source rows of a row
        for row in range(0, height, TILE):
            count = min(TILE, height - row)
            band = Window(0, row * step, dataset.width, count * step)
            pixels, valid = read_pixels(dataset, reading, band, (count, width))
            part = slice(row, row + count)
            known = np.where(valid, coverage[part], np.uint8(IGNORE))
            yield pixels, known, None if number is None else number[part]


def _tiles(scene: Scene, row: int, coverage: NDArray[np.uint8]) -> list[Tile]:
    """The whole tiles in a row of them, and one tile where the scene has less than that; those
    without a valid pixel are left out."""
    if row and len(coverage) < TILE:
        return []
    columns = range(0, max(coverage.shape[1] - TILE, 0) + 1, TILE)
    valid = [col for col in columns if (coverage[:, col : col + TILE] != IGNORE).any()]
    return [Tile(scene.scene, scene.city, scene.stem, row, col) for col in valid]


def covered(label: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """How much of each pixel a label (0, 1, 255) covers when brought to `shape`, of 0 ... FULL.

    Each new pixel averages the area it lies on, over what is not to be ignored; where that is less
    than half of it, it is ignored itself.
    """
    known = averaged(label != IGNORE, shape)
    building = averaged(label == BUILDING, shape)
    share = building / np.maximum(known, 1e-6)
    return np.where(known < 0.5 - 1e-6, IGNORE, np.round(FULL * share)).astype(np.uint8)
