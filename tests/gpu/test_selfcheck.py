"""What people with the hardware run: it must tell right from wrong, here on stand-ins."""

import json
from importlib import import_module

import pytest

from segment.errors import InputError
from segment.selfcheck import command
from segment.selfcheck.command import CHECKS, IN, TOLERANCE, main
from segment.unet import UNet


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(command, "UNet", lambda widths=None: UNet(widths=(4, 8)))
    monkeypatch.setattr(command, "REPEATS", 1)


@pytest.fixture(params=["cpu", "stand_in", pytest.param("cupy", marks=pytest.mark.gpu)])
def device(request):
    """The CPU; a GPU that stands for one; the real CuPy on the GPU there is."""
    if request.param == "cpu":
        return "cpu"
    request.getfixturevalue(request.param)
    return "gpu"


def test_all_is_well(device, tmp_path, capsys):
    file = tmp_path / "report.json"
    main(["--device", device, "--size", "16", "--batch", "2", "--json", str(file)])
    report = json.loads(file.read_text())
    on_tensor_cores = [f"{name}, TF32" for name in IN["tf32"][1]] if device == "gpu" else []
    names = [row["kernel"] for row in report["kernels"]]
    assert names == [*CHECKS, *on_tensor_cores]
    assert all(row["good"] for row in report["kernels"])
    errors = {row["kernel"]: row["error"] for row in report["kernels"]}
    assert all(errors[name] <= TOLERANCE for name in CHECKS)
    if device == "gpu":
        assert all(errors[name] > TOLERANCE for name in on_tensor_cores)
        assert "conv_tf32_16" in report["speed, TF32"]["kernels"]
    training, inference = report["speed"]["rows"]
    assert training["tiles_per_second"] > 0 and inference["gflops"] > 0
    assert ("conv_16" in report["speed"]["kernels"]) == (device == "gpu")
    printed = capsys.readouterr().out
    assert printed.count("ok") == len(names) and "tiles/s" in printed


@pytest.mark.parametrize(
    "capability, asked, checked",
    [("75", (), 1), ("80", (), 2), ("80", ("--precision", "float32"), 1)],
)
def test_an_old_gpu_is_checked_in_float32_only(
    capability, asked, checked, stand_in, monkeypatch, capsys
):
    monkeypatch.setattr(stand_in, "compute_capability", capability)
    one = {name: (suffix, {"ReLU": 0.0}) for name, (suffix, _) in IN.items()}
    monkeypatch.setattr(command, "IN", one)
    monkeypatch.setattr(command, "speed", lambda *_: {"rows": [], "kernels": {}})
    monkeypatch.setattr(command, "_lines", lambda _: [])
    main(["--device", "gpu", *asked])
    assert capsys.readouterr().out.count("ok") == checked


def test_the_share_of_the_roofline_is_that_of_a_known_gpu(stand_in):
    training, _ = command.speed("gpu", 16, 1)["rows"]
    assert training["share_of_roofline"] > 0


def test_a_wrong_kernel_is_named(stand_in, monkeypatch, capsys):
    launches = import_module("minicnn.kernels.gpu.launches")
    good = launches.source
    monkeypatch.setattr(launches, "source", lambda name: good(name).replace("> best", "< best"))
    two = {"ReLU": TOLERANCE, "max-pool": TOLERANCE}
    monkeypatch.setattr(command, "IN", {"float32": ("", two), "tf32": (", TF32", {})})
    with pytest.raises(InputError, match=r"differ from NumPy on this device: max-pool$"):
        main(["--device", "gpu", "--size", "16", "--batch", "1"])
    assert "WRONG" in capsys.readouterr().out
