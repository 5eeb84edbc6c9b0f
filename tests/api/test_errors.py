"""What the service refuses and how it says so."""

import json
import subprocess
import sys
from pathlib import Path

import requests
from serving import problem, scene

ROOT = Path(__file__).parents[2]


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


def test_a_warning_is_a_line_of_the_log_as_any_other():
    code = """
import logging.config, runpy, warnings
settings = runpy.run_path("docker/gunicorn.conf.py")
logging.config.dictConfig(settings["logconfig_dict"])
warnings.warn("the roof leaks")
"""
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = map(json.loads, done.stderr.splitlines())
    assert "the roof leaks" in line["message"] and line["level"] == "warning"
