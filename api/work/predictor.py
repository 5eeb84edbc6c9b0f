"""The network's answer for a scene, kept: each is computed once, whatever is asked of it later.

A prediction is the GeoTIFF of probabilities that `segment.predict` writes. The cache names it by
the scene's bytes, the model and the pixel size; a threshold, outlines or another format then cost
no second pass through the network.
"""

import hashlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from api.files import evict
from api.gate import Gate, lock
from api.settings import Settings
from api.uploads import Look, Source
from minicnn import files
from minicnn.backend import choose_device, set_precision
from minicnn.kernels.cpu.threads import at_most, num_threads
from segment.data.rasters import open_raster
from segment.errors import InputError
from segment.model import Model, load_model, model_file
from segment.predict.scene import scene_bands, write_bands
from segment.storage.s3 import StorageError

LOOK = 0.2  # seconds between two looks at whether a request is still worth its turn

log = logging.getLogger("api")

# Takes the share that is done, None while it waits for its turn; may raise to stop the work.
Step = Callable[[float | None], None]


class Predictor:
    def __init__(self, settings: Settings, gate: Gate) -> None:
        self.settings, self.gate = settings, gate
        # One prediction at a time in a process, first come, first served: two would fight for
        # Python's lock, and the kernels keep work arrays for every thread that ever computes.
        self.hand, self.job_hand = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.folder, self.locks = settings.folder("cache"), settings.folder("locks")
        self.there = settings.prefix("predictions")
        self.grown = math.inf  # bytes by which the folder has grown since it was looked at
        self._file, self._loading = model_file(settings.model), threading.Lock()
        self._loaded: Model | None = None
        set_precision(settings.precision)
        self.device = choose_device(settings.device) if settings.device != "cpu" else "cpu"
        if self.device == "cpu":  # before the fork: the workers share its pages
            self.model  # noqa: B018

    @property
    def model(self) -> Model:
        """The model, loaded at first use: a GPU must not be touched before the workers fork."""
        with self._loading:
            if self._loaded is None:
                model = load_model(self._file).to(self.device)
                self.model_id = f"{self._file.stem}-{files.digest(self._file)[:12]}"
                self._loaded = model
            return self._loaded

    @property
    def ready(self) -> bool:
        return self._loaded is not None

    def key(self, digest: str, look: Look) -> str:
        """The name of a prediction: the same for the same scene, model and look."""
        self.model  # noqa: B018  (its id)
        text = f"{digest} {self.model_id} {look}"
        return _of_scene(digest) + hashlib.sha256(text.encode()).hexdigest()[:16]

    def forget(self, digest: str) -> None:
        """Remove all that was found in a scene."""
        for path in self.folder.glob(f"{_of_scene(digest)}*.tif"):
            path.unlink(missing_ok=True)
        for kept in self.there.glob(f"{_of_scene(digest)}*.tif") if self.there else ():
            kept.delete()

    def mask_file(self, digest: str, etag: str) -> Path:
        """Where a mask is kept that may be asked for again, in parts or as tiles."""
        return self.folder / f"{_of_scene(digest)}-{etag[:16]}.tif"

    def has(self, key: str) -> bool:
        return (self.folder / f"{key}.tif").exists()

    @contextmanager
    def opened(
        self, source: Source, look: Look, step: Step, patience: float = 0.0
    ) -> Iterator[Any]:
        """The prediction of a scene as an open raster, computed now if it isn't kept.

        With `patience` (`Gate.slot`) the work makes way for others, and has a thread of its own.
        """
        key = self.key(source.digest, look)
        path = self.folder / f"{key}.tif"
        if not path.exists():
            self._make(source, look, path, step, patience)
        with suppress(OSError):  # where it can't be written it isn't evicted either
            os.utime(path)
        with self._open(path) as dataset:
            if self.grown > self.settings.cache_mb * 1e6 / 20:  # to look at each takes seconds
                self.grown = 0
                evict(self.folder.glob("*.tif"), self.settings.cache_mb * 1e6)
            yield dataset

    def _make(self, source: Source, look: Look, path: Path, step: Step, patience: float) -> None:
        """Compute a prediction, unless another worker or host has."""
        hand = self.job_hand if patience else self.hand

        def wait() -> None:
            step(None)

        with lock(self.locks / f"key{path.name[:3]}", wait):
            if not path.exists() and not self._fetched(path):
                turn = patience, time.time()
                work = hand.submit(self._compute, source, look, path, step, turn)
                while not futures.wait([work], timeout=LOOK).done:
                    if not work.running():
                        _give_up(work, wait)
                work.result()
                self.grown += path.stat().st_size

    @contextmanager
    def _open(self, path: Path) -> Iterator[Any]:
        with ExitStack() as stack:
            try:
                dataset = stack.enter_context(open_raster(path))
            except InputError as error:
                path.unlink(missing_ok=True)  # the next request makes it again
                raise RuntimeError("a kept prediction is broken") from error
            yield dataset

    def _compute(
        self, source: Source, look: Look, path: Path, step: Step, turn: tuple[float, float]
    ) -> None:
        """Once a slot is free: the prediction, on this one's share of the cores."""

        def wait() -> None:
            step(None)

        def watched(windows: Sequence[Any]) -> Iterable[Any]:
            for done, window in enumerate(windows):
                give_way()
                step(done / len(windows))
                yield window

        with self.gate.slot(wait, *turn) as give_way, open_raster(source.path) as scene:
            info = replace(self.model.info, reading=look.reading(self.model.info.reading))
            model = replace(self.model, info=info)
            bands = scene_bands(model, scene, pixel_size=look.pixel_size, progress=watched)
            with at_most(max(1, num_threads() // self.gate.slots.taken())):
                write_bands(bands, path, scene, threshold=None)

    def share(self, key: str) -> None:
        """Keep a prediction where other hosts find it."""
        try:
            if self.there:
                (self.there / f"{key}.tif").upload(self.folder / f"{key}.tif")
        except StorageError as error:
            log.warning("other hosts will have to make a prediction again: %s", error)

    def _fetched(self, path: Path) -> bool:
        """Whether another host has made this prediction; then it is here now."""
        try:
            if self.there:
                (self.there / path.name).download(path)
            return self.there is not None
        except StorageError:  # there is none, or nobody can say
            return False


def _give_up(work: "futures.Future[None]", check: Callable[[], None]) -> None:
    """Raise what `check` raises, if the work has not begun; work under way checks for itself."""
    try:
        check()
    except Exception:
        if work.cancel():
            raise


def _of_scene(digest: str) -> str:
    """What the names of all predictions of a scene begin with."""
    return hashlib.sha256(digest.encode()).hexdigest()[:16]
