"""A path or an s3:// URI, the same everywhere; for scenes to predict a URL, too.

`to_path` turns what a user named into a `Path` or an `S3Path`, which answers the questions that
the application asks of a `Path`. What is read whole is fetched into a cache on the disk (`local`),
what is read in windows is read in place (`gdal_options`), what is written appears whole or not at
all (`writing`, `S3Path.write`).
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from minicnn.files import stamp, write_text
from segment.errors import InputError
from segment.storage.s3 import FILES_AT_ONCE, Missing, S3Path
from segment.storage.web import SCHEMES, WebPath

AnyPath: TypeAlias = Path | S3Path
Source: TypeAlias = AnyPath | WebPath  # what a scene may be read from


def to_path(name: str | Source) -> AnyPath:
    """What a user named: s3://bucket/key, or a path on this machine."""
    if isinstance(name, S3Path):
        return name
    scheme, slash, rest = str(name).partition(":/")  # pathlib makes one slash of two
    if slash and scheme in SCHEMES:
        raise InputError(f"{name}: only a scene to predict may be on a web server: fetch it first")
    if not slash or scheme != "s3":
        return Path(str(name))
    bucket, _, key = rest.lstrip("/").partition("/")
    parts = PurePosixPath(key).parts
    if not bucket or ".." in parts:
        raise InputError(f"{name}: expected s3://bucket/key, without ..")
    return S3Path(bucket, "/".join(parts))


def to_source(name: str | Source) -> Source:
    """`to_path`, of a scene that whoever runs the command may also name by a URL."""
    if isinstance(name, WebPath):
        return name
    scheme, slashes, _ = str(name).partition("://")
    return WebPath(str(name)) if slashes and scheme in SCHEMES else to_path(name)


def join(folder: AnyPath, name: str) -> str:
    """`name` as a file in `folder` means it: relative to it, unless it is a path or URI in full."""
    full = name.startswith("/") or ":/" in name
    return name if full else f"{folder}/{name}"


def part(path: Source, start: int, count: int) -> bytes:
    """`count` bytes of a file from `start`, fewer at its end; its last ones if that is negative."""
    if not isinstance(path, Path):
        return path.part(start, count)
    with path.open("rb") as file:
        file.seek(start if start >= 0 else max(0, path.stat().st_size - count))
        return file.read(count)


@contextmanager
def writing(path: AnyPath) -> Iterator[Path]:
    """Yield the file to write; at the end it is at `path`, which sees it whole or not at all.

    A path on this machine is yielded as it is: every writer of the application is atomic.
    """
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="minicnn-") as folder:
        yield Path(folder) / path.name
        path.upload(Path(folder) / path.name)


def local(
    paths: Iterable[Source], cache: str | Path | None = None, beside: Iterable[str] = ()
) -> list[Path]:
    """The files on this machine: fetched into the cache, unless their version is there already.

    Files of the endings `beside` come along: picture.tif.msk and picture.msk with picture.tif.
    InputError names the first one that is missing.
    """
    named = [to_path(path) for path in paths]
    remote = [path for path in named if isinstance(path, S3Path)]
    if not remote:
        return [path for path in named if isinstance(path, Path)]
    there = {file: file for folder in {p.parent for p in remote} for file in folder.iterdir()}
    wanted = dict.fromkeys(remote)
    for path in remote:
        if path not in there or not there[path].etag:
            raise Missing(f"{path}: no such file")
        names = (path.with_name(n + ending) for n in (path.name, path.stem) for ending in beside)
        wanted |= dict.fromkeys(name for name in names if name in there)
    root = (Path(cache) if cache else default_cache()) / "s3"
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        kept = dict(zip(wanted, pool.map(lambda p: _kept(there[p], root), wanted), strict=True))
    return [kept[path] if isinstance(path, S3Path) else path for path in named]


def _kept(path: S3Path, root: Path) -> Path:
    """The cached copy of a listed object; its note says which version it is, and of which file."""
    file = root / path.bucket / path.key
    if not file.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{path}: no file of this name can be kept here")
    note = file.with_name(f".{file.name}.version")
    try:
        if json.loads(note.read_bytes()) == [path.etag, *stamp(file)]:
            return file
    except (OSError, ValueError):
        pass
    etag = path.download(file)
    write_text(note, json.dumps([etag, *stamp(file)]))
    return file


def default_cache() -> Path:
    """The user's cache folder: $XDG_CACHE_HOME, or the one that the system sets aside for it."""
    usual = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / usual) / "minicnn"
