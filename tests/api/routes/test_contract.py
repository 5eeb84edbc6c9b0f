"""The whole OpenAPI document against a real server, by a generator that knows nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
from serving import encode, picture, scene

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    "examples", [pytest.param(5, id="quick"), pytest.param(60, id="long", marks=pytest.mark.slow)]
)
def test_every_operation_keeps_the_contract(new_server, tmp_path, examples):
    with new_server() as server:
        for item_id in "0aA":  # what generated ids like to be
            server.put(f"/items/{item_id}", scene(32, 32))
        command = [Path(sys.executable).with_name("schemathesis")]
        command += [
            "--config-file",
            HERE / "schemathesis.toml",
            "run",
            f"{server.url}/openapi.json",
        ]
        command += ["--checks", "all", "--max-examples", str(examples), "--seed", "1"]
        command += ["--no-color"]
        run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=280)
        assert run.returncode == 0, run.stdout[-6000:]
        assert "23 selected / 23 total" in run.stdout
        codes = {line["status"] for line in server.lines() if line["message"] == "request"}
        assert not codes & {500, 507}, "a fault, or a full disk"
        assert server.mask(encode(picture(), "PNG")).ok
