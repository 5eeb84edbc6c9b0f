"""Jobs: accepted work is done, whoever is killed meanwhile; and so are stored scenes kept."""

import errno
import os
import signal
import threading
import time

import numpy as np
import pytest
import requests
from serving import decode, problem, scene, wait_for
from skimage.measure import label

from api.gate import lock
from api.service import build
from api.settings import Settings
from api.uploads import Look, Source
from segment.geo.footprints import polygons
from segment.plots import tinted
from segment.predict.scene import predict_scene

ASYNC = {"Prefer": "respond-async"}


def finished(server, path):
    state = server.get(path).json()
    assert state["status"] != "failed", state
    return state["status"] == "successful"


@pytest.fixture(scope="module")
def large():
    """A scene that takes the small network some seconds."""
    return scene(1600, 1600, compress="deflate")


def test_a_job_from_start_to_end(server, model, tmp_path):
    answer = server.mask(scene(300, 200), "a/b\\roof.tif", headers=ASYNC)
    assert answer.status_code == 202 and answer.headers["Preference-Applied"] == "respond-async"
    job = answer.headers["Location"]
    assert answer.json()["id"] == job.rsplit("/", 1)[1]
    wait_for(lambda: finished(server, job), 30)
    state = server.get(job).json()
    assert state["progress"] == 100
    (results,) = [link["href"] for link in state["links"] if link["rel"] == "results"]
    path = tmp_path / "scene.tif"
    path.write_bytes(scene(300, 200))
    for threshold in (0.3, 0.6):
        mask = server.get(results, params={"threshold": threshold})
        assert np.array_equal(decode(mask.content)[0], predict_scene(model, path, threshold)[0])
        assert "roof_mask.tif" in mask.headers["Content-Disposition"]
    assert server.delete(job).status_code == 204
    problem(server.get(job), 404)
    problem(server.get(results), 404)


def test_jobs_of_items(server):
    answer = server.put("/items/later", scene(200, 300), headers=ASYNC)
    assert answer.status_code == 202 and answer.headers["ETag"]
    wait_for(lambda: finished(server, answer.headers["Location"]), 30)
    ready = server.get("/items/later/mask", headers=ASYNC)  # no need to wait: it's there
    assert ready.status_code == 200
    other = server.get("/items/later/mask", params={"pixel_size": 0.5}, headers=ASYNC)
    assert other.status_code == 202
    same = server.get("/items/later/mask", params={"pixel_size": 0.5}, headers=ASYNC)
    assert same.status_code in (200, 202)
    if same.status_code == 202:
        assert same.headers["Location"] == other.headers["Location"]
    server.delete("/items/later")


def test_a_job_that_cannot_be_done_says_why(server):
    data = bytearray(scene(640, 64, seed=1, compress="deflate", blockysize=64))
    middle = len(data) // 2  # its first and its last pixel are sound
    data[middle : middle + 400] = b"\xff" * 400
    answer = server.mask(bytes(data), "torn.tif", headers=ASYNC)
    job = answer.headers["Location"]
    wait_for(lambda: server.get(job).json()["status"] == "failed", 30)
    assert "torn.tif" in server.get(job).json()["message"]
    assert "torn.tif" in problem(server.get(f"{job}/result"), 409)


def test_a_killed_worker_loses_no_job_and_no_item(new_server, large):
    """kill -9 of all workers while one computes: another one takes the job over."""
    with new_server() as server:
        assert server.put("/items/kept", scene()).status_code == 201
        job = server.mask(large, headers=ASYNC).headers["Location"]
        wait_for(lambda: server.get(job).json()["progress"] > 5, 30)
        assert "Retry-After" in server.get(f"{job}/result").headers
        for worker in server.workers():
            os.kill(worker, signal.SIGKILL)
        wait_for(server.is_ready, 20)
        wait_for(lambda: finished(server, job), 60)
        assert server.get("/items/kept/image").content == scene()
        assert server.get(f"{job}/result").ok


def test_a_worker_killed_mid_request(new_server, large, model, tmp_path):
    """Its client sees a closed connection; the service answers on, and nothing is half there."""
    (tmp_path / "large.tif").write_bytes(large)
    expected, _ = predict_scene(model, tmp_path / "large.tif")
    with new_server(WORKERS=2) as server:
        seen = []

        def ask():
            try:
                seen.append(server.mask(large).status_code)
            except requests.ConnectionError:
                seen.append("closed")

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: list((server.store / "cache").iterdir()), 20)
        for worker in server.workers():
            os.kill(worker, signal.SIGKILL)
        thread.join(30)
        assert seen == ["closed"]
        wait_for(server.is_ready, 20)
        assert server.put("/items/a", scene()).status_code == 201
        assert np.array_equal(decode(server.mask(large).content)[0], expected)


def test_the_master_killed_mid_job(new_server, large):
    """kill -9 of the master: the workers end, and the next start goes on where it was."""
    with new_server() as server:
        server.put("/items/kept", scene())
        job = server.mask(large, headers=ASYNC).headers["Location"]
        wait_for(lambda: server.get(job).json()["progress"] > 5, 30)
        workers = server.workers()
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), 30)
        server.__enter__()
        wait_for(lambda: finished(server, job), 60)
        assert server.get(f"{job}/result").ok
        assert server.get("/items/kept/image").content == scene()
        assert server.put("/items/kept", scene(seed=2)).status_code == 200


def test_a_graceful_stop_finishes_the_request_in_flight(new_server, large):
    seen = []
    with new_server() as server:
        thread = threading.Thread(target=lambda: seen.append(server.mask(large)))
        thread.start()
        wait_for(lambda: list((server.store / "cache").iterdir()), 20)
        server.stop()
    thread.join(30)
    assert seen[0].status_code == 200 and decode(seen[0].content)[0].shape == (1600, 1600)


