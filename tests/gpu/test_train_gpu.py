"""`python -m segment.train --device gpu` gives the training of the CPU, and predict its masks."""

import csv
import functools

import numpy as np
import pytest
import rasterio

from minicnn.backend import DeviceError, set_precision
from minicnn.checkpoint import load
from minicnn.optim import SGD
from segment.errors import InputError
from segment.model import load_model
from segment.predict import command as predict
from segment.storage.documents import read_json, write_json
from segment.synthetic.scenes import write_scenes
from segment.train import command, trainer


def gpu(test):
    """Of the GPU there is; a training on a fake one takes its time."""
    return pytest.mark.gpu(pytest.mark.timeout(900)(test))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three cities of two scenes, each one tile."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, cities=("ashford", "birkdale", "corvo"), scenes_per_city=2, size=256)
    return folder


@pytest.fixture
def train(data, tmp_path, monkeypatch):
    """Train a narrow net; returns its history and its last checkpoint."""
    narrow = functools.partial(command.UNet, widths=(4, 4, 8), kernel=2)
    monkeypatch.setattr(command, "UNet", narrow)

    def run(device, *options, out=None, epochs=2, precision="float32"):
        folder = tmp_path / (out or device)
        fixed = ["--data", data, "--cache", tmp_path / "cache", "--out", folder]
        fixed += ["--epochs", epochs, "--batch-size", 2, "--split", "random"]
        fixed += ["--device", device, *(["--precision", precision] if precision else [])]
        set_precision("auto")  # as in a new process
        command.main([str(o) for o in (*fixed, *options)])
        with open(folder / "history.csv") as file:
            history = list(csv.DictReader(file))
        return history, load(folder / "last.safetensors")[0]

    return run


@gpu
def test_the_gpu_gives_the_loss_curve_of_the_cpu(train, cupy):
    (cpu, _), (gpu, _) = train("cpu"), train("gpu")
    assert len(cpu) == len(gpu) == 2
    for one, other in zip(cpu, gpu, strict=True):
        for name in one.keys() - {"seconds"}:
            near = {"rel": 1e-3} if name.endswith("loss") else {"abs": 0.01}  # shares of pixels
            assert float(other[name]) == pytest.approx(float(one[name]), **near), name


@gpu
def test_the_gpu_moves_the_weights_as_the_cpu_does(train, cupy, monkeypatch):
    """By plain gradient descent, whose steps are as exact as gradients. Muon and Adam make quiet
    directions as loud as any, those of rounding among them."""
    monkeypatch.setattr(trainer, "Muon", lambda net, lr: SGD(net, 0.02, momentum=0.0))
    start = {f"net.{name}": p for name, p in command.UNet().parameters().items()}
    (_, cpu), (_, gpu) = train("cpu", epochs=1), train("gpu", epochs=1)
    assert cpu.keys() == gpu.keys() and all(gpu[name].dtype == a.dtype for name, a in cpu.items())
    for name, before in start.items():
        moved, off = np.linalg.norm(cpu[name] - before), np.linalg.norm(gpu[name] - cpu[name])
        assert off <= 3e-3 * moved, name
        assert (moved > 0) == (gpu[name] != before).any(), name


