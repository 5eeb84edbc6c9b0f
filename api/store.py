"""Stored scenes, in a directory that any number of processes and machines' workers may share.

`items/ID.json` is an item: replacing that file is the moment at which a write happens. It names
the scene's file in `scenes/`, which belongs to this version alone; a kill before the replacement
leaves an unnamed file that is swept later, one after it leaves a whole new version.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from api.errors import Problem
from api.limits import lock
from api.settings import Settings
from api.uploads import Source, scratch_path, sync
from minicnn.files import atomic_write

ORPHAN_SECONDS = 3600


@dataclass(frozen=True)
class Record:
    """One version of an item: its ETag, its metadata, and where its scene is."""

    etag: str
    item: dict[str, Any]
    media_type: str
    source: Source


class Store:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.items, self.scenes = settings.folder("items"), settings.folder("scenes")
        self.locks = settings.folder("locks")

    def get(self, item_id: str) -> Record | None:
        try:
            text = (self.items / f"{item_id}.json").read_bytes()
        except FileNotFoundError:
            return None
        held = json.loads(text)
        source = Source(self.scenes / held["scene"], item_id, held["sha256"])
        etag = hashlib.sha256(text).hexdigest()[:32]
        return Record(etag, held["item"], held["media_type"], source)

    def ids(self) -> list[str]:
        return sorted(p.stem for p in self.items.glob("*.json") if not p.name.startswith("."))

    @contextmanager
    def writing(self, item_id: str) -> Iterator[Record | None]:
        """The present version of an item, which nobody else can change in the block."""
        name = hashlib.sha256(item_id.encode()).hexdigest()[:2]
        with lock([self.locks / f"item{name}"]):
            yield self.get(item_id)

    def keep(self, source: Source) -> Path:
        """Move an upload's bytes into the store, under no item's name yet."""
        size = source.path.stat().st_size
        if self.used() + size > self.settings.store_mb * 1e6:
            raise Problem(507, "The store is full: remove items first.")
        path = self.scenes / os.urandom(16).hex()
        os.link(source.path, path)
        sync(path)  # on the disk before any item names it
        return path

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
                os.link(record.source.path, pin)
                return replace(record, source=replace(record.source, path=pin))
        except FileNotFoundError:
            pass
        return None

    def put(self, item_id: str, record: dict[str, Any]) -> None:
        """Make `record` (item, scene, sha256, media_type) the item's present version."""
        with atomic_write(self.items / f"{item_id}.json") as temporary:
            temporary.write_text(json.dumps(record))

    def delete(self, item_id: str) -> None:
        (self.items / f"{item_id}.json").unlink()

    def used(self) -> int:
        """Bytes of all the scenes."""
        total = 0
        for path in self.scenes.iterdir():
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

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
