"""The service with its store under an S3 prefix: real gunicorn, real HTTP, several hosts."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from buckets import refusal
from serving import Server, decode, problem, scene, wait_for

from api.settings import Settings
from api.store.items import S3Store
from segment.predict.scene import predict_scene

ASYNC = {"Prefer": "respond-async"}


@pytest.fixture
def prefix(bucket):
    return bucket / "service"


@pytest.fixture
def host(prefix, model_file, tmp_path):
    """`with host("a")`: a server as on a machine of that name, with a disk of its own."""

    @contextmanager
    def start(name, **settings):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        server = Server(folder / "scratch", model_file, SCRATCH=folder / "scratch", **settings)
        server.environment["MINICNN_STORE"] = str(prefix)
        with server:
            yield server

    return start


def test_items_live_in_the_bucket(host, prefix, model, tmp_path):
    """Put on one host; read, changed and removed on another one whose disk is empty."""
    data = scene()
    with host("a") as a, host("b") as b:
        put = a.put("/items/graz", data)
        assert put.status_code == 201
        assert b.get("/items/graz").headers["ETag"] == put.headers["ETag"]
        assert b.get("/items/graz/image").content == data
        part = b.get("/items/graz/image", headers={"Range": "bytes=4-7"})
        assert part.status_code == 206 and part.content == data[4:8]
        (tmp_path / "s.tif").write_bytes(data)
        mask = decode(b.get("/items/graz/mask").content)[0]
        assert np.array_equal(mask, predict_scene(model, tmp_path / "s.tif")[0])
        assert [path.name for path in (prefix / "items").iterdir()] == ["graz.json"]

        body = {"type": "Feature", "id": "graz", "properties": {"title": "Graz"}}
        stale = {"If-Match": '"0"'}
        problem(b.put("/items/graz", None, "application/json", stale, json=body), 412)
        fresh = {"If-Match": put.headers["ETag"]}
        assert b.put("/items/graz", None, "application/json", fresh, json=body).ok
        assert a.get("/items/graz").json()["properties"]["title"] == "Graz"
        problem(a.put("/items/graz", data, headers=fresh), 412)
        problem(a.put("/items/graz", data, headers={"If-None-Match": "*"}), 412)
        assert a.put("/items/graz", scene(seed=2)).status_code == 200
        assert b.get("/items/graz/image").content == scene(seed=2)
        assert b.get("/items").json()["numberMatched"] == 1
        assert len(list((prefix / "scenes").iterdir())) == 1  # the old one is gone
        assert b.delete("/items/graz").status_code == 204
        problem(a.get("/items/graz"), 404)
        problem(a.delete("/items/graz"), 404)
        assert not prefix.exists() or not list((prefix / "scenes").iterdir())


@pytest.mark.slow
def test_two_hosts_put_one_id(host, prefix):
    """Both get a valid answer, one was first, one version is left, whole, and nothing beside."""
    with host("a") as a, host("b") as b, ThreadPoolExecutor(2) as pool:
        for attempt in range(4):
            for headers, expected in (({}, [200, 201]), ({"If-None-Match": "*"}, [201, 412])):
                path = f"/items/race{attempt}{len(headers)}"
                asked = {
                    seed: pool.submit(server.put, path, scene(seed=seed), headers=headers)
                    for seed, server in ((1, a), (2, b))
                }
                answers = {seed: future.result() for seed, future in asked.items()}
                assert sorted(x.status_code for x in answers.values()) == expected
                etag = a.get(path).headers["ETag"]
                (winner,) = [s for s, x in answers.items() if x.headers.get("ETag") == etag]
                assert b.get(f"{path}/image").content == scene(seed=winner)
        assert len(list((prefix / "scenes").iterdir())) == len(list((prefix / "items").iterdir()))


def test_a_bucket_that_fails_is_503_and_loses_nothing(host, faults):
    with host("a") as server:
        assert server.put("/items/kept", scene()).status_code == 201
        faults.script = [refusal(503, "SlowDown")] * 2
        assert server.put("/items/kept2", scene()).status_code == 201
        faults.cut()
        faults.always = refusal(400, "ExpiredToken")
        answer = server.put("/items/kept", scene(seed=2))
        assert "store" in problem(answer, 503) and answer.headers["Retry-After"]
        problem(server.get("/items/kept"), 503)
        assert server.mask(scene()).ok  # needs no store
        faults.always = None
        assert server.get("/items/kept/image").content == scene()


def finished(server, job):
    state = server.get(job).json()
    assert state["status"] != "failed", state
    return state["status"] == "successful"


def test_a_job_is_seen_by_all_hosts_and_its_result_is_computed_once(host, prefix):
    with host("a") as a, host("b") as b:
        job = a.mask(scene(300, 200), "roof.tif", headers=ASYNC).headers["Location"]
        wait_for(lambda: finished(b, job), 60)
        assert b.get(f"{job}/result").content == a.get(f"{job}/result").content
        figures = b.get(f"{job}/result", params={"response_type": "json"}).json()
        assert figures["seconds"]["network"] < 1  # fetched, not computed
        assert len(list((prefix / "predictions").iterdir())) == 1
        assert b.delete(job).status_code == 204
        problem(b.get(job), 404)
        assert not list((prefix / "jobs").glob("*.json")) + list((prefix / "jobs").glob("*/*"))
    shutil.rmtree(a.store)
    with host("a") as a:
        problem(a.get(job), 404)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("bucket", ["seaweedfs"], indirect=True)  # it waits for 90 s
def test_a_lost_host_loses_no_job(host, tmp_path):
    """kill -9 of a whole host in the middle of a job, its disk gone: another one goes on."""
    with host("a") as a:
        job = a.mask(scene(2600, 2600, compress="deflate"), headers=ASYNC).headers["Location"]
        wait_for(lambda: a.get(job).json()["progress"] > 5, 60)
    shutil.rmtree(tmp_path / "a")
    with host("b") as b:
        assert b.get(job).json()["status"] == "running"
        wait_for(lambda: finished(b, job), 300)
        assert decode(b.get(f"{job}/result").content)[0].shape == (2600, 2600)


def test_scenes_that_no_item_names_are_swept(prefix, tmp_path, monkeypatch):
    store = S3Store(Settings(store=prefix, scratch=tmp_path))
    for item in ("a", "b"):
        (prefix / "scenes" / f"{item}~1").write(b"1")
    held = {"item": {}, "scene": "a~1", "sha256": "", "media_type": "image/tiff"}
    (prefix / "items" / "a.json").write(json.dumps(held).encode())
    (prefix / "scenes" / "a~2").write(b"2")
    store.sweep()  # they may belong to a write that is under way
    assert len(list((prefix / "scenes").iterdir())) == 3
    monkeypatch.setattr("api.store.items.ORPHAN_SECONDS", -60)
    store.sweep()
    assert [path.name for path in (prefix / "scenes").iterdir()] == ["a~1"]


@pytest.mark.slow
def test_the_store_has_a_limit(host):
    with host("a", STORE_MB=0.05) as server:
        assert server.put("/items/a", scene()).ok
        assert "full" in problem(server.put("/items/b", scene(200, 200)), 507)


@pytest.mark.slow
def test_the_model_may_be_in_the_bucket(host, bucket, model_file):
    (bucket / "runs/mine/best.safetensors").upload(model_file)
    with host("a", MODEL=bucket / "runs/mine") as server:
        figures = server.mask(scene(), query={"response_type": "json"}).json()
        assert figures["model"]["id"].startswith("best-")
