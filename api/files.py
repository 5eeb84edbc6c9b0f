"""Files of the service on this machine: scratch names, what was left behind, what is too much."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from api.settings import Settings
from minicnn import files


@contextmanager
def scratch_path(settings: Settings, suffix: str = "") -> Iterator[Path]:
    """A name for a new file, which is removed at the end if it is still there."""
    path = settings.folder("scratch") / f"{os.getpid()}-{os.urandom(8).hex()}{suffix}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def sweep(folder: Path, seconds: float) -> None:
    """Remove files that a killed process has left: those older than `seconds`."""
    for path in folder.iterdir():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > seconds:
                path.unlink()


def sync(path: Path) -> None:
    """Wait until a file's bytes and its name are on the disk."""
    files.sync(path)
    files.sync(path.parent)


def total_bytes(files: Iterable[Path]) -> int:
    total = 0
    for path in files:
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def evict(files: Iterable[Path], most: float) -> None:
    """Remove what was used longest ago, down to `most` bytes."""
    found = []
    for path in files:
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            break
        path.unlink(missing_ok=True)
        total -= size
