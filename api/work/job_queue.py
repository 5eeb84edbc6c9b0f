"""Work that outlives a request, a worker and a server: predictions of large scenes.

A job is a folder: its scene, `request.json`, and `state.json`, which is replaced as the work goes
on. A thread of every worker looks for jobs nobody works on; who holds a job's lock works on it. A
killed worker's locks vanish with it, so another one takes its jobs over.

Where the store is in S3, a job is there, too, before it is accepted: `ID.json`, its state, and
`ID/`, its files. The state is put again as long as the host works on it; one that has gone stale
tells that the host is lost, and the host that replaces it, by a conditional write, goes on.
"""

import json
import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from api.errors import Problem, disk_is_full
from api.files import sweep, sync
from api.gate import try_lock
from api.settings import Settings
from api.store.items import ORPHAN_SECONDS, Store
from api.store.stac import now
from api.uploads import Look, Source, in_plain_words
from api.work.predictor import Predictor
from minicnn.files import write_text
from segment.storage.s3 import ABSENT, Changed, Missing, StorageError

IDLE = 1.0  # seconds between two looks for work
REPORT = 0.3  # seconds between two reports of progress
BEAT = 20  # seconds between two signs of life to other hosts
LOST = 90  # seconds without one after which a host is taken for lost
REST = 10  # seconds until a job that met a full disk is tried again
PATIENCE = 30  # seconds by which requests go before jobs
ATTEMPTS = 3  # a job whose worker is killed so often is at fault itself
WAITING = ("accepted", "running")

log = logging.getLogger("api")


class Stopped(Exception):
    """The worker is asked to stop, or the job was deleted."""


