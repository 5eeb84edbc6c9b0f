"""Who may come in: token, rate, and pages of other origins."""

import concurrent.futures
import hashlib
import time

import pytest
import requests
from serving import problem, scene

from api.access import read_keys


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


def keys_file(folder, **quotas):
    """A file of keys whose tokens are their names, and megapixels a day."""
    lines = ["# name, SHA-256 of the token, megapixels a day", ""]
    for name, megapixels in quotas.items():
        lines.append(
            f"{name} {hashlib.sha256(f'token of {name}'.encode()).hexdigest()} {megapixels}"
        )
    (folder / "keys").write_text("\n".join(lines))
    return folder / "keys"


def as_(name):
    return {"Authorization": f"Bearer token of {name}"}


def test_keys_have_quotas_in_pixels(new_server, tmp_path):
    """Counted over all workers, each key by itself; what is kept costs nothing."""
    pixels = 96 * 128
    file = keys_file(tmp_path, survey=3.5 * pixels / 1e6, museum=1)
    with new_server(KEYS=file, TOKEN="master", WORKERS=3) as server:
        problem(server.mask(scene()), 401)
        problem(server.mask(scene(), headers={"Authorization": "Bearer token of nobody"}), 401)
        problem(server.mask(scene(), headers={"Authorization": "token of survey"}), 401)
        for seed in range(3):
            assert server.mask(scene(seed=seed), headers=as_("survey")).ok
        again = {"threshold": 0.3}  # what was found is kept: it costs nothing
        assert server.mask(scene(seed=1), query=again, headers=as_("survey")).ok
        assert server.put("/items/a", scene(seed=8), headers=as_("survey")).ok
        for answer in (
            server.mask(scene(seed=4), headers=as_("survey")),
            server.get("/items/a/mask", headers=as_("survey")),
            server.mask(scene(seed=4), headers={**as_("survey"), "Prefer": "respond-async"}),
        ):
            assert "megapixels a day" in problem(answer, 429)
            assert 0 < int(answer.headers["Retry-After"]) <= 86_400
        assert server.mask(scene(seed=4), headers=as_("museum")).ok
        assert server.mask(scene(seed=5), headers={"Authorization": "Bearer master"}).ok
        told = server.get("/metrics", headers=as_("museum")).text
        assert f'minicnn_pixels_today{{key="survey"}} {3.0 * pixels}' in told
        assert "token of" not in server.log.read_text() + told


def test_at_the_same_time_nobody_gets_past_a_quota(new_server, tmp_path):
    with new_server(KEYS=keys_file(tmp_path, survey=5 * 4096 / 1e6), WORKERS=3) as server:
        data = [scene(64, 64, seed=seed) for seed in range(10)]
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            asked = pool.map(lambda one: server.mask(one, headers=as_("survey")).status_code, data)
            assert sorted(asked) == [200] * 5 + [429] * 5


def test_keys_that_cannot_be_read_are_told_at_the_start(tmp_path):
    for wrong in (
        "survey abc 5",
        "survey " + "0" * 64,
        "a " + "0" * 64 + " 1\na " + "1" * 64 + " 1",
    ):
        (tmp_path / "keys").write_text(wrong)
        read_keys.cache_clear()
        with pytest.raises(ValueError, match="NAME SHA256 MEGAPIXELS"):
            read_keys(tmp_path / "keys")
