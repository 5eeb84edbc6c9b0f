"""Who may come in: token, rate, and pages of other origins."""

import concurrent.futures
import time

import requests
from serving import problem, scene


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
