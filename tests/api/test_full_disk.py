"""A disk that is really full: what is refused, what goes on, and what is there afterwards."""

import errno
import subprocess

import numpy as np
import pytest
from serving import decode, problem, scene, wait_for

from segment.predict.scene import predict_scene

ASYNC = {"Prefer": "respond-async"}


@pytest.fixture
def small_disk(new_server):
    """A service on a disk of 24 MB."""
    told = subprocess.run(["unshare", "-rm", "true"], capture_output=True, text=True)
    if told.returncode:
        pytest.skip(f"no disk of its own can be mounted here: {told.stderr.strip()}")
    with new_server(disk=24_000_000) as server:
        yield server


def fill(path):
    with pytest.raises(OSError) as raised, path.open("wb", buffering=0) as file:
        while True:
            if file.write(bytes(1 << 16)) < 1 << 16:
                file.write(bytes(1 << 16))
    assert raised.value.errno == errno.ENOSPC


def test_nothing_accepted_is_lost(small_disk, model, tmp_path):
    server, ballast = small_disk, small_disk.inside("ballast")
    (tmp_path / "large.tif").write_bytes(scene(1600, 1600, compress="deflate"))
    expected, _ = predict_scene(model, tmp_path / "large.tif")
    assert server.put("/items/kept", scene()).status_code == 201
    assert server.get("/items/kept/mask").ok
    job = server.mask((tmp_path / "large.tif").read_bytes(), headers=ASYNC).headers["Location"]
    wait_for(lambda: server.get(job).json()["progress"] > 5, 30)
    fill(ballast)

    assert server.get("/healthz").ok
    assert "full" in problem(server.get("/readyz"), 503)
    assert server.get("/items/kept/image").content == scene()
    large = scene(700, 700, seed=4)  # more than a request holds in memory
    # The server itself says so, before there is a request with an id.
    assert server.mask(large).status_code == server.put("/items/new", large).status_code == 507
    problem(server.put("/items/new", scene(seed=3)), 507)
    problem(server.put("/items/kept", scene(seed=3)), 507)
    wait_for(lambda: "disk is full" in server.log.read_text(), 60)
    assert server.get(job).json()["status"] in ("accepted", "running")

    ballast.unlink()
    wait_for(lambda: server.get(job).json()["status"] == "successful", 60)
    assert np.array_equal(decode(server.get(f"{job}/result").content)[0], expected)
    assert server.get("/items/kept/image").content == scene()
    problem(server.get("/items/new"), 404)
    assert server.put("/items/new", scene(seed=3)).status_code == 201
    assert not list(server.inside("scratch").iterdir())
    for folder in ("items", "jobs", "cache"):
        assert not [p for p in server.inside(folder).iterdir() if p.name.startswith(".")]
    assert len(list(server.inside("scenes").iterdir())) == 2