@gpu
@pytest.mark.parametrize("first, then", [("cpu", "gpu"), ("gpu", "cpu")])
def test_a_run_begun_on_one_goes_on_on_the_other(first, then, train, cupy, monkeypatch):
    whole, _ = train("cpu", out="whole")
    fit = trainer.Trainer.finish_epoch

    def stop_after_one(self, *arguments):
        fit(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Trainer, "finish_epoch", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        train(first, out="moved")
    monkeypatch.setattr(trainer.Trainer, "finish_epoch", fit)
    moved, _ = train(then, "--resume", out="moved")
    for mine, other in zip(moved, whole, strict=True):
        assert float(mine["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=2e-3)


@gpu
def test_a_scene_is_predicted_as_on_the_cpu(train, cupy, data, tmp_path):
    train("cpu", epochs=1)
    scene, found = next((data / "images").iterdir()), []
    for device in ("cpu", "gpu"):
        out = tmp_path / f"{device}.tif"
        options = ["--model", tmp_path / "cpu", "--out", out, "--format", "probability"]
        options += ["--precision", "float32"]
        predict.main([str(o) for o in (scene, *options, "--device", device)])
        with rasterio.open(out) as source:
            found.append(source.read().astype(float))
    assert np.ptp(found[0]) > 0
    np.testing.assert_allclose(found[1], found[0], atol=1e-3 * max(1, found[0].max()))


def test_a_batch_too_large_gives_the_size_that_fits(train, stand_in, monkeypatch):
    monkeypatch.setattr(stand_in, "capacity", stand_in.counts["live bytes"] + (8 << 20))
    with pytest.raises(InputError, match=r"a batch of 2 crops takes .* not even one crop fits"):
        train("gpu")


def test_auto_takes_what_fits(data, tmp_path, stand_in, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(settings, *_):
        raise Stopped(settings.batch_size)

    monkeypatch.setattr(command, "_trainer", stop)
    options = ["--data", data, "--cache", tmp_path, "--device", "gpu", "--batch-size", "auto"]
    for megabytes, batch in ((256, 7), (512, 19), (16_384, 32)):
        monkeypatch.setattr(stand_in, "capacity", stand_in.counts["live bytes"] + (megabytes << 20))
        with pytest.raises(Stopped, match=f"^{batch}$"):
            command.main([*map(str, options), "--out", str(tmp_path / str(batch))])
    monkeypatch.setattr(stand_in, "capacity", stand_in.counts["live bytes"] + (1 << 20))
    with pytest.raises(InputError, match="not even one crop fits"):
        command.main([*map(str, options), "--out", str(tmp_path / "none")])


@gpu
def test_tf32_is_the_default_of_a_gpu_and_a_run_keeps_it(train, cupy, tmp_path, capsys):
    """It is said, noted in the run and in the model, and none but the run's own on resuming."""
    exact, _ = train("cpu", out="exact", epochs=1)
    capsys.readouterr()
    (row,), _ = train("gpu", epochs=1, precision=None)
    assert "on gpu in tf32, batches of 2" in capsys.readouterr().out
    assert float(row["val_loss"]) == pytest.approx(float(exact[0]["val_loss"]), rel=0.02)
    assert read_json(tmp_path / "gpu/config.json")["precision"] == "tf32"
    assert load_model(tmp_path / "gpu").info.trained["precision"] == "tf32"
    (tmp_path / "gpu/metrics.json").unlink()
    with pytest.raises(InputError, match="has precision tf32, and --resume can't change it to fl"):
        train("gpu", "--resume", epochs=1)
    train("gpu", "--resume", epochs=1, precision=None)
    assert "on gpu in tf32" in capsys.readouterr().out


@gpu
def test_a_run_in_tf32_goes_on_in_float32_where_that_is_all(train, cupy, tmp_path, capsys):
    train("gpu", epochs=1, precision="tf32")
    (tmp_path / "gpu/metrics.json").unlink()
    train("cpu", "--resume", out="gpu", epochs=1, precision=None)
    assert "began in tf32 and goes on in float32: precision tf32 needs" in capsys.readouterr().out
    with pytest.raises(DeviceError, match="precision tf32 needs a GPU"):
        train("cpu", out="fresh", precision="tf32")


@gpu
def test_a_run_begun_in_float32_stays_in_it(train, cupy, tmp_path, capsys):
    train("cpu", epochs=1)
    config = read_json(tmp_path / "cpu/config.json")
    assert config.pop("precision") == "float32"
    write_json(tmp_path / "cpu/config.json", config)  # as before there was a choice
    (tmp_path / "cpu/metrics.json").unlink()
    train("gpu", "--resume", out="cpu", epochs=1, precision=None)
    assert "on gpu in float32" in capsys.readouterr().out
