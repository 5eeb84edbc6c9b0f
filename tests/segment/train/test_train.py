"""Training as a user runs it: real processes, killed at real moments."""

import csv
import json
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minicnn.checkpoint import load
from minicnn.losses import bce_with_logits
from minicnn.optim import Adam
from segment.data.reading import Reading
from segment.data.splits import Split
from segment.errors import InputError
from segment.evaluate.metrics import Confusion
from segment.evaluate.objects import PROMINENCES, SMOOTHINGS
from segment.model import ModelInfo, normalise, save_model
from segment.run_folder import Run
from segment.run_settings import read_settings
from segment.synthetic.draw import draw_scene
from segment.synthetic.scenes import write_scenes
from segment.train import command
from segment.train.trainer import Trainer, visits
from segment.unet import UNet
from tests.segment.pictures import UTM, photograph, write_picture

ROOT = Path(__file__).parents[3]
LACKING = "training", "validation"
NARROW = """
import functools, sys
from segment import cli
from segment.train import command, trainer
command.UNet = functools.partial(command.UNet, widths=(4, 4, 4, 4, 4))
trainer.SAVE_SECONDS = {save_seconds}
cli.run(command.main)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two cities of three scenes, each one tile."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, cities=("ashford", "birkdale"), scenes_per_city=4, size=256)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def train(data, cache, tmp_path):
    """Start a training of a narrow net; returns the process. Its run is in tmp_path / out."""

    def start(*options, out="run", save_seconds=300, **popen):
        command = [sys.executable, "-c", NARROW.format(save_seconds=save_seconds)]
        command += ["--data", data, "--cache", cache, "--out", tmp_path / out]
        command += ["--epochs", "3", "--batch-size", "2", *options]
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **popen,
        )

    return start


def finish(process, code=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out, err


def tensors(path):
    return load(path)[0]


def assert_same_bits(path, other):
    ours, theirs = tensors(path), tensors(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].tobytes() == theirs[name].tobytes(), name


@pytest.fixture(scope="module")
def whole_run(data, cache, tmp_path_factory):
    """An uninterrupted run, to compare with."""
    out = tmp_path_factory.mktemp("whole") / "run"
    command = [sys.executable, "-c", NARROW.format(save_seconds=300), "--data", data]
    command += ["--cache", cache, "--out", out, "--epochs", "3", "--batch-size", "2"]
    done = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_a_run_leaves_its_files_and_prints_its_table(whole_run):
    run, printed = whole_run
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.json", "split.json", "history.csv", "curves.png", "overlay.png",
        "best.safetensors", "last.safetensors", "metrics.json",
    }  # fmt: skip
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for part in ("train", "val"):
        assert all(0 <= float(row[f"{part}_iou"]) <= 1 for row in rows)
        assert all(float(row[f"{part}_loss"]) > 0 for row in rows)
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert f"{test['pooled']['iou']:.3f}" in printed
    assert "all background" in printed and str(run / "curves.png") in printed
    assert printed.count("epoch ") == 3  # one line per epoch where there is no terminal


def test_best_is_the_epoch_of_highest_validation_iou(whole_run):
    run, _ = whole_run
    with (run / "history.csv").open() as file:
        scores = [float(row["val_iou"]) for row in csv.DictReader(file)]
    trained = load(run / "best.safetensors")[1]["model"]["trained"]
    assert trained["epoch"] == 1 + int(np.argmax(scores))


def test_killed_at_random_moments_it_ends_in_the_same_bits(train, whole_run, tmp_path):
    rng = random.Random()  # other moments every time: the result must not depend on them
    history, rows = tmp_path / "run/history.csv", b""
    for _ in range(4):
        process = train("--resume", save_seconds=0)
        while "tiles" not in (line := process.stdout.readline()):
            assert line, process.communicate()  # it ended before it began
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0)
        before, rows = rows, history.read_bytes() if history.exists() else b""
        assert rows.startswith(before)
    finish(train("--resume"))
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_bits(tmp_path / "run" / name, whole_run[0] / name)
    assert history.read_bytes().startswith(rows)
    assert history.read_bytes().split()[0] == (whole_run[0] / "history.csv").read_bytes().split()[0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(train, whole_run, tmp_path, cache, number, code):
    process = train("--epochs", "3")
    process.stdout.readline()  # "... tiles ...": the training begins
    time.sleep(0.5)
    process.send_signal(number)
    _, err = finish(process, code)
    assert f"--out {tmp_path / 'run'} --resume --cache {cache}" in err
    about = load(tmp_path / "run/last.safetensors")[1]
    finish(train("--resume"))
    if len(about["history"]) < 3:  # the epoch that was interrupted has its seconds before that, too
        row = load(tmp_path / "run/last.safetensors")[1]["history"][len(about["history"])]
        assert row["seconds"] >= round(about["seconds"], 2) > 0
    assert_same_bits(tmp_path / "run/last.safetensors", whole_run[0] / "last.safetensors")


def test_a_finished_run_is_left_alone(train, whole_run, tmp_path):
    finish(train())
    before = (tmp_path / "run/last.safetensors").read_bytes()
    out, _ = finish(train("--resume"))
    assert "finished" in out
    assert (tmp_path / "run/last.safetensors").read_bytes() == before
    _, err = finish(train(), code=2)
    assert "--resume" in err and err.count("\n") == 1


def test_resume_without_a_checkpoint_starts_afresh(train):
    out, _ = finish(train("--resume", "--epochs", "1"))
    assert "starting afresh" in out


def test_resume_of_no_run_draws_no_scenes_instead(tmp_path):
    command = [sys.executable, "-m", "segment.train", "--resume", "--out", str(tmp_path / "typo")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "typo holds no run to resume" in done.stderr
    assert not (tmp_path / "typo").exists()


def test_resume_finds_the_cache_by_itself(train, cache, tmp_path):
    finish(train("--epochs", "1"))
    assert json.loads((tmp_path / "run/config.json").read_text())["cache"] == str(cache)


def test_resume_refuses_other_settings(train):
    finish(train())
    _, err = finish(train("--resume", "--lr", "0.5"), code=2)
    assert "lr" in err and "0.5" in err


def test_divergence_stops_and_keeps_what_was_saved(train, tmp_path):
    _, err = finish(train("--lr", "1e30"), code=2)
    assert "diverged" in err and "--lr" in err
    last = tmp_path / "run/last.safetensors"
    assert not last.exists() or all(np.isfinite(t).all() for t in tensors(last).values())


def test_fine_tuning_starts_from_the_given_weights(train, whole_run, tmp_path):
    best = whole_run[0] / "best.safetensors"
    finish(train("--init", best, "--lr", "1e-12", "--epochs", "1", "--split", "scene"))
    ours, given = tensors(tmp_path / "run/best.safetensors"), tensors(best)
    for name in ("head.w", "encoder0.0.w"):
        np.testing.assert_allclose(ours[name], given[name], atol=1e-6)
    trained = load(tmp_path / "run/best.safetensors")[1]["model"]["trained"]
    assert trained["began_as"]["model"].startswith("best-")
    assert trained["began_as"]["trained"]["data"] == trained["data"]
    assert "test part, which it has not seen" in (tmp_path / "run/card.md").read_text()


def test_a_model_goes_on_as_it_was_taught(tmp_path):
    """Its pixel size and reading hold; the package's own weights are called bundled."""
    info = ModelInfo(pixel_size=0.4, reading=Reading((3, 2, 1), (0.0, 900.0)))
    save_model(tmp_path / "m.safetensors", UNet(widths=(3, 4)), info)
    options = ["--init", str(tmp_path / "m.safetensors"), "--value-range", "0", "500"]
    settings, _ = command._settle(
        command.arguments().parse_args(options), Run(tmp_path / "run"), "cpu"
    )
    assert settings.learn_at == 0.4 and settings.reading == Reading((3, 2, 1), (0.0, 500.0))
    options = ["--init", "bundled", "--learn-at", "0.25"]
    settings, _ = command._settle(
        command.arguments().parse_args(options), Run(tmp_path / "run"), "cpu"
    )
    assert (settings.init, settings.learn_at) == ("bundled", 0.25)


