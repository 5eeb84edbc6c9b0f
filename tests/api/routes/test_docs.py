"""docs/api.md: every example runs as it stands there, every setting is in its table."""

import json
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from serving import REPO, scene

from api.routes.spec import ITEM_ID
from api.settings import Settings
from api.work.products import KINDS

TEXT = (REPO / "docs" / "api.md").read_text()
CURLS = [line.strip() for line in TEXT.splitlines() if line.startswith("    curl")]


def code(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def here(tmp_path):
    for name in ("austin8_up_right.tif", "scene.tif"):
        (tmp_path / name).write_bytes(scene(200, 200))
    return tmp_path


def run(command, server, here):
    command = [part.replace("http://localhost:8000", server.url) for part in command]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl(server, here, program):
    program("curl")
    assert len(CURLS) == 4
    for line in CURLS:
        out = run(["sh", "-c", line.replace("curl", "curl -sSf", 1)], server, here)
    assert json.loads(out)["type"] == "FeatureCollection"
    assert (here / "mask.tif").read_bytes().startswith(b"II*\0")


@pytest.mark.parametrize("example", code("python"))
def test_python(server, here, example):
    example = example.replace("http://localhost:8000", server.url)
    run([sys.executable, "-c", example], server, here)


@pytest.mark.parametrize("example", code("javascript"))
def test_javascript(server, here, example, program):
    (here / "example.mjs").write_text(example.replace("http://localhost:8000", server.url))
    assert "buildings on" in run([program("node"), "example.mjs"], server, here)


def test_the_tables_are_complete():
    settings = {f"MINICNN_{field.name.upper()}" for field in fields(Settings)}
    run_by = {"BIND", "WORKERS", "WORKER_THREADS", "NUM_THREADS"}
    told = dict(re.findall(r"^\| `(MINICNN_\w+)` \| (.*?) \|", TEXT, re.MULTILINE))
    assert set(told) == settings | {f"MINICNN_{name}" for name in run_by}
    for field in fields(Settings):
        if isinstance(field.default, int | float) and field.default:
            assert told[f"MINICNN_{field.name.upper()}"] == f"{field.default:g}"
    for kind, (media_type, *_) in KINDS.items():
        assert re.search(rf"^\| `{kind}` \|.*`{re.escape(media_type)}` \|$", TEXT, re.MULTILINE)
    assert ITEM_ID.strip("^$") in TEXT
