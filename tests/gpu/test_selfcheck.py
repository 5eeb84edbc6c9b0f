"""What people with the hardware run: it must tell right from wrong, here on the stand-in."""

import json
from importlib import import_module

import pytest

import segment.selfcheck
from segment.errors import InputError
from segment.selfcheck import CHECKS, TOLERANCE, main


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    narrow = lambda: segment.unet.UNet(widths=(4, 8))  # noqa: E731
    monkeypatch.setattr(segment.selfcheck, "UNet", lambda widths=None: narrow())
    monkeypatch.setattr(segment.selfcheck, "REPEATS", 1)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_all_is_well(device, stand_in, tmp_path, capsys):
    file = tmp_path / "report.json"
    main(["--device", device, "--size", "16", "--batch", "2", "--json", str(file)])
    report = json.loads(file.read_text())
    assert [row["kernel"] for row in report["kernels"]] == list(CHECKS)
    assert all(row["error"] <= TOLERANCE for row in report["kernels"])
    training, inference = report["speed"]["rows"]
    assert training["tiles_per_second"] > 0 and inference["gflops"] > 0
    assert ("share_of_roofline" in training) == (device == "gpu")
    assert ("conv_16" in report["speed"]["kernels"]) == (device == "gpu")
    printed = capsys.readouterr().out
    assert printed.count("ok") == len(CHECKS) and "tiles/s" in printed


def test_a_wrong_kernel_is_named(stand_in, monkeypatch, capsys):
    gpu = import_module("minicnn.kernels.gpu")
    good = gpu.source
    monkeypatch.setattr(gpu, "source", lambda name: good(name).replace("> best", "< best"))
    monkeypatch.setattr(segment.selfcheck, "CHECKS", {k: CHECKS[k] for k in ("ReLU", "max-pool")})
    with pytest.raises(InputError, match=r"differ from NumPy on this device: max-pool$"):
        main(["--device", "gpu", "--size", "16", "--batch", "1"])
    assert "WRONG" in capsys.readouterr().out
