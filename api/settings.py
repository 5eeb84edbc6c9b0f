"""Every setting of the service in one place, read from environment variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from segment.storage.paths import AnyPath, to_path
from segment.storage.s3 import S3Path

PREFIX = "MINICNN_"


def _default_store() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "minicnn" / "api"


@dataclass(frozen=True)
class Settings:
    """docs/api.md explains each; field `upload_mb` is the variable MINICNN_UPLOAD_MB."""

    model: AnyPath | None = None
    device: str = "cpu"
    precision: str = "auto"
    store: AnyPath = Path()
    scratch: Path = Path()
    upload_mb: float = 256
    megapixels: float = 100
    side: int = 30_000
    slots: int = 2
    queue: int = 16
    timeout: float = 120
    cache_mb: float = 1024
    store_mb: float = 10_240
    job_hours: float = 24
    token: str = ""
    keys: Path | None = None
    rate: int = 0
    cors: str = ""
    basemap: str = ""
    proxies: int = 0

    @classmethod
    def load(cls, overrides: Mapping[str, Any] | None = None) -> "Settings":
        """The environment's settings, `overrides` first; ValueError names what can't be read."""
        values: dict[str, Any] = {"store": _default_store(), "scratch": _default_store()}
        for field in fields(cls):
            text = os.environ.get(PREFIX + field.name.upper())
            if text:
                values[field.name] = _parse(field.name, text)
        settings = cls(**{**values, **(overrides or {})})
        if settings.slots < 1 or min(settings.queue, settings.rate, settings.proxies) < 0:
            raise ValueError("slots counts from 1; queue, rate and proxies count from 0")
        if settings.device not in ("auto", "cpu", "gpu"):
            raise ValueError(f"{PREFIX}DEVICE must be auto, cpu or gpu, not {settings.device}")
        return settings

    @property
    def upload_bytes(self) -> int:
        return int(self.upload_mb * 1e6)

    def prefix(self, name: str) -> S3Path | None:
        """Where hosts share what none may lose; None where the store is a directory."""
        store = to_path(self.store)
        return store / name if isinstance(store, S3Path) else None

    def folder(self, name: str) -> Path:
        """A folder on this machine, made when it isn't there: in the store, if that is here."""
        store = to_path(self.store)
        path = (self.scratch if isinstance(store, S3Path) else store) / name
        path.mkdir(parents=True, exist_ok=True)
        return path


def _parse(name: str, text: str) -> Any:
    kind = Settings.__annotations__[name]
    kinds: dict[str, Any] = {"int": int, "float": float, "str": str}
    read = kinds.get(getattr(kind, "__name__", ""), to_path)
    try:
        value = read(text)
        if read in (int, float) and not 0 <= value < float("inf"):
            raise ValueError
    except ValueError:
        raise ValueError(f"{PREFIX}{name.upper()}: {text!r} is no number from 0 on") from None
    return value