def test_the_scenes_pixel_size_is_one_thing_and_the_models_another(tmp_path):
    """Photographs without a place, of 0.5 m as somebody says, learnt at 1 m: half as many pixels.

    A place that says otherwise is not overruled in silence: what used to mean `--learn-at` would
    teach the model a wrong scale.
    """
    for stem in ("a", "b", "c"):
        write_picture(tmp_path / f"set/images/{stem}.tif", photograph(600, 600))
        write_picture(tmp_path / f"set/gt/{stem}.tif", photograph(600, 600)[..., 0] // 128)
    write_picture(tmp_path / "placed/images/d.tif", photograph(300, 300), **UTM)
    write_picture(tmp_path / "placed/gt/d.tif", photograph(300, 300)[..., 0] // 128, **UTM)
    told = ["--cache", str(tmp_path / "cache"), "--pixel-size", "0.5"]

    def tiles(data, *more):
        options = command.arguments().parse_args(["--data", str(tmp_path / data), *told, *more])
        return command._tiles(command._settle(options, Run(tmp_path / "run"), "cpu")[0])

    plain, coarse = tiles("set"), tiles("set", "--learn-at", "1")
    assert (plain.pixel_size, plain.pictures["set", "a"].coverage.shape) == (0.5, (600, 600))
    assert (coarse.pixel_size, coarse.pictures["set", "a"].coverage.shape) == (1.0, (300, 300))
    said = r"--pixel-size 0\.5: a pixel of .*d\.tif measures 0\.3 m, .*--learn-at 0\.5 resamples"
    with pytest.raises(InputError, match=said):
        tiles("placed")


def test_a_run_of_an_older_version_keeps_its_meaning(tmp_path):
    """Its pixel_size was what is learnt at."""
    (tmp_path / "config.json").write_text('{"data": [], "split": "scene", "pixel_size": 0.6}')
    settings = read_settings(tmp_path / "config.json")
    assert (settings.learn_at, settings.pixel_size) == (0.6, None)


@pytest.mark.parametrize(
    "built, said",
    [
        ({"train": "both", "val": "both"}, []),
        ({"train": "both", "val": "ground"}, ["no building in the validation part"]),
        ({"train": "ground", "val": "both"}, ["no building in the training part"]),
        ({"train": "roof", "val": "both"}, ["no background in the training part"]),
        ({"train": "ground", "val": "ground"}, [f"no building in the {p} part" for p in LACKING]),
    ],
)
def test_labels_of_one_class_are_said_before_training(tmp_path, monkeypatch, caplog, built, said):
    """Of the parts that are learnt and chosen by; the message comes before the first step."""
    kinds = {"ground": (0, 0), "roof": (255, 255), "both": (0, 255)}
    for part in ("train", "val", "test"):
        label = np.repeat(kinds[built.get(part, "both")], 128).astype(np.uint8)
        write_picture(tmp_path / f"in/images/{part}.png", photograph(256, 256), "PNG")
        write_picture(tmp_path / f"in/gt/{part}.png", np.tile(label, (256, 1)), "PNG")
    split = Split("by hand", 0, {part: [f"in/{part}"] for part in ("train", "val", "test")})
    split.save(tmp_path / "split.json")

    def stop(trainer):
        raise InputError("the training begins")

    monkeypatch.setattr(Trainer, "fit", stop)
    options = ["--split", tmp_path / "split.json", "--cache", tmp_path / "cache"]
    arguments = ["--data", tmp_path / "in", "--out", tmp_path / "run", *options, "--device", "cpu"]
    with pytest.raises(InputError, match="the training begins"):
        command.main([str(argument) for argument in arguments])
    found = [line.getMessage() for line in caplog.records if line.name == command.__name__]
    assert [line.partition(":")[0] for line in found] == said


def test_the_separation_is_calibrated_on_validation(whole_run):
    told = load(whole_run[0] / "best.safetensors")[1]["model"]["separation"]
    assert told["prominence"] in PROMINENCES and told["smoothing"] in SMOOTHINGS


def test_a_damaged_checkpoint_is_named(train, tmp_path):
    finish(train("--epochs", "3"))
    (tmp_path / "run/metrics.json").unlink()
    last = tmp_path / "run/last.safetensors"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    _, err = finish(train("--resume"), code=2)
    assert str(last) in err and err.count("\n") == 1


def test_a_full_disk_ends_in_one_line_and_no_half_file(train, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    finish(train(out="first", save_seconds=300))  # fills the cache of tiles
    _, err = finish(train(preexec_fn=limit), code=2)
    assert err.count("\n") == 1 and "error:" in err
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"config.json", "split.json"}


def test_a_file_in_the_way_is_named_before_any_work(train, tmp_path):
    (tmp_path / "run").touch()
    _, err = finish(train("--data", "/no/such/folder"), code=2)
    assert err == f"error: {tmp_path / 'run'} is a file, where a folder was expected\n"


def test_a_damaged_configuration_is_named(train, tmp_path):
    finish(train("--epochs", "1"))
    for text in ("[]", "3", '{"depth": 3}', "{"):
        (tmp_path / "run/config.json").write_text(text)
        _, err = finish(train("--resume"), code=2)
        assert str(tmp_path / "run/config.json") in err and err.count("\n") == 1


def test_no_data_is_one_clear_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "segment.train", "--data", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr and done.stderr.count("\n") == 1


def test_small_cities_come_up_more_often_but_not_as_often_as_large_ones():
    """By the root of their size: 900 and 100 tiles share an epoch as 3 to 1."""
    times = visits(["large"] * 900 + ["small"] * 100)
    assert times[:900].sum() == pytest.approx(750) and times[900:].sum() == pytest.approx(250)
    assert np.ptp(times[:900]) == np.ptp(times[900:]) == 0
    assert (visits(["one"] * 7) == 1).all()


def test_trains_on_real_photographs(train, tmp_path, photographs):
    crops = photographs / "inria-crops"
    out, _ = finish(train("--data", crops, "--epochs", "1", "--batch-size", "8"))
    assert "79 tiles" in out and "city austin" in out
    test = json.loads((tmp_path / "run/metrics.json").read_text())["test"]
    assert 0 < test["pooled"]["accuracy"] < 1


def test_overfits_one_tile():
    """The ritual before any training: a net that can't learn one picture by heart is broken."""
    image, mask = draw_scene("ashford", 1, 256)
    image, mask = image[None, :96, :96], mask[None, :96, :96, None] > 0
    assert 0.05 < mask.mean() < 0.95
    net, x, y = UNet(seed=1), normalise(image), mask.astype(np.float32)
    optimizer = Adam(net, 2e-3)
    for _ in range(120):
        _, dlogits = bce_with_logits(net.forward(x, training=True), y)
        net.backward(dlogits)
        optimizer.step()
    predicted = net.forward(x, training=True)[..., 0] >= 0
    assert Confusion.from_masks(predicted[0], mask[0, ..., 0].astype(np.uint8)).iou > 0.99
