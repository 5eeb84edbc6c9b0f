"""What bounds the service: sizes, places, time; and what it tells of itself."""

import concurrent.futures
import os
import time

import pytest
import requests
from serving import encode, picture, problem, scene

from api.gate import Places
from api.routes.spec import SPEC


def test_health_and_metrics_add_up_over_workers(new_server):
    with new_server(WORKERS=3) as server:
        assert server.get("/healthz").json() == {"status": "alive"}
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            assert all(pool.map(lambda _: server.get("/items").ok, range(60)))
        text = server.get("/metrics").text
        assert 'minicnn_requests_total{method="GET",route="/items",status="200"} 60.0' in text
        assert "minicnn_waiting 0.0" in text and "minicnn_slots_taken 0.0" in text
        assert "minicnn_cache_bytes 0.0" in text
        assert "minicnn_requests_under_way 1.0" in text  # this very request


def test_uploads_have_a_limit(new_server):
    with new_server(UPLOAD_MB=1) as server:
        big = encode(picture(700, 700), "GTiff")
        assert len(big) > 1e6
        assert "larger" in problem(server.mask(big), 413)
        assert "larger" in problem(server.put("/items/a", big), 413)

        def chunks():  # no Content-Length: counted as it comes
            for start in range(0, len(big), 1 << 16):
                yield big[start : start + 1 << 16] or b"x" * 65536

        problem(server.put("/items/a", chunks()), 413)
        assert server.mask(scene()).ok
        assert not list((server.store / "scratch").iterdir())


def test_a_full_store_says_so(new_server):
    with new_server(STORE_MB=0.05) as server:
        assert server.put("/items/a", scene()).status_code == 201
        problem(server.put("/items/b", scene()), 507)
        assert server.delete("/items/a").status_code == 204
        assert server.put("/items/b", scene()).status_code == 201


def test_back_pressure(new_server):
    """Beyond the queue: 503 at once, with Retry-After; health answers throughout."""
    with new_server(SLOTS=1, QUEUE=2) as server:
        data = [scene(700, 700, seed=n, compress="deflate") for n in range(12)]
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(server.mask, one) for one in data]
            time.sleep(0.3)
            start = time.monotonic()
            assert server.get("/healthz").ok and time.monotonic() - start < 2
            answers = [future.result() for future in asked]
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 503} and codes.count(200) >= 3
        for answer in answers:
            if answer.status_code == 503:
                assert "busy" in problem(answer, 503) and int(answer.headers["Retry-After"]) > 0


def test_a_worker_has_one_prediction_in_hand_and_tells_who_waits(new_server):
    """Two slots, one worker: the second waits for the first, and is seen to wait."""
    with new_server(SLOTS=2, WORKERS=1) as server:
        data = [scene(1200, 1200, seed=n, compress="deflate") for n in range(3)]
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(server.mask, one) for one in data]
            seen = set()
            while not all(future.done() for future in asked):
                lines = server.get("/metrics").text.splitlines()
                told = dict(line.rsplit(" ", 1) for line in lines if line[0] != "#")
                seen.add((told["minicnn_slots_taken"], told["minicnn_waiting"]))
            assert all(future.result().ok for future in asked)
    assert ("1.0", "2.0") in seen and "2.0" not in {slots for slots, _ in seen}, seen


def test_who_counts_places_sees_no_other_who_counts(tmp_path):
    """One place at most is held. To count is to try each lock, which others must not notice."""
    places = Places(tmp_path, "slot", 2)
    counts, end = [], time.monotonic() + 1

    def count():
        mine = Places(tmp_path, "slot", 2)
        while time.monotonic() < end:
            counts.append(mine.taken())

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        counting = [pool.submit(count) for _ in range(2)]
        while time.monotonic() < end:
            held = places.take()
            assert held is not None  # one is always free: those who count hold none
            time.sleep(0.001)
            os.close(held)
        for future in counting:
            future.result()
    assert set(counts) == {0, 1}


def test_who_hangs_up_while_it_waits_is_not_computed(new_server):
    with new_server(WORKERS=1) as server:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            first = pool.submit(server.mask, scene(2000, 2000, compress="deflate"))
            time.sleep(0.5)
            with pytest.raises(requests.Timeout):
                server.mask(scene(300, 300, seed=8), timeout=0.5)
            assert first.result().ok
        time.sleep(0.5)
        assert len(list((server.store / "cache").glob("[!.]*"))) == 1


def test_requests_time_out(new_server):
    with new_server(TIMEOUT=0.2) as server:
        answer = server.mask(scene(1500, 1500, compress="deflate"))
        assert "respond-async" in problem(answer, 503)
        assert server.get("/healthz").ok
        assert not list((server.store / "scratch").iterdir())


def test_the_contract_names_every_route(model_file, tmp_path):
    from api import create_app

    app = create_app({"model": model_file, "store": tmp_path})
    pages = {"/", "/docs", "/docs/assets/<path:name>", "/openapi.json", "/static/<path:filename>"}
    routes = {str(rule) for rule in app.url_map.iter_rules()} - pages
    assert {route.replace("<", "{").replace(">", "}") for route in routes} == set(SPEC["paths"])
