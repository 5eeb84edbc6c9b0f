"""The mask service beside FastAPI and ONNX Runtime: masks a CPU second at 256 x 256 pixels.

    python -m benchmarks.api_beside [--seconds 15]

Both get the same weights, the same uploads and as many threads as there are cores, one after
the other. CPU time is that of the server's processes, so other work on the machine counts little.
The rival does the least that gives a mask: it decodes, runs the session, and encodes a GeoTIFF.
Needs the extras `api`, `onnx` and `bench`, and onnxruntime.
"""

import argparse
import io
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
import requests

from segment.export import onnx_model
from segment.model import load_model

RIVAL = """
import io, os
import numpy as np, onnxruntime, rasterio
from fastapi import FastAPI, File, Response

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = os.cpu_count()
session = onnxruntime.InferenceSession(os.environ["ONNX"], options, ["CPUExecutionProvider"])
name = session.get_inputs()[0].name
app = FastAPI()

@app.get("/readyz")
def ready():
    return {}

@app.post("/buildings_mask/")
def mask(file: bytes = File()):
    with rasterio.open(io.BytesIO(file)) as dataset:
        pixels = np.moveaxis(dataset.read(), 0, -1)[None]
    found = np.asarray(session.run(None, {name: pixels})[0]).reshape(pixels.shape[1:3])
    with rasterio.MemoryFile() as memory:
        size = {"height": found.shape[0], "width": found.shape[1], "count": 1, "dtype": "uint8"}
        with memory.open(driver="GTiff", compress="deflate", **size) as out:
            out.write(np.where(found >= 0.5, 255, 0).astype(np.uint8), 1)
        return Response(memory.read(), media_type="image/tiff")
"""


def pictures() -> Iterator[bytes]:
    """PNGs that all differ: nothing can be kept."""
    for seed in itertools.count():
        small = np.random.default_rng(seed).integers(0, 256, (3, 32, 32), np.uint8)
        pixels = np.kron(small, np.ones((1, 8, 8), np.uint8))
        with rasterio.MemoryFile() as memory:
            with memory.open(driver="PNG", height=256, width=256, count=3, dtype="uint8") as out:
                out.write(pixels)
            yield memory.read()


@contextmanager
def served(command: list[str], folder: Path, port: int, **more: str) -> Iterator[int]:
    """A server in a process group of its own; its process id."""
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, **more}, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        for _ in range(600):
            try:
                if requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5).ok:
                    break
            except requests.ConnectionError:
                time.sleep(0.1)
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def cpu_seconds(group: int) -> float:
    """User and system time of all processes of a group."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def rate(port: int, group: int, seconds: float, scenes: list[bytes]) -> tuple[float, float]:
    """Masks a CPU second and masks a second, four clients asking one after the other."""
    todo, lock, done = iter(scenes), threading.Lock(), []

    def client() -> None:
        with requests.Session() as session:
            while time.monotonic() < end:
                with lock:
                    scene = next(todo)
                files = {"file": ("a.png", io.BytesIO(scene), "image/png")}
                address = f"http://127.0.0.1:{port}/buildings_mask/"
                session.post(address, files=files, timeout=60).raise_for_status()
                done.append(1)

    for phase in (seconds / 5, seconds):  # the first settles what is made at the first request
        done.clear()
        start, before = time.monotonic(), cpu_seconds(group)
        end = start + phase
        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return len(done) / (cpu_seconds(group) - before), len(done) / (time.monotonic() - start)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15)
    seconds = parser.parse_args().seconds
    scenes = list(itertools.islice(pictures(), int(100 * seconds)))
    repository = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rival.py").write_text(RIVAL)
        (folder / "model.onnx").write_bytes(onnx_model(load_model(None)).SerializeToString())
        port = free_port()
        ours = [str(Path(sys.executable).with_name("gunicorn")), "-c", "docker/gunicorn.conf.py"]
        bind = {"MINICNN_BIND": f"127.0.0.1:{port}", "MINICNN_STORE": str(folder / "store")}
        with served(ours, repository, port, **bind) as group:
            print("ours          {:6.2f} a CPU second {:6.2f} a second".format(
                *rate(port, group, seconds, scenes)), flush=True)  # fmt: skip
        port = free_port()
        rival = [sys.executable, "-m", "uvicorn", "rival:app", "--port", str(port)]
        with served(rival, folder, port, ONNX=str(folder / "model.onnx")) as group:
            print("FastAPI, ORT  {:6.2f} a CPU second {:6.2f} a second".format(
                *rate(port, group, seconds, scenes)), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
