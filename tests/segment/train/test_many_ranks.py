"""Training on several ranks, started as a user does: by mpiexec, as real processes, killed at
real moments."""

import csv
import fcntl
import json
import os
import pty
import random
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from minicnn.checkpoint import load
from segment.synthetic.scenes import write_scenes
from segment.train import launch

ROOT = Path(__file__).parents[3]
NARROW = """
import functools, os, sys
import numpy as np
from segment import cli
from segment.train import command, ranks, trainer
from minicnn.backend import to_host
from minicnn.checkpoint import net_arrays

command.UNet = functools.partial(command.UNet, widths=(4, 4, 8), kernel=2)
trainer.SAVE_SECONDS = {save_seconds}
fit = trainer.Trainer.fit

def fit_and_tell(self):
    fit(self)
    arrays = {{name: to_host(array) for name, array in net_arrays(self.net).items()}}
    np.savez(self.run.folder / f"rank{{self.world.rank}}.npz", **arrays)

def note_and_tell(self, note=trainer.Stop.__enter__):
    note(self)
    if "PMI_SIZE" in os.environ:  # by all ranks
        from mpi4py import MPI
        MPI.COMM_WORLD.Barrier()
    print("signals are noted")
    return self

trainer.Trainer.fit, trainer.Stop.__enter__ = fit_and_tell, note_and_tell
{more}
cli.run(command.main)
"""


TELL = "os.write(2, f\"{os.environ['PMI_RANK']} {os.getpid()}\\n\".encode())"


