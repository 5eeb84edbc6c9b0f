"""Devices, the two modules of kernels, and who may import what."""

import ast
import builtins
import inspect
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import minicnn as mc
from minicnn import backend, naive, ops
from minicnn.backend import DeviceError, check_float

PACKAGE = Path(mc.__file__).parent
MODULES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


def test_the_module_is_read_off_the_array(xp):
    assert mc.array_module(xp.zeros(1)) is xp
    assert mc.array_module(np.zeros(1)) is np
    name = "cpu" if xp is np else "gpu"
    assert mc.kernels_for(xp.zeros(1)).__name__ == f"minicnn.kernels.{name}"


def test_moving(xp):
    x = np.arange(3.0)
    there = mc.to_device(x, "cpu" if xp is np else "gpu")
    assert mc.array_module(there) is xp
    back = mc.to_host(there)
    np.testing.assert_array_equal(back, x)
    assert (back is x) == (xp is np)  # no copy without need


def test_choosing_a_device(monkeypatch):
    assert mc.choose_device("cpu") == "cpu"
    with pytest.raises(DeviceError, match="none of auto, cpu, gpu"):
        mc.choose_device("tpu")

    real = builtins.__import__

    def without_cupy(name, *arguments, **more):
        if name == "cupy":
            raise ImportError
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without_cupy)
    assert mc.choose_device("auto") == "cpu"
    with pytest.raises(DeviceError, match=r"needs CuPy: pip install"):
        mc.choose_device("gpu")


def test_choosing_a_precision(monkeypatch, float32):
    mc.set_precision("auto")
    assert backend.precision("cpu") == "float32" and backend.where("cpu") == "cpu"
    mc.set_precision("tf32")
    with pytest.raises(DeviceError, match="needs a GPU of sm_80 or later, and this is the CPU"):
        backend.precision("cpu")
    with pytest.raises(DeviceError, match="none of auto, tf32, float32"):
        mc.set_precision("half")
    monkeypatch.setattr(backend, "_wanted", "fp32")  # as from MINICNN_PRECISION
    with pytest.raises(DeviceError, match="'fp32' is none of auto, tf32, float32"):
        backend.precision("cpu")


def test_check_float():
    check_float(np.zeros(1), np.ones(2))
    check_float(np.zeros(1, np.float32))
    for bad in (np.zeros(1, int), np.zeros(1, np.float16), np.zeros(1, ">f4")):
        with pytest.raises(TypeError, match="float32"):
            check_float(bad, bad)
    with pytest.raises(TypeError, match="float32, float64"):
        check_float(np.zeros(1, np.float32), np.zeros(1))


# ---------------------------------------------------------------------------- the kernels


def functions(source):
    """Public functions of a module's text by name, with their arguments' names."""
    return {
        node.name: [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def module_path(device):
    """The file of a device's kernels, found without importing it."""
    return Path(find_spec(f"minicnn.kernels.{device}").origin)


def names_in_all(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} has no __all__")


def test_both_kernel_modules_have_the_same_names():
    """Read from the text, so that CuPy need not be there."""
    cpu, gpu = map(names_in_all, map(module_path, ("cpu", "gpu")))
    assert cpu == gpu == sorted(cpu)
    forward = {name for name in cpu if not name.endswith("_backward")}
    assert set(cpu) == forward | {f"{name}_backward" for name in forward}
    assert set(cpu) <= set(vars(ops)) and set(cpu) <= set(vars(naive))


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_kernels_are_called_like_the_plain_ops(device):
    """What a kernel module defines itself has the plain op's arguments, in its order."""
    path = module_path(device)
    own = functions(path.read_text())
    for name in set(own) & set(names_in_all(path)):
        assert own[name] == list(inspect.signature(getattr(ops, name)).parameters), name


# ---------------------------------------------------------------------------- imports


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_the_library_depends_on_nothing_above_it(name):
    modules = set(imported(MODULES[name]))
    assert not modules & {"segment", "api", "torch", "onnxruntime", "chainer", "rasterio"}
    if name != "backend.py" and not name.startswith("kernels/gpu/"):
        assert "cupy" not in modules


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_why_it_exists(name):
    docstring = ast.get_docstring(ast.parse(MODULES[name].read_text()))
    assert docstring and docstring.split("\n\n")[0].rstrip().endswith((".", ":"))
