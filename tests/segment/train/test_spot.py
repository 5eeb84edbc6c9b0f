"""A training on machines that are taken away: SIGTERM at any moment, and the next machine goes on
from the bucket alone, to the very bits of a run that nobody disturbed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minicnn.checkpoint import load
from segment.synthetic.scenes import write_scenes

ROOT = Path(__file__).parents[3]
NARROW = """
import functools, sys
from segment import cli
from segment.train import command
command.UNet = functools.partial(command.UNet, widths=(4, 4, 8), kernel=2)
cli.run(command.main)
"""
TERMINATED = 143


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, cities=("ashford", "birkdale"), scenes_per_city=4, size=256)
    return folder


@pytest.fixture
def machine(data, tmp_path):
    """Start a training on a machine of its own: an empty folder to work in, an empty cache, no
    temporary files but its own."""
    count = iter(range(100))

    def start(out, *options):
        home = tmp_path / f"machine{next(count)}"
        (home / "tmp").mkdir(parents=True)
        command = [sys.executable, "-u", "-c", NARROW, "--data", data, "--cache", home / "cache"]
        command += ["--out", out, "--epochs", "4", "--batch-size", "2", *options]
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=home,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(home / "tmp")},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start


def finish(process):
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def fetched(folder, name, to):
    (folder / name).download(to / name)
    return load(to / name)[0]


def test_taken_away_at_random_moments_it_ends_in_the_same_bits(machine, bucket, tmp_path):
    code, _, err = finish(machine(bucket / "whole"))
    assert code == 0, err
    rng, codes = random.Random(), []
    for _ in range(3):
        process = machine(bucket / "run", "--resume")
        while "tiles" not in (line := process.stdout.readline()):
            assert line, process.communicate()
        time.sleep(rng.uniform(0, 0.7))
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
        codes.append(code)
        assert code in (0, TERMINATED), err
        if code == TERMINATED and "saved" in err:
            assert f"--out {bucket / 'run'} --resume" in err and err.count("\n") == 1
            fetched(bucket / "run", "last.safetensors", tmp_path)
    assert TERMINATED in codes
    code, _, err = finish(machine(bucket / "run", "--resume"))
    assert code == 0, err
    for name in ("last.safetensors", "best.safetensors"):
        ours, whole = (fetched(bucket / run, name, tmp_path) for run in ("run", "whole"))
        assert ours.keys() == whole.keys()
        for key in ours:
            assert ours[key].tobytes() == whole[key].tobytes(), key
    names = {path.name for path in (bucket / "run").iterdir()}
    assert names == {path.name for path in (bucket / "whole").iterdir()}


def test_without_a_checkpoint_the_next_machine_starts_afresh(machine, bucket):
    """Taken away before the first batch, there is nothing to go on from, and that is said."""
    process = machine(bucket / "run", "--resume", "--epochs", "1")
    process.send_signal(signal.SIGTERM)
    code, _, _ = finish(process)
    assert code in (TERMINATED, -signal.SIGTERM)  # the second, before Python has come to our code
    code, out, err = finish(machine(bucket / "run", "--resume", "--epochs", "1"))
    assert code == 0 and "starting afresh" in out, err


def test_a_checkpoint_that_cannot_be_put_into_the_bucket_is_kept_and_said(machine, bucket, faults):
    process = machine(bucket / "run", "--resume", "--epochs", "100")
    while not (line := process.stdout.readline()).startswith("epoch "):
        assert line, process.communicate()
    faults.always = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    faults.cut()
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 2 and "the run is kept in" in err, err
    kept = Path(err.split("the run is kept in ")[-1].strip())
    load(kept / "last.safetensors")