@pytest.fixture(scope="module")
def mpiexec(oracle):
    """The launcher that comes with the library mpi4py loads."""
    oracle("mpi4py")
    return str(Path(sys.executable).with_name("mpiexec"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Scenes of one tile each, five of which are for validation: no even number; and a cache."""
    data, cache = tmp_path_factory.mktemp("scenes"), tmp_path_factory.mktemp("cache")
    write_scenes(data, cities=("ashford", "birkdale"), scenes_per_city=6, size=256)
    return data, cache


@pytest.fixture(scope="module")
def start(mpiexec, folders):
    """Start a training of a narrow net on some ranks; one rank is a process as ever."""

    def start(out, *options, ranks=2, save_seconds=300, more="", pass_fds=(), **environment):
        launcher = [mpiexec, "-n", ranks] if ranks > 1 else []
        script = NARROW.format(save_seconds=save_seconds, more=more)
        command = [*launcher, sys.executable, "-u", "-c", script, "--data", folders[0]]
        command += ["--cache", folders[1], "--out", out, "--epochs", "2", "--batch-size", "4"]
        command += ["--lr", "0.001"]  # rounding grows with every large step
        return subprocess.Popen(
            [str(part) for part in (*command, *options)],
            cwd=ROOT,
            env={**os.environ, **environment},
            pass_fds=pass_fds,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start


def finish(process, code=0):
    try:
        out, err = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        process.terminate()
        raise
    assert process.returncode == code, err
    return out, err


def begun(process):
    """Wait until the training begins, and finishes its batch when a signal comes: what it said."""
    said = []
    while "signals are noted\n" not in said:
        said.append(process.stdout.readline())
        assert said[-1], process.communicate()
    return said


def history(run):
    with (run / "history.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def same_bits(run, other):
    for name in ("last.safetensors", "best.safetensors"):
        ours, theirs = load(run / name)[0], load(other / name)[0]
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert ours[key].tobytes() == theirs[key].tobytes(), key


@pytest.fixture(scope="module")
def pair(start, tmp_path_factory):
    """An uninterrupted run on two ranks, and what it printed."""
    run = tmp_path_factory.mktemp("pair") / "run"
    return run, *finish(start(run))


def test_two_ranks_equal_one_process(start, pair, tmp_path):
    """To rounding, which Muon amplifies; the test part's counts are whole pixels."""
    run, printed, errors = pair
    finish(start(tmp_path / "one", ranks=1))
    ours, theirs = history(run), history(tmp_path / "one")
    assert len(ours) == len(theirs) == 2
    for row, other in zip(ours, theirs, strict=True):
        for name in row.keys() - {"seconds"}:
            near = {"rel": 1e-3} if name.endswith("loss") else {"abs": 2e-3}
            assert row[name] == pytest.approx(other[name], **near), name
    assert ours[0]["train_loss"] == pytest.approx(theirs[0]["train_loss"], rel=1e-5)
    arrays, others = (load(r / "last.safetensors")[0] for r in (run, tmp_path / "one"))
    for name in (name for name in arrays if name.startswith("net.")):
        np.testing.assert_allclose(arrays[name], others[name], rtol=0.02, atol=1e-3, err_msg=name)
    scores, others = (json.loads((r / "metrics.json").read_text()) for r in (run, tmp_path / "one"))
    assert scores["threshold"] == pytest.approx(others["threshold"], abs=1 / 128)
    pooled = scores["test"]["pooled"]
    assert pooled["accuracy"] == pytest.approx(others["test"]["pooled"]["accuracy"], abs=0.01)
    assert printed.count("epoch ") == 2 and printed.count("all tiles, pooled") == 1
    assert errors == ""


def assert_ranks_agree(run):
    one, other = (dict(np.load(run / f"rank{rank}.npz")) for rank in (0, 1))
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


def test_all_ranks_end_with_the_same_bits(pair):
    assert_ranks_agree(pair[0])


@pytest.mark.parametrize("whom", ["mpiexec", pytest.param("one rank", marks=pytest.mark.slow)])
def test_a_signal_stops_all_ranks_and_the_run_goes_on_from_there(start, pair, tmp_path, whom):
    number, code = (signal.SIGINT, 130) if whom == "mpiexec" else (signal.SIGTERM, 143)
    process = start(tmp_path / "run", more=TELL)
    pids = dict(process.stderr.readline().split() for _ in range(2))
    begun(process)
    time.sleep(random.uniform(0, 0.5))
    os.kill(process.pid if whom == "mpiexec" else int(pids["1"]), number)
    _, err = finish(process, code)
    assert err.count("--resume") == 1 and err.count("\n") == 1
    finish(start(tmp_path / "run", "--resume"))
    same_bits(tmp_path / "run", pair[0])


def test_a_launcher_of_another_library_is_an_error(start, tmp_path):
    """Two processes that each find themselves alone must not both train."""
    for name in ("OMPI_COMM_WORLD_SIZE", "AWS_BATCH_JOB_NUM_NODES"):
        _, err = finish(start(tmp_path / "run", ranks=1, **{name: "2"}), code=2)
        assert f"{name} is 2, but MPI knows of 1 rank" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_ranks_without_an_mpi_library_are_an_error(start, tmp_path):
    more = "sys.modules['mpi4py'] = None"
    _, err = finish(start(tmp_path / "run", ranks=1, more=more, PMI_SIZE="2"), code=2)
    assert "pip install mpi4py mpich" in err and err.count("\n") == 1


def test_a_batch_that_does_not_divide_is_an_error(start, tmp_path):
    _, err = finish(start(tmp_path / "run", "--batch-size", "3"), code=2)
    assert "3 crops can't be shared by 2 ranks" in err and err.count("\n") == 1


def test_divergence_ends_all_ranks_in_one_line(start, tmp_path):
    _, err = finish(start(tmp_path / "run", "--lr", "1e30"), code=2)
    assert "diverged" in err and err.count("\n") == 1


ALONE = """
train_step = trainer.Trainer.train_step

def fails(self, *batch):
    if self.world.rank == 1 and self.step == 1:
        {what}
    train_step(self, *batch)

ranks.GRACE = 1
trainer.Trainer.train_step = fails
"""


def test_a_rank_that_fails_alone_ends_the_job_and_says_why(start, tmp_path):
    more = ALONE.format(what="raise trainer.InputError('the disk of this node is full')")
    _, err = finish(start(tmp_path / "run", more=more), code=2)
    assert "rank 1: error: the disk of this node is full" in err and "Traceback" not in err


@pytest.mark.slow
def test_a_bug_on_one_rank_ends_the_job_with_its_traceback(start, tmp_path):
    _, err = finish(start(tmp_path / "run", more=ALONE.format(what="1 / 0")), code=1)
    assert "rank 1: Traceback" in err and "ZeroDivisionError" in err


@pytest.mark.slow
def test_ranks_killed_at_random_moments_cost_nothing_but_time(start, pair, tmp_path):
    """A dead rank ends the job; the checkpoint is whole, and the end is the same to the bit."""
    rng = random.Random()
    for _ in range(5):
        process = start(tmp_path / "run", "--resume", save_seconds=0, more=TELL)
        pids = dict(process.stderr.readline().split() for _ in range(2))
        begun(process)
        time.sleep(rng.uniform(0, 1))
        with suppress(ProcessLookupError):
            os.kill(int(pids[rng.choice("01")]), signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode in (0, signal.SIGKILL, 128 + signal.SIGKILL)
        if (tmp_path / "run/last.safetensors").exists():
            load(tmp_path / "run/last.safetensors")
    finish(start(tmp_path / "run", "--resume"))
    same_bits(tmp_path / "run", pair[0])


@pytest.mark.slow
def test_three_ranks_share_what_does_not_divide(start, tmp_path):
    """Validation and test tiles in numbers that three do not divide count once each."""
    for ranks in (1, 3):
        finish(start(tmp_path / str(ranks), "--batch-size", "3", ranks=ranks))
    for row, other in zip(history(tmp_path / "3"), history(tmp_path / "1"), strict=True):
        assert row["val_loss"] == pytest.approx(other["val_loss"], rel=2e-3)
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=2e-3)
    one, three = (json.loads((tmp_path / n / "metrics.json").read_text())["test"] for n in "13")
    assert one.keys() == three.keys() and one["pooled"]["tiles"] == three["pooled"]["tiles"]


# ---------------------------------------------------------------------------- started by itself

BY_ITSELF = """
from segment.train import launch
launch.WORTH, launch.cores, launch._rationed = 0, lambda: {0, 1}, lambda cores: False
"""
COMMAND = "cli.run(launch.main)"


def ranks_of(run):
    return json.loads((run / "config.json").read_text())["ranks"]


def test_a_training_goes_on_as_ranks_by_itself(start, pair, tmp_path):
    """The same bits, words and codes as if mpiexec had been typed; what was said is said once."""
    process = start(tmp_path / "run", "--resume", ranks=1, more=BY_ITSELF + COMMAND)
    said = "".join(begun(process))
    assert said.count("holds no run yet") == said.count(" tiles (") == 1
    os.kill(process.pid, signal.SIGTERM)
    _, err = finish(process, 143)
    assert err.count("--resume") == 1 and err.count("\n") == 1 and ranks_of(tmp_path / "run") == 2
    out, err = finish(start(tmp_path / "run", "--resume", ranks=1, more=BY_ITSELF + COMMAND))
    assert out.count(" tiles (") == 1 and "ranks:" not in out and err == ""
    same_bits(tmp_path / "run", pair[0])


def test_an_error_after_the_start_of_ranks_is_one_line(start, tmp_path):
    more = BY_ITSELF + COMMAND
    out, err = finish(start(tmp_path / "run", "--lr", "1e30", ranks=1, more=more), code=2)
    assert out.count(" tiles (") == 1 and "diverged" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "trial, why",
    [
        ("import sys; sys.exit('no sockets here')", "no sockets here"),
        ("import sys; sys.exit(3)", "mpiexec ended with code 3"),
        ("import time; time.sleep(60)", "timed out after 1 seconds"),
    ],
)
def test_where_ranks_cannot_be_had_one_process_trains_and_says_so(start, tmp_path, trial, why):
    more = (
        BY_ITSELF + f"launch.TRIAL, launch.PATIENCE = {trial!r}, {60 if 'exit' in trial else 1}\n"
    )
    out, err = finish(start(tmp_path / "run", "--epochs", "1", ranks=1, more=more + COMMAND))
    (said,) = [line for line in out.splitlines() if line.startswith("one process trains")]
    assert why in said and err == "" and ranks_of(tmp_path / "run") == 1


def test_without_mpi_one_process_trains_and_says_what_to_install(start, tmp_path):
    more = BY_ITSELF + "launch.find_spec = lambda name: None\n"
    out, err = finish(start(tmp_path / "run", "--epochs", "1", ranks=1, more=more + COMMAND))
    assert "2 would be faster: pip install mpi4py mpich\n" in out and err == ""
    assert ranks_of(tmp_path / "run") == 1


def test_a_run_goes_on_with_the_ranks_it_began_with_or_says_so(start, pair, tmp_path):
    """A run of before the number was kept goes on alone, and what was started so says nothing."""
    more = BY_ITSELF + COMMAND
    for name, began, environment in (("old", 1, {}), ("two", 2, {"MINICNN_NUM_THREADS": "1"})):
        process = start(tmp_path / name, ranks=began)
        begun(process)
        process.terminate()
        finish(process, 143)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config.pop("ranks") == began
        if name == "old":
            (tmp_path / name / "config.json").write_text(json.dumps(config))
        out, err = finish(start(tmp_path / name, "--resume", ranks=1, more=more, **environment))
        changed = "ranks: 2 when the run began, 1 from here on; the last bits may differ"
        assert (changed in out) == (name == "two") and err == ""


def test_the_progress_bar_of_ranks_is_seen(start, tmp_path):
    """They have no terminal of their own: the one of the process that started them is theirs."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 60, 0, 0))
    more = BY_ITSELF + f"os.dup2({theirs}, 2)\n" + COMMAND
    process = start(tmp_path / "run", "--epochs", "1", ranks=1, more=more, pass_fds=(theirs,))
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # what Linux says at the end
        while some := os.read(ours, 4096):
            shown += some
    finish(process)
    lines = shown.decode().replace("\r", "\n").splitlines()
    bars = [line for line in lines if line.startswith("epoch 1/1") and "crop" in line]
    assert bars and max(map(len, lines)) < 60


@pytest.mark.parametrize(
    "batch, crops, began, cores, environment, ranks",
    [
        (8, 10**6, None, 1, {}, 1),
        (8, 10**6, None, 2, {}, 2),
        (8, 10**6, None, 3, {}, 1),  # a third core would idle
        (8, 10**6, None, 4, {}, 4),
        (8, 10**6, None, 6, {}, 2),
        (8, 10**6, None, 64, {}, 4),  # of 16 threads each
        (7, 10**6, None, 2, {}, 1),
        (8, 100, None, 2, {}, 1),
        (8, 100, 2, 2, {}, 2),
        (8, 10**6, 1, 2, {}, 1),
        (8, 10**6, 8, 8, {}, 8),
        (8, 10**6, 8, 4, {}, 4),  # which is said
        (8, 10**6, None, 2, {"MINICNN_NUM_THREADS": "2"}, 1),
        (8, 10**6, 2, 2, {"PMI_SIZE": "1"}, 1),
    ],
)
def test_how_many_ranks_a_training_takes(
    batch, crops, began, cores, environment, ranks, monkeypatch, tmp_path
):
    monkeypatch.setattr(launch, "CPU_SHARE", tmp_path / "cpu.max")
    assert launch.ranks_for(batch, crops, began, cores, environment) == ranks
    for text, rationed in (
        ("max 100000", False),
        (f"{cores}00000 100000", False),
        ("50 100", True),
    ):
        (tmp_path / "cpu.max").write_text(text + "\n")
        told = launch.ranks_for(batch, crops, began, cores, environment)
        assert told == (1 if rationed else ranks)


# ---------------------------------------------------------------------------- GPUs

STAND_INS = """
sys.path.insert(0, "tests/gpu")
import nccl_on_cpu
nccl_on_cpu.install()
"""


@pytest.mark.slow
def test_two_gpus_train_as_two_ranks_on_the_cpu(start, tmp_path):
    """With stand-ins for CuPy and NCCL: what is sent where, and that it adds up."""
    pytest.importorskip("cupy")
    fixed = ("--epochs", "1")
    gpu = start(
        tmp_path / "gpu", "--device", "gpu", "--precision", "float32", *fixed, more=STAND_INS
    )
    out, _ = finish(gpu)
    assert "on gpu" in out
    finish(start(tmp_path / "cpu", "--device", "cpu", *fixed))
    (row,), (other,) = history(tmp_path / "gpu"), history(tmp_path / "cpu")
    assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
    assert row["val_loss"] == pytest.approx(other["val_loss"], rel=1e-3)
    assert_ranks_agree(tmp_path / "gpu")
