"""A run's folder: which files a training leaves behind, and how each is written and read.

A run in a bucket is written into a folder on this machine; `mirror` puts there what has changed.
"""

import csv
import logging
import shlex
import shutil
import tempfile
import weakref
from pathlib import Path

from minicnn.files import atomic_write, stamp
from segment.errors import InputError
from segment.storage.paths import AnyPath, to_path
from segment.storage.s3 import ABSENT, Changed, S3Path

Row = dict[str, float]
SCORES = ("loss", "accuracy", "iou")
CARD = "card.md"  # of a model that went on from another
COLUMNS = (
    "epoch",
    *(f"{part}_{score}" for part in ("train", "val") for score in SCORES),
    "seconds",
)

log = logging.getLogger(__name__)


class Run:
    """The files of one training, in one folder, and in a bucket if the user named one."""

    def __init__(self, home: str | AnyPath, of: "Run | None" = None) -> None:
        self.home = to_path(home)  # as the user named it
        self.of = of  # the run that it is a part of
        self.cache: str | None = None  # where its tiles are, if the user named a place
        if isinstance(self.home, Path):
            self.folder = self.home
        else:
            self.folder = Path(tempfile.mkdtemp(prefix="minicnn-run-"))
            self._removal = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.config = self.folder / "config.json"
        self.split = self.folder / "split.json"
        self.history = self.folder / "history.csv"
        self.curves = self.folder / "curves.png"
        self.overlay = self.folder / "overlay.png"
        self.best = self.folder / "best.safetensors"
        self.last = self.folder / "last.safetensors"
        self.metrics = self.folder / "metrics.json"
        self.report = self.folder / "report.html"
        self.card = self.folder / CARD
        # In the order in which one relies on another: `last` on `best`, all on `metrics`.
        self._files = [self.config, self.split, self.best, self.last, self.history, self.curves]
        self._files += [self.overlay, self.card, self.metrics]
        self._there: dict[Path, tuple[str, list[int]]] = {}  # the bucket's version, and of what

    @property
    def resume_line(self) -> str:
        """The command that goes on with this run."""
        whole = self.of or self
        words = ["python", "-m", "segment.train", "--out", str(whole.home), "--resume"]
        return shlex.join([*words, *(["--cache", whole.cache] if whole.cache else [])])

    def fetch(self, *files: Path) -> None:
        """Bring what a bucket holds of these files, by default of all."""
        if isinstance(self.home, S3Path):
            wanted = {file.name: file for file in files or self._files}
            for there in self.home.iterdir():
                if file := wanted.get(there.name):
                    self._there[file] = there.download(file), stamp(file)

    def mirror(self, patient: bool = False) -> None:
        """Put the files that have changed into the bucket, each whole or not at all.

        Each replaces the version that this process put or fetched: where another process writes
        the same run, Changed ends this one. Any other failure is told, not raised, where
        `patient`: the next mirror tries again, and a training need not end for it.
        """
        if not isinstance(self.home, S3Path):
            return
        try:
            for file in filter(Path.exists, self._files):
                version, was = self._there.get(file, (ABSENT, None))
                if stamp(file) != was:
                    was, there = stamp(file), self.home / file.name
                    self._there[file] = there.write(file.read_bytes(), version), was
        except Changed as error:
            raise InputError(f"{error}: does another process write this run?") from error
        except InputError as error:
            self._removal.detach()
            kept = f"{error}; the run is kept in {self.folder}"
            if not patient:
                raise InputError(kept) from error
            log.warning("%s, and the next checkpoint tries again", kept)


def write_history(path: Path, rows: list[Row]) -> None:
    """Write one line per epoch."""
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
