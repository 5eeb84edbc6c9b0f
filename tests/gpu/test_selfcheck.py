"""What people with the hardware run: it must tell right from wrong, here on the stand-in."""

import json
from importlib import import_module

import pytest

from segment.errors import InputError
from segment.selfcheck import command
from segment.selfcheck.command import CHECKS, TENSOR_CHECKS, TF32_TOLERANCE, TOLERANCE, main
from segment.unet import UNet


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(command, "UNet", lambda widths=None: UNet(widths=(4, 8)))
    monkeypatch.setattr(command, "REPEATS", 1)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_all_is_well(device, stand_in, tmp_path, capsys):
    file = tmp_path / "report.json"
    main(["--device", device, "--size", "16", "--batch", "2", "--json", str(file)])
    report = json.loads(file.read_text())
    on_tensor_cores = [f"{name}, TF32" for name in TENSOR_CHECKS] if device == "gpu" else []
    names = [row["kernel"] for row in report["kernels"]]
    assert names == [*CHECKS, *on_tensor_cores]
    assert all(row["good"] and row["error"] <= TF32_TOLERANCE for row in report["kernels"])
    errors = {row["kernel"]: row["error"] for row in report["kernels"]}
    assert all(errors[name] <= TOLERANCE for name in CHECKS)
    if device == "gpu":
        assert all(errors[name] > TOLERANCE for name in on_tensor_cores)
        assert "conv_tf32_16" in report["speed, TF32"]["kernels"]
    training, inference = report["speed"]["rows"]
    assert training["tiles_per_second"] > 0 and inference["gflops"] > 0
    assert ("share_of_roofline" in training) == (device == "gpu")
    assert ("conv_16" in report["speed"]["kernels"]) == (device == "gpu")
    printed = capsys.readouterr().out
    assert printed.count("ok") == len(names) and "tiles/s" in printed


def test_an_old_gpu_is_checked_in_float32_only(stand_in, monkeypatch, capsys):
    monkeypatch.setattr(stand_in, "compute_capability", "75")
    monkeypatch.setenv("MINICNN_TF32", "1")
    monkeypatch.setattr(command, "CHECKS", {"block": CHECKS["block"]})
    monkeypatch.setattr(command, "speed", lambda *_: {"rows": [], "kernels": {}})
    monkeypatch.setattr(command, "_lines", lambda _: [])
    main(["--device", "gpu"])
    assert capsys.readouterr().out.count("ok") == 1


def test_a_wrong_kernel_is_named(stand_in, monkeypatch, capsys):
    launches = import_module("minicnn.kernels.gpu.launches")
    good = launches.source
    monkeypatch.setattr(launches, "source", lambda name: good(name).replace("> best", "< best"))
    monkeypatch.setattr(command, "CHECKS", {k: CHECKS[k] for k in ("ReLU", "max-pool")})
    monkeypatch.setattr(command, "TENSOR_CHECKS", ())
    with pytest.raises(InputError, match=r"differ from NumPy on this device: max-pool$"):
        main(["--device", "gpu", "--size", "16", "--batch", "1"])
    assert "WRONG" in capsys.readouterr().out
