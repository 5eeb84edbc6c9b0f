"""What the service refuses, how it says so, and what it tells of itself."""

import concurrent.futures
import time

import pytest
import requests
from serving import encode, picture, problem, scene

from api.settings import Settings
from api.spec import SPEC


def test_errors_are_problems(server):
    assert "nothing" in problem(server.get("/nowhere"), 404)
    wrong = server.get("/buildings_mask/")
    problem(wrong, 405)
    assert set(wrong.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}
    bare = requests.post(f"{server.url}/buildings_mask/", b"x", timeout=9)
    assert "multipart/form-data" in problem(bare, 415)
    for form in ({}, {"image": scene()}, {"file": (None, "text")}, {"file": b"", "more": b""}):
        files = form or {"x": (None, "")}
        problem(requests.post(f"{server.url}/buildings_mask/", files=files, timeout=9), 422)
    problem(server.get("/jobs/0123456789abcdef0123456789abcdef"), 404)
    problem(server.get("/jobs/..%2f"), 404)


def test_what_goes_wrong_here_is_told_to_the_log_alone(new_server):
    with new_server() as server:
        assert server.put("/items/a", scene()).ok
        (server.store / "items" / "a.json").write_text("no JSON")
        answer = server.get("/items/a")
        assert "request id" in problem(answer, 500)
        told = [line for line in server.lines() if line["level"] == "error"]
        assert [line["request_id"] for line in told] == [answer.json()["request_id"]]
        assert "JSONDecodeError" in str(told)


def test_every_answer_has_its_headers_and_request_id(server):
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/nowhere", "/static/app.js"):
        answer = server.get(path, headers={"X-Request-ID": "from.client-1"})
        assert answer.headers["X-Request-ID"] == "from.client-1"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in answer.headers
    forged = server.get("/healthz", headers={"X-Request-ID": 'x" evil'}).headers["X-Request-ID"]
    assert len(forged) == 16
    assert any(line.get("request_id") == "from.client-1" for line in server.lines())


def test_health_and_metrics_add_up_over_workers(new_server):
    with new_server(WORKERS=3) as server:
        assert server.get("/healthz").json() == {"status": "alive"}
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            assert all(pool.map(lambda _: server.get("/items").ok, range(60)))
        text = server.get("/metrics").text
        assert 'minicnn_requests_total{method="GET",route="/items",status="200"} 60.0' in text
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


def test_requests_time_out(new_server):
    with new_server(TIMEOUT=0.2) as server:
        answer = server.mask(scene(1500, 1500, compress="deflate"))
        assert "respond-async" in problem(answer, 503)
        assert server.get("/healthz").ok
        assert not list((server.store / "scratch").iterdir())


def test_a_token_where_one_is_set(new_server):
    with new_server(TOKEN="secret") as server:
        for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/static/app.js"):
            assert server.get(path).ok
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}):
            answer = server.mask(scene(), headers=headers)
            problem(answer, 401)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            problem(server.get("/items", headers=headers), 401)
        assert server.mask(scene(), headers={"Authorization": "Bearer secret"}).ok


def test_a_rate_per_client_over_all_workers(new_server):
    with new_server(RATE=10, WORKERS=3, PROXIES=1) as server:
        while time.time() % 60 > 50:  # the count starts anew with each minute
            time.sleep(0.5)

        def ask(_, client="203.0.113.1"):
            return server.get("/items", headers={"X-Forwarded-For": client})

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            codes = [answer.status_code for answer in pool.map(ask, range(24))]
        assert codes.count(200) == 10 and codes.count(429) == 14
        refused = ask(0)
        assert 0 < int(refused.headers["Retry-After"]) <= 60 and problem(refused, 429)
        assert ask(0, "203.0.113.2").ok


def test_other_origins_where_they_are_allowed(new_server):
    with new_server(CORS="https://a.example https://b.example") as server:
        allowed = "Access-Control-Allow-Origin"
        answer = server.get("/items", headers={"Origin": "https://b.example"})
        assert answer.headers[allowed] == "https://b.example"
        assert allowed not in server.get("/items", headers={"Origin": "https://c.example"}).headers
        headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "PUT"}
        before = requests.options(f"{server.url}/items/x", headers=headers, timeout=9)
        assert before.ok and "PUT" in before.headers["Access-Control-Allow-Methods"]


def test_settings_are_read_and_wrong_ones_named(monkeypatch):
    monkeypatch.setenv("MINICNN_QUEUE", "7")
    assert Settings.load().queue == 7
    assert Settings.load({"queue": 3}).queue == 3
    for name, value in (("QUEUE", "many"), ("QUEUE", "-1"), ("TIMEOUT", "inf"), ("SLOTS", "0")):
        monkeypatch.setenv(f"MINICNN_{name}", value)
        with pytest.raises(ValueError, match=name.lower() if value == "0" else name):
            Settings.load()
        monkeypatch.delenv(f"MINICNN_{name}")


def test_the_contract_names_every_route(model_file, tmp_path):
    from api import create_app

    app = create_app({"model": model_file, "store": tmp_path})
    pages = {"/", "/docs", "/docs/assets/<path:name>", "/openapi.json", "/static/<path:filename>"}
    routes = {str(rule) for rule in app.url_map.iter_rules()} - pages
    assert {route.replace("<", "{").replace(">", "}") for route in routes} == set(SPEC["paths"])
