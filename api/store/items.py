"""Stored scenes, in a directory that all workers share, or under an S3 prefix that all hosts share.

`items/ID.json` is an item: replacing that file is the moment at which a write happens. It names
the scene's file in `scenes/`, which belongs to this version alone; a kill before the replacement
leaves an unnamed file that is swept later, one after it leaves a whole new version.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from api.errors import Problem
from api.files import evict, scratch_path, sync, total_bytes
from api.gate import lock
from api.settings import Settings
from api.uploads import Source
from minicnn.files import atomic_write
from segment.storage.s3 import ABSENT, Changed, Missing, S3Path

ORPHAN_SECONDS = 3600
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)
ATTEMPTS = 20  # of a write that meets another one each time


@dataclass(frozen=True)
class Record:
    """One version of an item: its ETag, its metadata, and where its scene is."""

    etag: str
    item: dict[str, Any]
    media_type: str
    source: Source


Change = Callable[[Record | None], dict[str, Any]]


def open_store(settings: Settings) -> "Store":
    """The store that the settings name."""
    return S3Store(settings) if settings.prefix("") else Store(settings)


class Store:
    """Scenes in a directory; a lock per item keeps its writers apart."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.items, self.scenes = settings.folder("items"), settings.folder("scenes")
        self.locks = settings.folder("locks")

    def get(self, item_id: str) -> Record | None:
        return self._read(item_id)[0]

    def replace(
        self, item_id: str, change: Change, source: Source | None = None
    ) -> tuple[Record, bool]:
        """Make what `change` makes of the present version the present one, with a new scene if any.

        `change` gets None where there is no version; what it raises leaves everything as it was.
        It gives item, sha256 and media_type, or those of them that change, and is called again
        where another host was faster. Returns the new version, and whether it is the first.
        """
        scene = None
        try:
            for _ in range(ATTEMPTS):
                with self._locked(item_id), suppress(Changed):
                    before, version = self._read(item_id)
                    held = change(before)
                    if before:
                        old = {"sha256": before.source.digest, "media_type": before.media_type}
                        held = {**old, "scene": before.source.path.name, **held}
                    if source:
                        scene = scene or self._keep(item_id, source)
                        held["scene"] = scene
                    text = json.dumps(held).encode()
                    self._write(item_id, text, version)
                    scene = None  # it is named now
                    if before and source:
                        self._drop(before.source.path.name)
                    return self._record(item_id, text), before is None
        finally:
            if scene:
                self._drop(scene)
        raise Problem(503, "Others are writing this item; try again.", {"Retry-After": "1"})

    def remove(self, item_id: str, check: Callable[[Record | None], None]) -> None:
        """Remove an item, unless `check`, which gets the present version, raises."""
        for _ in range(ATTEMPTS):
            with self._locked(item_id), suppress(Changed):
                before, version = self._read(item_id)
                check(before)
                self._unlink(item_id, version)
                if before:
                    self._drop(before.source.path.name)
                return

    @contextmanager
    def pinned(self, item_id: str) -> Iterator[Record | None]:
        """An item whose scene stays readable in the block, even if the item is replaced."""
        with scratch_path(self.settings) as pin:
            record = self._pin(item_id, pin) or self._pin(item_id, pin)  # replaced just then
            yield record

    def _pin(self, item_id: str, pin: Path) -> Record | None:
        record = self.get(item_id)
        try:
            if record:
                self._link(record.source.path, pin)
                return replace(record, source=replace(record.source, path=pin))
        except (FileNotFoundError, Missing):
            return None
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
        return record  # where nothing can be written, nothing is replaced

    def _locked(self, item_id: str) -> Any:
        name = hashlib.sha256(item_id.encode()).hexdigest()[:2]
        return lock(self.locks / f"item{name}")

    def _record(self, item_id: str, text: bytes) -> Record:
        held = json.loads(text)
        source = Source(self.scenes / held["scene"], item_id, held["sha256"])
        etag = hashlib.sha256(text).hexdigest()[:32]
        return Record(etag, held["item"], held["media_type"], source)

    def check_room(self, source: Source) -> None:
        """Problem 507 where a scene has no room beside those of items and jobs."""
        jobs = self.settings.folder("jobs").glob("[!.]*/scene")
        if (
            self.used() + total_bytes(jobs) + source.path.stat().st_size
            > self.settings.store_mb * 1e6
        ):
            raise Problem(507, "The store is full: remove items or jobs first.")

    # ------------------------------------------------------------ where things are

    def ids(self) -> list[str]:
        return sorted(p.stem for p in self.items.glob("*.json") if not p.name.startswith("."))

    def _read(self, item_id: str) -> tuple[Record | None, str]:
        """The present version of an item, and what `_write` may replace."""
        try:
            return self._record(item_id, (self.items / f"{item_id}.json").read_bytes()), ""
        except FileNotFoundError:
            return None, ""

    def _write(self, item_id: str, text: bytes, version: str) -> None:
        with atomic_write(self.items / f"{item_id}.json") as temporary:
            temporary.write_bytes(text)

    def _unlink(self, item_id: str, version: str) -> None:
        (self.items / f"{item_id}.json").unlink()

    def _keep(self, item_id: str, source: Source) -> str:
        """Move an upload's bytes into the store, under no item's name yet."""
        self.check_room(source)
        path = self.scenes / os.urandom(16).hex()
        os.link(source.path, path)
        sync(path)  # on the disk before any item names it
        return path.name

    def _drop(self, scene: str) -> None:
        (self.scenes / scene).unlink(missing_ok=True)

    def _link(self, scene: Path, pin: Path) -> None:
        os.link(scene, pin)

    def used(self) -> int:
        """Bytes of all the scenes."""
        return total_bytes(self.scenes.iterdir())

    def sweep(self) -> None:
        """Remove scenes that no item names: those of writers that were killed."""
        old = [
            path
            for path in self.scenes.iterdir()
            if time.time() - path.stat().st_ctime > ORPHAN_SECONDS
        ]
        named = {record.source.path for i in self.ids() if (record := self.get(i))}
        for path in old:
            if path not in named:
                path.unlink(missing_ok=True)