class Jobs:
    def __init__(self, settings: Settings, predictor: Predictor, store: Store) -> None:
        self.settings, self.predictor, self.store = settings, predictor, store
        self.folder, self.there = settings.folder("jobs"), settings.prefix("jobs")
        self._resting: dict[str, float] = {}  # until when a job is left alone
        self._over: set[str] = set()  # jobs of all hosts that are known to be done
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, job_id: str, source: Source, look: Look) -> dict[str, Any]:
        """Accept a job; one of this id that has not failed is the same job."""
        before = self.get(job_id)
        if before and before["status"] != "failed":
            return before
        if len(list(self.folder.glob("*/scene"))) >= 1000:
            raise Problem(503, "Too many jobs are kept; try again later.", {"Retry-After": "60"})
        self.store.check_room(source)
        draft = self.folder / f".{job_id}-{os.urandom(4).hex()}"
        draft.mkdir()
        os.link(source.path, draft / "scene")
        request = {"name": source.name, "digest": source.digest, "look": asdict(look)}
        _write(draft / "request.json", request)
        state = {"status": "accepted", "progress": 0, "message": "waiting for its turn"}
        state |= {"created": now(), "updated": now(), "attempts": 0}
        _write(draft / "state.json", state)
        sync(draft / "scene")
        if before:  # it failed
            self.delete(job_id)
        with suppress(Changed):  # another request was faster
            if self.there:
                for file in ("scene", "request.json"):
                    (self.there / job_id / file).upload(draft / file)
                self._tell(job_id, state, ABSENT)
            with suppress(OSError):
                os.rename(draft, self.folder / job_id)
        shutil.rmtree(draft, ignore_errors=True)
        self._wake.set()
        return self.get(job_id) or state

    def get(self, job_id: str) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / job_id / "state.json").read_bytes())
        except FileNotFoundError:
            return self._told(job_id)[0]

    def count(self) -> Counter[str]:
        """How many jobs of this machine are in each state."""
        states = (self.get(folder.name) for folder in self.folder.glob("[!.]*"))
        return Counter(state["status"] for state in states if state)

    def source(self, job_id: str) -> tuple[Source, Look]:
        """A job's scene, and how it is looked at."""
        folder = self.folder / job_id
        if not folder.exists():
            self._fetch(job_id)
        asked = json.loads((folder / "request.json").read_bytes())
        look = {k: tuple(v) if isinstance(v, list) else v for k, v in asked["look"].items()}
        return Source(folder / "scene", asked["name"], asked["digest"]), Look(**look)  # type: ignore[arg-type]

    def delete(self, job_id: str) -> None:
        """Forget a job, its scene, and what was found in it."""
        with suppress(FileNotFoundError, Missing):
            self.predictor.forget(self.source(job_id)[0].digest)
        self._forget(job_id)
        if self.there:
            (self.there / f"{job_id}.json").delete()  # first: it is what makes a job one
            for file in ("scene", "request.json"):
                (self.there / job_id / file).delete()

    def _forget(self, job_id: str) -> None:
        """Remove a job from this machine."""
        with suppress(FileNotFoundError):
            doomed = self.folder / f".gone-{os.urandom(8).hex()}"
            os.rename(self.folder / job_id, doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    # ------------------------------------------------------------ what other hosts see

    def _tell(self, job_id: str, state: dict[str, Any], replaces: str | None = None) -> str:
        """Put a job's state; Changed where it isn't this host's any more. Returns its version."""
        text = json.dumps(state).encode()
        return (self.there / f"{job_id}.json").write(text, replaces) if self.there else ""

    def _told(self, job_id: str) -> tuple[dict[str, Any] | None, str]:
        """A job's state as its host has told it, and the version of that."""
        try:
            if self.there:
                text, version = (self.there / f"{job_id}.json").read()
                return json.loads(text), version
        except Missing:
            pass
        return None, ""

    def _fetch(self, job_id: str) -> None:
        """Bring a job of another host here."""
        assert self.there
        state, _ = self._told(job_id)
        draft = self.folder / f".{job_id}-{os.urandom(4).hex()}"
        draft.mkdir()
        for file in ("scene", "request.json"):
            (self.there / job_id / file).download(draft / file)
        _write(draft / "state.json", state or {})
        with suppress(OSError):  # another request was faster
            os.rename(draft, self.folder / job_id)
        shutil.rmtree(draft, ignore_errors=True)

    def _take_over(self) -> None:
        """Bring the jobs here whose host has been silent for too long."""
        assert self.there
        for path in list(self.there.glob("*.json")):
            if path.stem in self._over or time.time() - path.modified < LOST:
                continue
            state, version = self._told(path.stem)
            if state and state["status"] in WAITING and not (self.folder / path.stem).exists():
                with suppress(Changed):  # another host was faster
                    path.write(json.dumps({**state, "updated": now()}).encode(), version)
                    self._fetch(path.stem)
            elif state and state["status"] not in WAITING:
                self._over.add(path.stem)

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
        swept = looked = 0.0
        while not self._stop.is_set():
            try:
                if self.there and time.monotonic() - looked > BEAT:
                    looked = time.monotonic()
                    self._take_over()
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
            rests = time.monotonic() < self._resting.get(folder.name, 0)
            if state and state["status"] in WAITING and not rests:
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
        path, reported, told = self.folder / job_id / "state.json", 0.0, 0.0
        _, version = self._told(job_id)

        def report(**changes: Any) -> None:
            nonlocal told, version
            state.update(changes, updated=now())
            _write(path, state)
            if state["status"] not in WAITING or time.monotonic() - told > BEAT:
                told = time.monotonic()
                try:
                    version = self._tell(job_id, state, version)
                except Changed:
                    self._forget(job_id)
                    raise FileNotFoundError(path) from None
                except StorageError as error:
                    log.warning("job %s goes on, unseen by other hosts: %s", job_id, error)

        def step(share: float | None) -> None:
            nonlocal reported
            if self._stop.is_set() or not path.exists():
                raise Stopped
            if share is None:
                return
            if state["status"] == "accepted":  # only now: a kill while it waited is not its fault
                begun = {"status": "running", "attempts": state["attempts"] + 1}
                report(**begun, message="looking for buildings")
            if time.monotonic() - reported > REPORT:
                reported = time.monotonic()
                report(progress=int(100 * share))

        if state["attempts"] >= ATTEMPTS:
            sentence = f"Given up: the service was killed {ATTEMPTS} times at this scene."
            report(status="failed", message=sentence)
            return
        state["status"] = "accepted"  # of a killed worker it may say more
        try:
            source, look = self.source(job_id)
            with (
                in_plain_words(source),
                self.predictor.opened(source, look, step, PATIENCE),
            ):
                self.predictor.share(self.predictor.key(source.digest, look))
                report(status="successful", progress=100, message="done")
        except Stopped:
            with suppress(FileNotFoundError):
                self._put_down(state, report, "waiting for its turn")
        except FileNotFoundError:
            log.info("job %s was deleted while it ran, or taken over", job_id)
        except Problem as problem:
            report(status="failed", message=problem.detail)
        except Exception as error:
            if disk_is_full(error):
                log.warning("job %s waits: the disk is full", job_id)
                with suppress(FileNotFoundError):
                    self._put_down(state, report, "waiting for room on the disk")
                self._resting[job_id] = time.monotonic() + REST
                return
            log.exception("job %s failed", job_id)
            report(status="failed", message="Something went wrong here; the log says more.")

    def _put_down(self, state: dict[str, Any], report: Callable[..., None], why: str) -> None:
        """Make a job wait again; that it was tried doesn't count. A full disk is waited for."""
        attempts = state["attempts"] - (state["status"] == "running")
        while True:
            try:
                report(status="accepted", progress=0, message=why, attempts=attempts)
                return
            except OSError as error:
                if not disk_is_full(error) or self._stop.wait(1):
                    raise

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
        for told in self.there.glob("*.json") if self.there else ():
            if time.time() - told.modified > self.settings.job_hours * 3600:
                self.delete(told.stem)
        for kept in self.predictor.there.iterdir() if self.predictor.there else ():
            if time.time() - kept.modified > self.settings.job_hours * 3600:
                kept.delete()
        sweep(self.settings.folder("scratch"), ORPHAN_SECONDS)
        self.store.sweep()


def _write(path: Path, value: dict[str, Any]) -> None:
    write_text(path, json.dumps(value))