def test_a_stopped_server_puts_its_job_down(new_server, large):
    """A graceful stop doesn't count as an attempt, and doesn't wait for the job."""
    with new_server() as server:
        job = server.mask(large, headers=ASYNC).headers["Location"]
        wait_for(lambda: server.get(job).json()["progress"] > 5, 30)
        server.stop()
    state = (server.store / job.lstrip("/") / "state.json").read_text()
    assert '"status": "accepted"' in state and '"attempts": 0' in state
    with server:
        wait_for(lambda: finished(server, job), 60)


def test_a_large_job_lets_requests_go_first(new_server):
    """One slot: the job makes way between its windows, and comes to its end."""
    with new_server(SLOTS=1) as server:
        high = scene(6000, 500, compress="deflate")  # 13 windows
        job = server.mask(high, headers=ASYNC).headers["Location"]
        wait_for(lambda: server.get(job).json()["progress"] > 2, 30)
        assert server.mask(scene(64, 64)).ok
        state = server.get(job).json()
        assert state["status"] == "running" and state["progress"] < 90
        wait_for(lambda: finished(server, job), 60)


def test_nothing_is_computed_for_who_has_hung_up(new_server, large):
    with new_server(SLOTS=1) as server:
        with pytest.raises(requests.Timeout):
            server.mask(large, timeout=0.3)
        assert server.mask(scene(64, 64)).ok
        wait_for(lambda: not list((server.store / "scratch").iterdir()), 10)
        assert len(list((server.store / "cache").glob("[!.]*"))) == 1  # of the small one
        hung_up = [line for line in server.lines() if line.get("status") == 503]
        assert len(hung_up) == 1


def test_a_kill_while_a_job_waits_is_not_its_fault(model_file, tmp_path):
    """Whatever has the slot meanwhile, or kills the workers: only begun work counts."""
    jobs, source = parts(model_file, tmp_path)
    jobs.add("a" * 32, source, Look())
    with lock(jobs.predictor.gate.slots.files[0]):  # held by somebody else
        for _ in range(5):
            thread = threading.Thread(target=jobs.run_waiting)
            thread.start()
            time.sleep(0.1)
            jobs._stop.set()  # what a graceful stop does; a kill writes even less
            thread.join(5)
            jobs._stop.clear()
            assert jobs.get("a" * 32)["attempts"] == 0
    jobs.run_waiting()
    assert jobs.get("a" * 32)["status"] == "successful"


def test_a_disk_that_is_full_for_a_moment_loses_no_job(model_file, tmp_path, monkeypatch):
    jobs, source = parts(model_file, tmp_path)
    jobs.add("a" * 32, source, Look())
    whole, full = jobs.predictor._compute, [True]

    def compute(*arguments):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(*arguments)

    monkeypatch.setattr(jobs.predictor, "_compute", compute)
    monkeypatch.setattr("api.work.job_queue.REST", 0)
    for _ in range(5):
        jobs.run_waiting()
        state = jobs.get("a" * 32)
        assert state["status"] == "accepted" and state["attempts"] == 0
        assert "disk" in state["message"]
    full.clear()
    jobs.run_waiting()
    assert jobs.get("a" * 32)["status"] == "successful"


def parts(model_file, tmp_path):
    """The queue of a service without its server, and a scene."""
    settings = {"model": model_file, "store": tmp_path / "store", "slots": 1}
    jobs = build(Settings.load(settings)).jobs
    (tmp_path / "scene.tif").write_bytes(scene())
    return jobs, Source(tmp_path / "scene.tif", "scene.tif", "0" * 64)


def test_a_result_as_a_person_corrected_it(server, model, tmp_path):
    """One building removed, one drawn, beside an independent labelling; in every product."""
    path = tmp_path / "scene.tif"
    path.write_bytes(scene(120, 100))
    mask, profile = predict_scene(model, path)
    labels = label(mask, connectivity=1)
    largest = np.argmax(np.bincount(labels[labels > 0]))
    row, col = (int(places[0]) for places in np.nonzero(labels == largest))
    edits = {"remove": [[col, row]], "add": [[[10, 20], [30, 20], [30, 50.5], [10, 50.5]]]}
    expected = np.where(labels == largest, 0, mask)
    expected[20:50, 10:30] = 255
    job = server.mask(path.read_bytes(), headers=ASYNC).headers["Location"]
    wait_for(lambda: finished(server, job), 30)

    def ask(**query):
        address = f"{server.url}{job}/result"
        return requests.post(address, json=edits, params=query, timeout=30)

    assert np.array_equal(decode(ask(response_type="file").content)[0], expected)
    pixels, _ = decode(path.read_bytes())
    assert np.array_equal(decode(ask(response_type="png").content)[0], tinted(pixels, expected))
    found = polygons(expected, profile["transform"], profile["crs"])
    features = ask(response_type="geojson").json()["features"]
    assert sum(f["properties"]["area_m2"] for f in features) == pytest.approx(
        found.area_m2.sum(), rel=1e-3
    )
    assert ask(response_type="json").json()["buildings"] == len(found.outlines)
    large = decode(ask(response_type="file", min_area=40).content)[0]
    assert large[20:50, 10:30].all() and np.count_nonzero(large) < np.count_nonzero(expected)
    plain = server.get(f"{job}/result", params={"response_type": "file"})
    assert np.array_equal(decode(plain.content)[0], mask)  # nothing of it is kept
    problem(ask(response_type="photo"), 422)
    wrong = requests.post(f"{server.url}{job}/result", json={"remove": [[-1, 0]]}, timeout=30)
    assert wrong.status_code == 422
