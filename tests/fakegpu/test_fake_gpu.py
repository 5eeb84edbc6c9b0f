"""The GPU made of a CPU, and what only it shows: the real CuPy's own streams, pools and launches.

These tests plant faults in the code around the kernels. `tests/gpu/test_gpu_mutants.py` plants them
in the kernels.
"""

import ctypes
import os
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from minicnn import losses
from minicnn.backend import out_of_memory, staged

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("MINICNN_FAKE_GPU" not in os.environ, reason="of the fake GPU only"),
]


@pytest.fixture
def fake():
    library = ctypes.CDLL(os.environ["MINICNN_FAKE_GPU"])
    yield library
    library.fakegpu_fail_after(ctypes.c_long(-1))


@pytest.fixture
def exact(cupy):
    """Every array an allocation of its own: what is beside it belongs to nobody."""
    cupy.cuda.set_allocator(None)
    yield cupy
    cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)


def launch(cupy, text, *arguments, name="k", grid=1, block=1):
    cupy.RawModule(code=text).get_function(name)((grid,), (block,), arguments)
    cupy.cuda.get_current_stream().synchronize()


FAULTS = {
    "a float too far": ("out of bounds", "x[n] = 1.f;", 1, 1),
    "before the first": ("out of bounds", "x[-1] = 1.f;", 1, 1),
    "off its alignment": ("misaligned", "*(float4*)(x + 1) = make_float4(0, 0, 0, 0);", 1, 1),
    "two blocks at one place": ("race in global memory", "x[0] = blockIdx.x;", 2, 1),
    "two threads at one place": (
        "race in shared memory",
        "__shared__ float s[2]; s[threadIdx.x] = 1.f; x[threadIdx.x] = s[1 - threadIdx.x];",
        1,
        2,
    ),
    "a barrier for one": (
        "barrier",
        "if (threadIdx.x == 0) __syncthreads(); x[threadIdx.x] = 1.f;",
        1,
        2,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_gpu_leaves_undefined_is_an_error(fault, exact):
    what, body, grid, block = FAULTS[fault]
    text = f'extern "C" __global__ void k(float* x, int n) {{ {body} }}'
    with pytest.raises(exact.cuda.runtime.CUDARuntimeError, match=what):
        launch(exact, text, exact.zeros(5, "f4"), np.int32(5), grid=grid, block=block)
    assert float(exact.ones(3).sum()) == 3  # and the next program runs


def test_memory_that_was_given_back_is_nobodys(exact):
    text = 'extern "C" __global__ void k(float* x, const float* y) { x[0] = y[0]; }'
    x, y = exact.zeros(1, "f4"), exact.zeros(1, "f4")
    address = np.uint64(y.data.ptr)
    del y
    with pytest.raises(exact.cuda.runtime.CUDARuntimeError, match="out of bounds"):
        launch(exact, text, x, address)


def test_memory_of_another_gpu_is_refused(exact):
    text = 'extern "C" __global__ void k(float* x, const float* y) { x[0] = y[0]; }'
    with exact.cuda.Device(1):
        theirs = exact.zeros(1, "f4")
        exact.cuda.get_current_stream().synchronize()
    with pytest.raises(exact.cuda.runtime.CUDARuntimeError, match="another GPU"):
        launch(exact, text, exact.zeros(1, "f4"), theirs)


def test_both_gpus_compute(cupy, rng):
    """Kernels are loaded on each: one of another device would be refused."""
    gpu = import_module("minicnn.kernels.gpu")
    x = rng.standard_normal((1, 4, 4, 4)).astype(np.float32)
    results = []
    for device in (0, 1, 0):
        with cupy.cuda.Device(device):
            results.append(gpu.max_pool2d(cupy.asarray(x))[0].get())
            assert gpu.has_tensor_cores()
    assert (results[0] == results[1]).all() and (results[0] == results[2]).all()


def test_numbers_as_wide_as_pythons_give_other_losses(cupy, rng, monkeypatch):
    """Without the conversion at launch: the fault that the stand-in could not show."""
    launches = import_module("minicnn.kernels.gpu.launches")
    x = cupy.asarray(rng.standard_normal((1, 8, 8, 1)).astype(np.float32))
    y = (x > 0).astype(np.float32)
    right = float(losses.bce_with_logits(x, y, 3)[0])
    good = launches._argument
    monkeypatch.setattr(
        launches,
        "_argument",
        lambda p, kind, v: np.int32(v) if kind == "float" else good(p, kind, v),
    )
    assert abs(float(losses.bce_with_logits(x, y, 3)[0]) - right) > 0.1


BATCHES = [(np.full((2, 4, 4, 3), i, np.uint8),) for i in range(7)]


def sums(batches):
    """The largest number of each batch; asked for after the last one is through."""
    return [int(value) for value in [images.max() for (images,) in batches]]


@pytest.mark.parametrize(
    "old, new",
    [
        ("stream.wait_event(self.copied)", "pass"),
        ("self.copied.synchronize()", "pass"),
        ("copying.wait_event(self.used)", "pass"),
        ("self.used.record(stream)", "pass"),
    ],
)
def test_streams_are_as_late_as_they_may_be(old, new, cupy, monkeypatch):
    """A wait that is left out shows: of the copies for the kernels, or the other way about."""
    staging = import_module("minicnn.kernels.gpu.staging")
    text = Path(staging.__file__).read_text()
    assert text.count(old) == 1
    mutant = {"__name__": "mutant"}
    exec(compile(text.replace(old, new), staging.__file__, "exec"), mutant)
    good, found = list(range(7)), []
    for eager in ("0", "1"):  # the kernels: as late as may be, then as early
        monkeypatch.setenv("FAKEGPU_EAGER", eager)
        assert sums(staged(BATCHES, "gpu")) == good
        found.append(sums(mutant["staged"](BATCHES)) != good)
    assert any(found)


def test_pages_live_until_their_last_copy(cupy, fake):
    """Left early, with a copy under way: what takes its memory next must not go along with it."""
    running = staged(BATCHES, "gpu")
    (images,) = next(running)
    running.close()
    cupy.cuda.alloc_pinned_memory(images.nbytes)
    for _ in range(2):
        memory = cupy.cuda.alloc_pinned_memory(images.nbytes)
        np.frombuffer(memory, np.uint8, images.nbytes)[...] = 99
    cupy.cuda.Device().synchronize()
    assert int(images.max()) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # CuPy's Stream
def test_memory_may_run_out_at_any_call(cupy, fake, rng):
    """The error says so, whichever call it is: an array, a stream, a module, a launch."""
    gpu = import_module("minicnn.kernels.gpu")
    pool, host = cupy.get_default_memory_pool(), rng.standard_normal((1, 8, 8, 4)).astype("f4")

    def work():
        pool.free_all_blocks()
        for name in list(vars(gpu)):
            if hasattr(getattr(gpu, name), "cache_clear"):
                getattr(gpu, name).cache_clear()
        for batch in staged([(host,), (host,)], "gpu"):
            y, cache = gpu.max_pool2d(batch[0])
            gpu.max_pool2d_backward(y, cache).get()

    work()
    for calls in range(100):
        fake.fakegpu_fail_after(ctypes.c_long(calls))
        try:
            work()
        except Exception as error:
            fake.fakegpu_fail_after(ctypes.c_long(-1))
            assert out_of_memory(error), repr(error)
        else:
            break
    assert 5 < calls < 99
