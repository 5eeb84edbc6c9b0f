"""The tile store: scenes cut into tiles once, kept on the disk, read as if they were arrays.

A store is a folder in the cache: images.u8 and labels.u8 (the tiles, one after another),
store.json (what they are) and digests.json (of these three). It is named by a digest of all it
depends on: the bytes of every source, how they are read, the pixel size, the format. It is built
under a lock in a folder beside it, which then gets its name; a damaged one is built again.

Digests of gigabytes take their time, so each is remembered with the file's size, inode and times
of change: only a file in which one of these differs is read again. That finds every write and
every cut; a disk that forgets a bit by itself goes unnoticed.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from minicnn.files import atomic_write
from segment.data.ground import working_shape
from segment.data.labels import IGNORE, read_label
from segment.data.rasters import SIDECARS, Reading, open_raster, read_pixels
from segment.data.scenes import Scene
from segment.errors import InputError
from segment.progress import progress
from segment.storage.paths import default_cache, local

TILE = 256
_FORMAT = 1  # raise it whenever the same sources would give other bytes
FILES = ("images.u8", "labels.u8", "store.json")


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
class TileStore:
    """Memory-mapped images (T, 256, 256, 3) and labels (T, 256, 256), which hold 0, 1 and 255.

    pixel_size: metres on the ground; None where it is unknown or differs among the scenes.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    tiles: list[Tile]
    pixel_size: float | None
    reading: Reading
    key: str

    def __len__(self) -> int:
        return len(self.tiles)


def tile_grid(height: int, width: int, size: int = TILE) -> list[tuple[int, int]]:
    """First (row, column) of each whole tile of a scene, row by row; the remainder is dropped."""
    rows, cols = range(0, height - size + 1, size), range(0, width - size + 1, size)
    return [(row, col) for row in rows for col in cols]


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
    stamps = [_stamp(file) for file in files]  # before reading: a change meanwhile is then seen
    work = progress(zip(files, stamps, known, strict=True), len(files), "checking files", "file")
    digests = [old if was == stamp else _digest_file(file) for file, stamp, (was, old) in work]
    if [was for was, _ in known] != stamps:
        with atomic_write(memo) as temporary:
            temporary.write_text(json.dumps(list(zip(stamps, digests, strict=True))))
    return digests


def _stamp(file: Path) -> list[int]:
    """What changes whenever the bytes do: nothing but the system sets the time of change."""
    status = file.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _digest_file(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
        about = json.loads(files[2].read_bytes())
        tiles = [Tile(*fields) for fields in about["tiles"]]
        bands, value_range = about["reading"]["bands"], about["reading"]["value_range"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    shape = (len(tiles), TILE, TILE)
    return TileStore(
        np.memmap(files[0], np.uint8, "r", shape=(*shape, 3)),
        np.memmap(files[1], np.uint8, "r", shape=shape),
        tiles,
        about["pixel_size"],
        Reading(bands and tuple(bands), value_range and tuple(value_range)),
        folder.name,
    )


def _build(
    folder: Path, scenes: Sequence[Scene], reading: Reading, pixel_size: float | None
) -> None:
    """Cut the tiles into a folder beside `folder`, then move it there; call it under the lock."""
    part = folder.with_suffix(".part")  # under the lock, a folder of this name is a dead builder's
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        files = [part / name for name in FILES]
        tiles: list[Tile] = []
        with files[0].open("wb") as images, files[1].open("wb") as labels:
            for scene in progress(scenes, len(scenes), "cutting tiles", "scene"):
                for tile, image, label in _cut(scene, reading, pixel_size):
                    images.write(image.tobytes())
                    labels.write(label.tobytes())
                    tiles.append(tile)
            for file in (images, labels):
                file.flush()
                os.fsync(file.fileno())
        if not tiles:
            raise InputError(f"none of the {len(scenes)} scenes has a tile with a valid pixel")
        about = {
            "tiles": [astuple(tile) for tile in tiles],
            "pixel_size": pixel_size or _common_size(scenes),
            "reading": asdict(reading),
        }
        with atomic_write(files[2]) as temporary:
            temporary.write_text(json.dumps(about))
        digests = _digests(files, part / "checked.json")
        with atomic_write(part / "digests.json") as temporary:
            temporary.write_text(json.dumps(digests))
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _common_size(scenes: Sequence[Scene]) -> float | None:
    """The median of the known pixel sizes where they agree within 5 %; None otherwise."""
    sizes = sorted(scene.pixel_size for scene in scenes if scene.pixel_size)
    return sizes[len(sizes) // 2] if sizes and sizes[-1] <= 1.05 * sizes[0] else None


def _cut(
    scene: Scene, reading: Reading, pixel_size: float | None
) -> Iterator[tuple[Tile, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Each tile of a scene with an image and a label; those without a valid pixel are left out."""
    with open_raster(scene.image) as dataset:
        shape = working_shape(dataset, scene.pixel_size, pixel_size)
        height, width = max(shape[0], TILE), max(shape[1], TILE)
        label = _padded(_resized(read_label(scene, dataset), shape), (height, width))
        step = TILE * dataset.height / shape[0]  # source rows of a row of tiles
        across = width * dataset.width / shape[1]
        columns = [col for _, col in tile_grid(TILE, width)]
        for number in range(height // TILE):
            row = number * TILE
            band = Window(0, number * step, across, step)
            pixels, valid = read_pixels(dataset, reading, band, (TILE, width))
            marked = np.where(valid, label[row : row + TILE], IGNORE)
            for col in columns:
                inside = slice(col, col + TILE)
                if (marked[:, inside] != IGNORE).any():
                    tile = Tile(scene.scene, scene.city, scene.stem, row, col)
                    yield tile, pixels[:, inside], marked[:, inside]


def _padded(label: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The label of a scene that is smaller than a tile: what lies outside it is ignored."""
    rows, cols = (new - old for new, old in zip(shape, label.shape, strict=True))
    return np.pad(label, ((0, rows), (0, cols)), constant_values=IGNORE)


def _resized(label: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The label at another size: each pixel takes the class found under its centre."""
    if label.shape == shape:
        return label
    rows, cols = (
        ((np.arange(new) + 0.5) * (old / new)).astype(int)
        for new, old in zip(shape, label.shape, strict=True)
    )
    return label[rows][:, cols]
