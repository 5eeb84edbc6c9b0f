"""A run's folder: which files a training leaves behind, and how each is written and read."""

import csv
import json
from pathlib import Path
from typing import Any

from minicnn.files import atomic_write
from segment.errors import InputError

Row = dict[str, float]


class Run:
    """The files of one training, in one folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = self.folder / "config.json"
        self.split = self.folder / "split.json"
        self.history = self.folder / "history.csv"
        self.curves = self.folder / "curves.png"
        self.overlay = self.folder / "overlay.png"
        self.best = self.folder / "best.safetensors"
        self.last = self.folder / "last.safetensors"
        self.metrics = self.folder / "metrics.json"
        self.report = self.folder / "report.html"


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file that people can read, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: expected this file of a training run") from None
    except ValueError as error:
        raise InputError(f"{path}: expected JSON ({error})") from None


def write_history(path: Path, rows: list[Row]) -> None:
    """Write one line per epoch."""
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
