"""The network's answer for a scene, kept: each is computed once, whatever is asked of it later.

A prediction is the GeoTIFF of probabilities that `segment.predict` writes. The cache names it by
the scene's bytes, the model and the pixel size; a threshold, outlines or another format then cost
no second pass through the network.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from api.files import evict
from api.gate import Gate, lock
from api.settings import Settings
from api.uploads import Source
from minicnn.backend import choose_device
from segment.data.rasters import open_raster
from segment.errors import InputError
from segment.model import Model, load_model, model_file
from segment.predict.scene import scene_bands, write_bands
from segment.storage.s3 import StorageError

log = logging.getLogger("api")

# Takes the share that is done, None while it waits for its turn; may raise to stop the work.
Step = Callable[[float | None], None]


class Predictor:
    def __init__(self, settings: Settings, gate: Gate) -> None:
        self.settings, self.gate = settings, gate
        # The kernels keep work arrays for every thread that ever computes: let it be few.
        self.hands, self.job_hand = ThreadPoolExecutor(settings.slots), ThreadPoolExecutor(1)
        self.folder, self.locks = settings.folder("cache"), settings.folder("locks")
        self.there = settings.prefix("predictions")
        self._file, self._loading = model_file(settings.model), threading.Lock()
        self._loaded: Model | None = None
        self.device = choose_device(settings.device) if settings.device != "cpu" else "cpu"
        if self.device == "cpu":  # before the fork: the workers share its pages
            self.model  # noqa: B018

    @property
    def model(self) -> Model:
        """The model, loaded at first use: a GPU must not be touched before the workers fork."""
        with self._loading:
            if self._loaded is None:
                self.model_id = f"{self._file.stem}-{_digest(self._file)[:12]}"
                self._loaded = load_model(self._file).to(self.device)
            return self._loaded

    @property
    def ready(self) -> bool:
        return self._loaded is not None

    def key(self, digest: str, pixel_size: float | None) -> str:
        """The name of a prediction: the same for the same scene, model and pixel size."""
        self.model  # noqa: B018  (its id)
        text = f"{digest} {self.model_id} {pixel_size or ''}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def has(self, key: str) -> bool:
        return (self.folder / f"{key}.tif").exists()

    @contextmanager
    def opened(
        self, source: Source, pixel_size: float | None, step: Step, patience: float = 0.0
    ) -> Iterator[Any]:
        """The prediction of a scene as an open raster, computed now if it isn't kept.

        With `patience` (`Gate.slot`) the work makes way for others, and has a thread of its own.
        """
        key = self.key(source.digest, pixel_size)
        path = self.folder / f"{key}.tif"
        hands = self.job_hand if patience else self.hands

        def wait() -> None:
            step(None)

        with lock([self.locks / f"key{key[:3]}"], wait):
            if not path.exists() and not self._fetched(path):
                with self.gate.slot(wait, patience) as give_way:

                    def between(share: float | None) -> None:
                        give_way()
                        step(share)

                    hands.submit(self._compute, source, pixel_size, path, between).result()
            os.utime(path)
            opening = open_raster(path)
            try:
                dataset = opening.__enter__()
            except InputError as error:
                path.unlink(missing_ok=True)  # the next request makes it again
                raise RuntimeError("a kept prediction is broken") from error
        try:
            evict(self.folder.glob("*.tif"), self.settings.cache_mb * 1e6)
            yield dataset
        finally:
            opening.__exit__(None, None, None)

    def _compute(self, source: Source, pixel_size: float | None, path: Path, step: Step) -> None:
        def watched(windows: Sequence[Any]) -> Iterable[Any]:
            for done, window in enumerate(windows):
                step(done / len(windows))
                yield window

        with open_raster(source.path) as scene:
            bands = scene_bands(self.model, scene, pixel_size=pixel_size, progress=watched)
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


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"