class S3Store(Store):
    """Scenes under an S3 prefix: hosts are kept apart by conditional writes, and workers by locks.

    `self.scenes` is a folder of copies on this machine, of the scenes that were asked for lately.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        items, scenes = settings.prefix("items"), settings.prefix("scenes")
        assert items and scenes
        self.there_items, self.there_scenes = items, scenes

    def ids(self) -> list[str]:
        return sorted(path.stem for path in self.there_items.iterdir())

    def _read(self, item_id: str) -> tuple[Record | None, str]:
        try:
            text, version = (self.there_items / f"{item_id}.json").read()
            return self._record(item_id, text), version
        except Missing:
            return None, ABSENT

    def _write(self, item_id: str, text: bytes, version: str) -> None:
        (self.there_items / f"{item_id}.json").write(text, version)

    def _unlink(self, item_id: str, version: str) -> None:
        (self.there_items / f"{item_id}.json").delete(version)

    def _keep(self, item_id: str, source: Source) -> str:
        self.check_room(source)
        scene = f"{item_id}~{os.urandom(16).hex()}"  # the item's id tells `sweep` where to look
        (self.there_scenes / scene).upload(source.path)
        return scene

    def _drop(self, scene: str) -> None:
        (self.scenes / scene).unlink(missing_ok=True)
        (self.there_scenes / scene).delete()

    def _link(self, scene: Path, pin: Path) -> None:
        if not scene.exists():
            (self.there_scenes / scene.name).download(scene)
            evict(self.scenes.glob("[!.]*"), self.settings.cache_mb * 1e6)
        os.utime(scene)
        os.link(scene, pin)

    def used(self) -> int:
        return sum(path.size for path in self.there_scenes.iterdir())

    def sweep(self) -> None:
        by_item: dict[str, list[S3Path]] = {}
        for path in self.there_scenes.iterdir():
            by_item.setdefault(path.name.partition("~")[0], []).append(path)
        ids = set(self.ids())
        for item_id, paths in by_item.items():
            if len(paths) == 1 and item_id in ids:  # its own, without asking for it
                continue
            record = self.get(item_id)
            for path in paths:
                named = record and record.source.path.name == path.name
                if not named and time.time() - path.modified > ORPHAN_SECONDS:
                    path.delete()
