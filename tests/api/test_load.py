"""Under load: no error but back-pressure, and memory that stays where it was."""

import importlib.util

import pytest
import rasterio
import serving
from serving import REPO, picture, problem, scene, unplaced_is_fine, wait_for

spec = importlib.util.spec_from_file_location("api_load", REPO / "benchmarks" / "api_load.py")
api_load = importlib.util.module_from_spec(spec)
spec.loader.exec_module(api_load)


def memory(server, peak=False):
    return sum(serving.memory(server, peak))


def settle(server, load, requests):
    """Requests until memory stays: a worker transforms the weights for its first prediction."""
    for _ in range(10):
        before = memory(server)
        load.run(clients=8, requests=requests)
        if memory(server) < before + 2e6:
            break


def test_memory_is_flat(new_server, long=False):
    """150 requests, 2,000 in the slow test, once the workers have settled."""
    with new_server(QUEUE=40) as server:
        load = api_load.Load(server.url, scene(64, 64), fresh=True)
        settle(server, load, 200 if long else 60)
        before = memory(server)
        load.run(clients=8, requests=2000 if long else 150)
        assert load.codes == {200: 2000 if long else 150}
        assert memory(server) < before + 20e6
        assert not list((server.store / "scratch").iterdir())


def test_uploads_go_to_the_disk_not_to_memory(new_server):
    with new_server(WORKERS=1) as server:
        assert server.mask(scene()).ok
        before, body = memory(server, peak=True), bytes(150_000_000)
        problem(server.mask(body), 422)
        problem(server.put("/items/a", body), 422)
        assert memory(server, peak=True) < before + 30e6


@pytest.mark.slow
def test_memory_is_flat_over_2000_requests(new_server):
    test_memory_is_flat(new_server, long=True)


@pytest.mark.slow
def test_memory_does_not_grow_with_a_scenes_height(new_server, tmp_path):
    """What docs/api.md states: a worker's memory is bounded by a scene's width."""
    peaks = []
    for height in (2048, 8192):
        path = tmp_path / f"{height}.tif"
        size = {"height": height, "width": 4096, "count": 3, "dtype": "uint8"}
        form = {"tiled": True, "compress": "deflate", "zlevel": 1}
        with unplaced_is_fine(), rasterio.open(path, "w", driver="GTiff", **size, **form) as to:
            for row in range(0, height, 256):
                window = rasterio.windows.Window(0, row, 4096, 256)
                to.write(picture(256, 4096, row).transpose(2, 0, 1), window=window)
        with new_server(WORKERS=1) as server:
            assert server.mask(path.read_bytes(), timeout=200).ok
            wait_for(server.is_ready, 5)
            peaks.append(memory(server, peak=True))
    assert peaks[1] < peaks[0] + 80e6, peaks  # GDAL's cache of blocks fills up to 64 MB
