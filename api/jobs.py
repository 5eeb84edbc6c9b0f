"""Work that outlives a request, a worker and a server: predictions of large scenes.

A job is a folder: its scene, `request.json`, and `state.json`, which is replaced as the work goes
on. A thread of every worker looks for jobs nobody works on; who holds a job's lock works on it. A
killed worker's locks vanish with it, so another one takes its jobs over.
"""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from api.errors import Problem
from api.limits import try_lock
from api.predictions import Predictor
from api.settings import Settings
from api.stac import now
from api.store import ORPHAN_SECONDS, Store
from api.uploads import Source, in_plain_words, sweep, sync
from minicnn.files import atomic_write

IDLE = 1.0  # seconds between two looks for work
REPORT = 0.3  # seconds between two reports of progress
ATTEMPTS = 3  # a job whose worker is killed so often is at fault itself
WAITING = ("accepted", "running")

log = logging.getLogger("api")


class Stopped(Exception):
    """The worker is asked to stop, or the job was deleted."""


class Jobs:
    def __init__(self, settings: Settings, predictor: Predictor, store: Store) -> None:
        self.settings, self.predictor, self.store = settings, predictor, store
        self.folder = settings.folder("jobs")
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, job_id: str, source: Source, pixel_size: float | None) -> dict[str, Any]:
        """Accept a job; one of this id that has not failed is the same job."""
        state = self.get(job_id)
        if state and state["status"] != "failed":
            return state
        if len(list(self.folder.glob("*/scene"))) >= 1000:
            raise Problem(503, "Too many jobs are kept; try again later.", {"Retry-After": "60"})
        draft = self.folder / f".{job_id}-{os.urandom(4).hex()}"
        draft.mkdir()
        os.link(source.path, draft / "scene")
        request = {"name": source.name, "digest": source.digest, "pixel_size": pixel_size}
        _write(draft / "request.json", request)
        state = {"status": "accepted", "progress": 0, "message": "waiting for its turn"}
        state |= {"created": now(), "updated": now(), "attempts": 0}
        _write(draft / "state.json", state)
        sync(draft / "scene")
        if self.get(job_id):  # it failed
            self.delete(job_id)
        with suppress(OSError):  # another request was faster
            os.rename(draft, self.folder / job_id)
        shutil.rmtree(draft, ignore_errors=True)
        self._wake.set()
        return self.get(job_id) or state

    def get(self, job_id: str) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / job_id / "state.json").read_bytes())
        except FileNotFoundError:
            return None

    def source(self, job_id: str) -> tuple[Source, float | None]:
        """A job's scene and pixel size."""
        folder = self.folder / job_id
        asked = json.loads((folder / "request.json").read_bytes())
        return Source(folder / "scene", asked["name"], asked["digest"]), asked["pixel_size"]

    def delete(self, job_id: str) -> None:
        with suppress(FileNotFoundError):
            doomed = self.folder / f".gone-{os.urandom(8).hex()}"
            os.rename(self.folder / job_id, doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    # ------------------------------------------------------------ the worker's side

    def start(self) -> None:
        """Work on jobs in a thread of this process, until `stop`."""
        self._thread = threading.Thread(target=self._loop, name="jobs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Put down the job in hand, for another worker or the next start, and end the thread."""
        self._stop.set()
        self._wake.set()
        if self._thread:
            self._thread.join(timeout=10)

    def _loop(self) -> None:
        swept = 0.0
        while not self._stop.is_set():
            try:
                if time.monotonic() - swept > 600:
                    swept = time.monotonic()
                    self.sweep()
                self.run_waiting()
            except Exception:
                log.exception("the job thread met an unforeseen error")
            self._wake.wait(IDLE)
            self._wake.clear()

    def run_waiting(self) -> None:
        """Do the jobs that nobody works on, oldest first."""
        waiting = []
        for folder in self.folder.glob("[!.]*"):
            state = self.get(folder.name)
            if state and state["status"] in WAITING:
                waiting.append((state["created"], folder.name))
        for _, job_id in sorted(waiting):
            if self._stop.is_set():
                return
            with self._claimed(job_id) as state:
                if state and state["status"] in WAITING:
                    self._run(job_id, state)

    @contextmanager
    def _claimed(self, job_id: str) -> Iterator[dict[str, Any] | None]:
        try:
            descriptor = try_lock(self.folder / job_id / "lock")
        except FileNotFoundError:  # deleted just now
            descriptor = None
        try:
            yield self.get(job_id) if descriptor is not None else None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _run(self, job_id: str, state: dict[str, Any]) -> None:
        path, reported = self.folder / job_id / "state.json", 0.0

        def report(**changes: Any) -> None:
            state.update(changes, updated=now())
            _write(path, state)

        def step(share: float) -> None:
            nonlocal reported
            if self._stop.is_set() or not path.exists():
                raise Stopped
            if time.monotonic() - reported > REPORT:
                reported = time.monotonic()
                report(progress=int(100 * share))

        if state["attempts"] >= ATTEMPTS:
            sentence = f"Given up: the service was killed {ATTEMPTS} times at this scene."
            report(status="failed", message=sentence)
            return
        try:
            state["attempts"] += 1
            report(status="running", message="looking for buildings")
            source, pixel_size = self.source(job_id)
            with in_plain_words(source), self.predictor.opened(source, pixel_size, step):
                report(status="successful", progress=100, message="done")
        except Stopped:
            with suppress(FileNotFoundError):
                report(status="accepted", attempts=state["attempts"] - 1)
        except FileNotFoundError:
            log.info("job %s was deleted while it ran", job_id)
        except Problem as problem:
            report(status="failed", message=problem.detail)
        except Exception:
            log.exception("job %s failed", job_id)
            report(status="failed", message="Something went wrong here; the log says more.")

    def sweep(self) -> None:
        """Remove what is over: old jobs, files of killed processes, scenes without an item."""
        for folder in self.folder.iterdir():
            with suppress(OSError):
                age = time.time() - (folder / "state.json").stat().st_mtime
                if age > self.settings.job_hours * 3600:
                    self.delete(folder.name)
            if folder.name.startswith("."):
                with suppress(OSError):
                    if time.time() - folder.stat().st_mtime > ORPHAN_SECONDS:
                        shutil.rmtree(folder, ignore_errors=True)
        sweep(self.settings.folder("scratch"), ORPHAN_SECONDS)
        self.store.sweep()


def _write(path: Path, value: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value))
