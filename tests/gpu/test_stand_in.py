"""Is the stand-in for CuPy strict? Faults that NumPy lets pass, each of which it must refuse."""

import numpy as np
import pytest
import strict_cupy
from strict_cupy import TransferError, counts, forbid_transfers

cp = strict_cupy.module
TEXT = """
struct Sizes { int M, C; };
extern "C" __global__ void scale(const float* __restrict__ x, float* __restrict__ y, int n, float f)
{ int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) y[i] = f * x[i]; }
extern "C" __global__ void product(float* y, Sizes s) { y[0] = s.M * s.C; }
"""


@pytest.fixture(autouse=True)
def fresh(stand_in):
    pass


@pytest.fixture
def x(rng):
    return cp.asarray(rng.standard_normal((2, 4, 4, 3)).astype(np.float32))


HOST = np.ones(3, np.float32)


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: x * HOST,
        lambda x: HOST + x,
        lambda x: np.add(HOST, x),
        lambda x: cp.add(x, HOST),
        lambda x: np.zeros((2, 4, 4, 3), np.float32).__iadd__(x),
        lambda x: HOST.__setitem__(slice(None), x[0, 0, 0]),
        lambda x: np.asarray(x),
        lambda x: np.add.at(np.zeros(3), np.arange(3), x[0, 0, 0]),
        lambda x: cp.concatenate([x[0, 0, 0], HOST]),
        lambda x: cp.sum(x, where=x > 0),
        lambda x: x.max(initial=0.0),
        lambda x: range(cp.asarray(3)),
        lambda x: bytes(x),
    ],
)
def test_arrays_of_host_and_device_do_not_mix(fault, x):
    with pytest.raises(TypeError):
        fault(x)


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: cp.block([[x]]),
        lambda x: cp.insert(x, 0, 0.0),
        lambda x: cp.nditer(x),
        lambda x: x.__array_interface__,
        lambda x: x.ctypes,
        lambda x: x.ptp(),
    ],
)
def test_names_that_cupy_lacks(fault, x):
    with pytest.raises(AttributeError):
        fault(x)


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: float(x.sum()),
        lambda x: bool((x * x).mean() < 3),
        lambda x: x.get(),
        lambda x: x.item,
        lambda x: cp.asarray(HOST),
        lambda x: x[np.array([0, 1])],
        lambda x: x.__setitem__(0, np.zeros((4, 4, 3))),
        lambda x: repr(x),
        lambda x: cp.asnumpy(x),
        lambda x: x[0, 0, 0].tolist(),
    ],
)
def test_copies_are_seen(copy, x):
    with forbid_transfers(), pytest.raises(TransferError):
        result = copy(x)
        result()  # x.item


def test_what_stays_on_the_device_is_no_copy(x):
    with forbid_transfers():
        y = np.sum(x * 2 + np.float32(1), (0, 1, 2))
        y[0] = 3
        y /= y.max()
    assert isinstance(y, cp.ndarray) and isinstance(x.sum(), cp.ndarray)


def test_fresh_memory_is_poisoned():
    assert np.isnan(cp.empty(5, np.float32).get()).all()
    assert not np.isnan(cp.zeros(5, np.float32).get()).any()


def test_views_share_and_results_do_not(x):
    view, y = x[0], x + 0
    view[...] = 7
    assert (x[0].get() == 7).all() and not (y[0].get() == 7).any()
    one = x[0, 0, 0, 0]
    one[...] = 8
    assert float(x[0, 0, 0, 0]) == 8


def test_counting(x):
    before = dict(counts)
    y = cp.zeros((64, 64), np.float32)
    y += 1
    y.get()
    changed = {key: counts[key] - before.get(key, 0) for key in counts}
    assert changed["d2h"] == 1 and changed["d2h bytes"] == y.nbytes
    assert changed["launches"] == 2 and changed["allocated bytes"] == y.nbytes
    live = counts["live bytes"]
    del y
    assert counts["live bytes"] == live - 64 * 64 * 4


def test_memory_runs_out(monkeypatch):
    import cupy as real

    monkeypatch.setattr(strict_cupy, "capacity", counts["live bytes"] + 1000)
    with pytest.raises(strict_cupy.real.cuda.memory.OutOfMemoryError):
        cp.zeros(1000, np.float32)
    assert real is cp  # the stand-in took CuPy's place


# ---------------------------------------------------------------------------- kernels


def launch(name, *arguments):
    cp.RawModule(code=TEXT).get_function(name)((1,), (64,), arguments)


def test_a_kernel_runs():
    x, y = cp.asarray(HOST), cp.empty(3, np.float32)
    launch("scale", x, y, np.int32(3), np.float32(2))
    assert y.get().tolist() == [2, 2, 2]
    launch("product", y, np.array((3, 5), [("M", np.int32), ("C", np.int32)]))
    assert y.get()[0] == 15


@pytest.mark.parametrize(
    "arguments",
    [
        (HOST, HOST, np.int32(3), np.float32(2)),
        ("x", "x64", np.int32(3), np.float32(2)),
        ("x", "gaps", np.int32(3), np.float32(2)),
        ("x", "x", 3, np.float32(2)),
        ("x", "x", np.int64(3), np.float32(2)),
        ("x", "x", np.int32(3), 2.0),
        ("x", "x", np.float32(3), np.float32(2)),
        ("x", None, np.int32(3), np.float32(2)),
    ],
)
def test_arguments_of_a_kernel_are_checked(arguments):
    x = cp.asarray(HOST)
    arrays = {"x": x, "x64": cp.zeros(3), "gaps": cp.zeros((3, 2), np.float32)[:, 0]}
    given = [arrays.get(a, a) if isinstance(a, str) else a for a in arguments]
    with pytest.raises(TypeError, match="scale: parameter"):
        launch("scale", *given)


def test_members_of_a_structure_are_checked():
    with pytest.raises(TypeError, match="other members"):
        launch("product", cp.empty(1, np.float32), np.array((3, 5), [("C", "i4"), ("M", "i4")]))


def test_a_kernel_that_writes_beside_its_array_is_found():
    x, y = cp.zeros(8, np.float32), cp.empty(4, np.float32)
    with pytest.raises(strict_cupy.LaunchError, match="wrote outside"):
        launch("scale", x, y, np.int32(8), np.float32(1))
    y._array[...] = 0


def test_blocks_too_large_for_a_gpu_are_refused():
    kernel = cp.RawModule(code=TEXT).get_function("scale")
    x = cp.zeros(8, np.float32)
    with pytest.raises(strict_cupy.LaunchError, match="invalid launch"):
        kernel((1,), (2048,), (x, x, np.int32(8), np.float32(1)))
