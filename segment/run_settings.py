"""What decides what a run computes: from the command line, and from its config.json."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from segment.data.reading import Reading
from segment.errors import InputError
from segment.storage.documents import read_json
from segment.storage.paths import to_path

AUTO_BATCH = 8  # crops; many small steps learn faster from few places than few large ones
LR, LR_ON = 0.03, 0.004  # from random weights; going on from a trained model
BUNDLED = "bundled"  # names the package's own weights
FOLDS = "folds"  # names the split that holds nothing out: see `segment.train.folds`


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes, kept in its config.json."""

    data: tuple[str, ...] = ()  # empty: synthetic scenes
    split: str = "scene"
    epochs: int = 30
    batch_size: int = AUTO_BATCH
    lr: float = LR
    patience: int = 15
    pixel_size: float | None = None  # of the scenes, where their files don't say
    learn_at: float | None = None  # the pixel size that they are resampled to
    seed: int = 0
    init: str | None = None
    precision: str = "float32"  # as of runs before it could be chosen
    bands: tuple[int, int, int] | None = None  # None: an 8-bit RGB picture
    value_range: tuple[float, float] | str | None = None
    ranks: int | None = None  # that share its batches, and so decide the last bits; None: unknown
    cache: str | None = None  # decides nothing; a run that is resumed finds its tiles there

    @property
    def reading(self) -> Reading:
        return Reading(self.bands, self.value_range)


def named(options: argparse.Namespace) -> dict[str, Any]:
    """The options that were named on the command line."""
    given: dict[str, Any] = {f.name: getattr(options, f.name, None) for f in fields(Settings)}
    given = {name: value for name, value in given.items() if value is not None}
    if "data" in given:
        given["data"] = tuple(str(to_path(path).resolve()) for path in given["data"])
    if "cache" in given:
        given["cache"] = str(Path(given["cache"]).resolve())
    if given.get("init", BUNDLED) != BUNDLED:
        given["init"] = str(to_path(given["init"]).resolve())
    return {name: _frozen(value) for name, value in given.items()}


def read_settings(path: Path) -> Settings:
    """The settings in a run's config.json."""
    document = read_json(path)
    try:
        names = {field.name for field in fields(Settings)}
        known: Any = {  # of an older run a setting may be unknown, as long as it is off
            name: _frozen(value) for name, value in document.items() if name in names or value
        }
        if "learn_at" not in known:  # a run of before 0.2 calls it so
            known["learn_at"] = known.pop("pixel_size", None)
        return Settings(**known)
    except (AttributeError, TypeError) as error:
        raise InputError(f"{path}: expected the settings of a run ({error})") from None


def _frozen(value: Any) -> Any:
    """JSON and argparse have lists where the settings have tuples."""
    return tuple(value) if isinstance(value, list) else value
