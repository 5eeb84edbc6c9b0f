"""A real gunicorn with the service in it, on a free port, and what the tests ask of it."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import rasterio
import requests
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

REPO = Path(__file__).parents[2]


class Server:
    """`with Server(store, model, UPLOAD_MB=1) as server`: settings without their prefix.

    With `disk`, the store is a disk of so many bytes that only the service sees (`inside`).
    """

    def __init__(self, store, model, disk=None, **settings):
        self.disk = disk
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.store = Path(store)
        self.log = self.store.parent / f"log-{self.port}"
        settings = {"STORE": store, "MODEL": model, "BIND": f"127.0.0.1:{self.port}", **settings}
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MINICNN_", "COV_"))}
        kept["TMPDIR"] = str(self.store.parent)
        self.environment = {**kept, **{f"MINICNN_{k}": str(v) for k, v in settings.items()}}
        self.process = None

    def __enter__(self):
        command = [Path(sys.executable).with_name("gunicorn"), "-c", "docker/gunicorn.conf.py"]
        if self.disk:
            self.store.mkdir()
            mount = f'mount -t tmpfs -o size={self.disk} none "{self.store}" && exec "$@"'
            command = ["unshare", "-rm", "sh", "-c", mount, "sh", *command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=REPO,
                env=self.environment,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_for(self.is_ready, 200, lambda: self.log.read_text())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        """The service must bear it, and a test needs no longer."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """End it as an administrator would."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def is_ready(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            return requests.get(f"{self.url}/readyz", timeout=5).ok
        except requests.ConnectionError:
            return False

    def inside(self, path):
        """A file of the store, where that is a disk of its own."""
        return Path(f"/proc/{self.process.pid}/root{self.store}") / path

    def workers(self):
        """The process ids of the workers."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == self.process.pid:
                    found.append(int(process.name))
        return sorted(found)

    def lines(self):
        """What the service logged, as objects."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def get(self, path, **options):
        return requests.get(self.url + path, timeout=60, **options)

    def put(self, path, data, kind="image/tiff", headers=None, **options):
        headers = {"Content-Type": kind, **(headers or {})}
        return requests.put(self.url + path, data, headers=headers, timeout=60, **options)

    def delete(self, path, **options):
        return requests.delete(self.url + path, timeout=60, **options)

    def mask(self, data, name="scene.tif", query=None, headers=None, **options):
        """POST a picture to /buildings_mask/."""
        return requests.post(
            f"{self.url}/buildings_mask/",
            files={"file": (name, data, "application/octet-stream")},
            params=query,
            headers=headers,
            timeout=options.pop("timeout", 60),
            **options,
        )


def memory(server, peak=False):
    """Bytes that each worker holds, or held at most."""
    name, found = "VmHWM" if peak else "VmRSS", []
    for worker in server.workers():
        status = Path(f"/proc/{worker}/status").read_text()
        found.append(int(status.split(f"{name}:")[1].split()[0]) * 1024)
    return found


def peaks(server):
    return memory(server, peak=True)


def wait_for(condition, seconds, about=lambda: ""):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not in {seconds} s: {about()}"
        time.sleep(0.03)


def picture(height=96, width=128, seed=0):
    """Random blobs, (height, width, 3) uint8: structure for a network to answer to."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return np.kron(small, np.ones((8, 8, 1), np.uint8))[:height, :width]


def encode(pixels, driver="GTiff", **profile):
    """A picture file as bytes."""
    pixels = np.atleast_3d(pixels)
    height, width, count = pixels.shape
    size = {"height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with unplaced_is_fine(), rasterio.MemoryFile() as memory:
        with memory.open(driver=driver, **{**size, **profile}) as dataset:
            dataset.write(np.moveaxis(pixels, -1, 0))
        return memory.read()


@contextmanager
def unplaced_is_fine():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


PLACE = {"crs": "EPSG:32633", "transform": Affine(0.3, 0, 500_000, 0, -0.3, 5_300_000)}


def scene(height=96, width=128, seed=0, **profile):
    """A georeferenced GeoTIFF as bytes."""
    return encode(picture(height, width, seed), **{**PLACE, **profile})


def decode(data):
    """Pixels (H, W) or (H, W, bands) and the profile of a picture file."""
    with unplaced_is_fine(), rasterio.open(io.BytesIO(data)) as dataset:
        pixels = np.moveaxis(dataset.read(), 0, -1)
        return (pixels[..., 0] if dataset.count == 1 else pixels), dataset.profile


def problem(answer, status):
    """The sentence of an error answer, after checking its form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status and body["title"] and body["type"] == "about:blank"
    assert body["request_id"] == answer.headers["X-Request-ID"]
    for secret in ("Traceback", "/tmp", "/root", "/home", "site-packages", "scratch"):
        assert secret not in answer.text
    return body["detail"]
