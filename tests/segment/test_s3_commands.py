"""The commands from s3:// to s3://, as a user runs them: they give what they give on a disk."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from buckets import refusal

from minicnn.checkpoint import load
from segment.data.rasters import open_raster
from segment.model import ModelInfo, load_model, save_model
from segment.predict.scene import predict_scene
from segment.storage import s3
from segment.storage.paths import to_path
from segment.synthetic import command as synthetic
from segment.synthetic.scenes import write_scenes
from segment.unet import UNet

ROOT = Path(__file__).parents[2]
NARROW = """
import functools, sys
from segment import cli
from segment.train import command, trainer
command.UNet = functools.partial(command.UNet, widths=(4, 4, 4, 4, 4))
cli.run(command.main)
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two cities of four scenes, each one tile."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, cities=("ashford", "birkdale"), scenes_per_city=4, size=256)
    return folder


@pytest.fixture
def there(bucket, scenes):
    """The same scenes in the bucket."""
    for file in scenes.rglob("*.tif"):
        to_path(f"{bucket}data/{file.relative_to(scenes)}").upload(file)
    return bucket / "data"


def start(program, *arguments, **environment):
    how = ["-c", NARROW] if program == "train" else ["-m", f"segment.{program}"]
    return subprocess.Popen(
        [sys.executable, *how, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100", **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process, code=0):
    out, err = process.communicate(timeout=280)
    assert process.returncode == code, err
    return out, err


def train(data, out, *options, **environment):
    options = ("--epochs", 3, "--batch-size", 2, *options)
    return start("train", "--data", data, "--out", out, *options, **environment)


def assert_same_run(there, here, tmp_path):
    """The same files, and in them the same bits; but for paths and seconds."""
    names = {path.name for path in there.iterdir()}
    assert names == {path.name for path in here.iterdir()}
    for name in ("best.safetensors", "last.safetensors"):
        (there / name).download(tmp_path / "back")
        ours, theirs = load(tmp_path / "back")[0], load(here / name)[0]
        assert ours.keys() == theirs.keys()
        assert all(ours[key].tobytes() == theirs[key].tobytes() for key in ours), name
    for name in ("metrics.json", "split.json"):
        assert (there / name).read_bytes() == (here / name).read_bytes()


def test_training_from_s3_to_s3(there, scenes, bucket, tmp_path):
    """The run is that of a disk, bit for bit; to go on, the bucket is all that is needed."""
    finish(train(scenes, tmp_path / "run"))
    printed, _ = finish(train(there, bucket / "run"))
    assert f"model: {bucket}run/best.safetensors" in printed
    assert_same_run(bucket / "run", tmp_path / "run", tmp_path)
    elsewhere = {"XDG_CACHE_HOME": str(tmp_path / "another machine")}
    printed, _ = finish(train(there, bucket / "run", "--resume", **elsewhere))
    assert f"{bucket}run is finished" in printed
    assert "holds a run already" in finish(train(there, bucket / "run"), 2)[1]
    ours, _ = finish(start("evaluate", "--model", bucket / "run", **elsewhere))
    assert ours == finish(start("evaluate", "--model", tmp_path / "run"))[0]
    init = ("--init", bucket / "run", "--epochs", 1)
    finish(train(there, bucket / "tuned", *init))
    config = json.loads((bucket / "tuned/config.json").read_bytes())
    assert config["init"] == f"{bucket}run" and config["data"] == [str(there)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_on_another_machine(there, scenes, bucket, tmp_path):
    """SIGTERM in the middle; the next process has an empty disk; the bits are those of one run."""
    finish(train(scenes, tmp_path / "run"))
    for machine in range(3):
        elsewhere = {"XDG_CACHE_HOME": str(tmp_path / f"machine{machine}")}
        process = train(there, bucket / "run", "--resume", **elsewhere)
        while not (line := process.stdout.readline()).startswith("epoch "):
            assert line or process.poll() is None
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=280)[1]
        if process.returncode == 0:
            break
        assert process.returncode == 143
        # While it tests, after the last epoch, there is nothing left to save.
        assert f"--out {bucket / 'run'} --resume" in err or err == "terminated\n"
    finish(train(there, bucket / "run", "--resume"))
    assert_same_run(bucket / "run", tmp_path / "run", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_bears_a_bad_network(there, scenes, bucket, faults, tmp_path):
    """Connections break and the server is busy all along; the run is the same."""
    finish(train(scenes, tmp_path / "run"))
    faults.script = [("up", 5000), refusal(503, "SlowDown"), ("down", 3000), ("deaf",)] * 3
    finish(train(there, bucket / "run"))
    assert faults.met >= 4
    assert_same_run(bucket / "run", tmp_path / "run", tmp_path)


def test_a_bucket_that_may_not_be_written_ends_the_training_before_it_begins(there, bucket, faults):
    faults.always = refusal(403, "AccessDenied")
    process = train(there, bucket / "run")
    _, err = finish(process, 2)
    assert err.count("\n") == 1 and "access is denied to these credentials" in err


def test_scenes_are_drawn_into_a_bucket(bucket, scenes):
    synthetic.main(["--out", f"{bucket}drawn", "--scenes", "1", "--cities", "1", "--size", "256"])
    for name in ("images/ashford1.tif", "gt/ashford1.tif"):
        assert (bucket / "drawn" / name).read_bytes() == (scenes / name).read_bytes()


@pytest.fixture
def model(tmp_path):
    net = UNet(widths=(4, 8, 8), seed=5)
    net.head.params["w"] *= 100
    save_model(tmp_path / "small.safetensors", net, ModelInfo(pixel_size=0.3, threshold=0.5))
    return tmp_path / "small.safetensors"


def test_predicting_from_s3_to_s3(there, scenes, bucket, model, tmp_path):
    (bucket / "model.safetensors").upload(model)
    name = "images/ashford1.tif"
    model_there = ("--model", bucket / "model.safetensors")
    printed, _ = finish(start("predict", there / name, "--out", bucket / "mask.tif", *model_there))
    assert printed == f"{bucket}mask.tif\n"
    finish(start("predict", scenes / name, "--out", tmp_path / "mask.tif", "--model", model))
    with open_raster(bucket / "mask.tif") as got, open_raster(tmp_path / "mask.tif") as expected:
        assert got.profile == expected.profile
        assert (got.read() == expected.read()).all()
        names = {"TIFFTAG_DATETIME": "", "MINICNN_MODEL": ""}
        assert got.tags() | names == expected.tags() | names

    finish(start("predict", there, "--out", f"{bucket}masks/", *model_there))
    stems = {path.stem for path in (scenes / "images").glob("*.tif")}
    assert {path.stem for path in (bucket / "masks").iterdir()} == stems
    assert {path.suffix for path in (bucket / "masks").iterdir()} == {".tif"}
    _, err = finish(start("predict", there / name, "--out", there / name, *model_there), 2)
    assert "would be overwritten" in err

    loaded = load_model(f"{bucket}model.safetensors")
    ours, profile = predict_scene(loaded, f"{there}/{name}")
    theirs, same = predict_scene(loaded, scenes / name)
    assert (ours == theirs).all() and profile == same


def test_what_is_missing_is_one_line_and_exit_code_2(there, bucket, model):
    for arguments, words in (
        (("predict", bucket / "no.tif", "--out", bucket / "x.tif"), "no.tif: no such"),
        (("predict", "s3://no-such-bucket-here/a.tif", "--out", "x.tif"), "no such bucket"),
        (("predict", there, "--out", bucket / "x/", "--model", bucket / "no"), "no: no such file"),
        (("evaluate", "--model", model, "--data", bucket / "nothing"), "nothing: no such"),
    ):
        out, err = finish(start(*arguments), 2)
        assert out == "" and err.count("\n") == 1 and words in err, err
    s3._connection.cache_clear()
