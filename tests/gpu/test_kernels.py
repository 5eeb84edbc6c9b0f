"""The CUDA kernels against the plain ops: compiled by g++, with the threads of a block in several
orders; with `-m gpu`, on the GPU there is, or as the PTX of NVIDIA's compiler on the fake one."""

from importlib import import_module
from types import SimpleNamespace

import cuda_on_cpu
import kernel_cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicnn.backend import DeviceError, set_precision
from minicnn.ops import BlockWeights

MACHINES = {
    "forward": cuda_on_cpu.Machine(order=0),
    "backward": cuda_on_cpu.Machine(order=1),
    "shuffled": cuda_on_cpu.Machine(order=7),
}
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
channels = st.sampled_from([1, 3, 4, 5, 8, 12, 16])
fours = st.sampled_from([4, 8, 12, 16, 20])
filters = st.sampled_from([1, 2, 4, 7, 16, 20, 36, 68])
sides = st.integers(1, 17)
sampled = settings(max_examples=25)


GPU = pytest.param("cupy", marks=pytest.mark.gpu)  # the real one


def on(machine, request):
    """The kernels and the array module they work with."""
    if machine == "cupy":
        cupy = request.getfixturevalue("cupy")
        return import_module("minicnn.kernels.gpu"), cupy
    stand_in = request.getfixturevalue("stand_in")
    request.getfixturevalue("monkeypatch").setattr(stand_in, "machine", MACHINES[machine])
    return import_module("minicnn.kernels.gpu"), stand_in.module


@pytest.fixture(params=[*MACHINES, GPU])
def machine(request):
    return on(request.param, request)


@pytest.fixture(params=["shuffled", GPU])
def fast_machine(request):
    return on(request.param, request)


@pytest.mark.parametrize("name", kernel_cases.CASES)
def test_kernels_equal_the_plain_ops(name, machine, rng):
    kernels, xp = machine
    if name in kernel_cases.TENSOR_CASES and not kernels.has_tensor_cores():
        pytest.skip("this GPU has no tensor cores for TF32")
    kernel_cases.CASES[name](kernels, xp, rng)


@sampled
@given(
    sizes=st.tuples(st.integers(1, 2), sides, sides, channels, filters),
    K=st.integers(1, 5),
    stride=st.integers(1, 3),
    pad=st.tuples(st.tuples(*[st.integers(0, 3)] * 2), st.tuples(*[st.integers(0, 3)] * 2)),
    rng=seeds,
)
def test_convolutions_of_any_shape(fast_machine, sizes, K, stride, pad, rng):
    N, H, W, C, F = sizes
    H, W = (max(side, K - sum(edge)) for side, edge in zip((H, W), pad, strict=True))
    case = kernel_cases.convolution(N, H, W, C, F, K, stride, pad)
    case(*fast_machine, rng)


@sampled
@given(
    sizes=st.tuples(st.integers(1, 2), sides, sides, channels, filters),
    K=st.integers(2, 5),
    stride=st.integers(1, 3),
    rng=seeds,
)
def test_transposed_convolutions_of_any_shape(fast_machine, sizes, K, stride, rng):
    crop = int(rng.integers(0, (K - 1) // 2 + 1))
    case = kernel_cases.convolution(*sizes, K, stride, crop, "conv_transpose2d")
    case(*fast_machine, rng)


@sampled
@given(
    sizes=st.tuples(st.integers(1, 2), sides, sides, channels, st.just(0) | channels, filters),
    K=st.integers(1, 4),
    training=st.booleans(),
    rng=seeds,
)
def test_blocks_of_any_shape(fast_machine, sizes, K, training, rng):
    training &= np.prod(sizes[:3]) > 8  # else the variance can be next to 0, and rounding shows
    case = kernel_cases.block(*sizes, K, ((K // 2, K - 1 - K // 2),) * 2, training)
    case(*fast_machine, rng)


@sampled
@given(
    sizes=st.tuples(st.integers(1, 2), sides, sides, fours, fours | st.sampled_from([36, 68])),
    K=st.integers(2, 5),
    stride=st.integers(1, 3),
    name=st.sampled_from(["conv2d", "conv_transpose2d"]),
    rng=seeds,
)
def test_tensor_cores_on_any_shape(fast_machine, sizes, K, stride, name, rng):
    if not fast_machine[0].has_tensor_cores():
        pytest.skip("this GPU has no tensor cores for TF32")
    pad = K // 2 if name == "conv2d" else int(rng.integers(0, (K - 1) // 2 + 1))
    kernel_cases.convolution_tf32(*sizes, K, stride, pad, name)(*fast_machine, rng)


@pytest.mark.parametrize(
    "asked, capability, launched",
    [
        ("auto", "80", "conv_tf32_16"),
        ("auto", "75", "conv_16"),
        ("tf32", "80", "conv_tf32_16"),
        ("float32", "80", "conv_16"),
    ],
)
def test_tensor_cores_are_used_where_they_are(
    asked, capability, launched, stand_in, monkeypatch, rng
):
    """Unless float32 is asked for; channels that come not in fours are float32 all the same."""
    arrays = kernel_cases.draw(rng, (1, 4, 4, 4), (2, 2, 4, 4), 4)
    odd = kernel_cases.draw(rng, (1, 4, 4, 3), (2, 2, 3, 4), 4)
    monkeypatch.setattr(stand_in, "compute_capability", capability)
    set_precision(asked)
    kernels = import_module("minicnn.kernels.gpu")
    kernels.conv2d(*map(stand_in.module.asarray, arrays))
    kernels.conv2d(*map(stand_in.module.asarray, odd))
    assert stand_in.counts[f"launch {launched}"] == stand_in.counts["launch conv_any"] == 1


def test_an_older_gpu_refuses_tensor_cores_in_one_line(stand_in, monkeypatch, rng):
    monkeypatch.setattr(stand_in, "compute_capability", "75")
    set_precision("tf32")
    kernels = import_module("minicnn.kernels.gpu")
    x, w, b = kernel_cases.draw(rng, (1, 4, 4, 4), (2, 2, 4, 4), 4)
    with pytest.raises(DeviceError, match=r"of sm_80 or later, and this is an sm_75$"):
        kernels.conv2d(*map(stand_in.module.asarray, (x, w, b)))


@sampled
@given(
    sizes=st.tuples(st.integers(1, 2), sides, sides, fours, st.just(0) | fours, fours),
    K=st.integers(2, 4),
    training=st.booleans(),
    shares=st.integers(1, 3),
    rng=seeds,
)
def test_sums_may_be_shared_by_any_number_of_blocks(fast_machine, sizes, K, training, shares, rng):
    """As if the GPU were as large as that, and no share too small."""
    kernels, xp = fast_machine
    training &= np.prod(sizes[:3]) > 8
    case = kernel_cases.block(*sizes, K, ((K // 2, K - 1 - K // 2),) * 2, training)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "LEAST", shares)
        case(kernels, xp, rng)


def test_few_pixels_are_shared_out_and_many_are_not(stand_in, rng):
    """The deep levels of a batch of 16 tiles; an A100's 108 multiprocessors."""
    gpu = import_module("minicnn.kernels.gpu")
    gpu._multiprocessors = lambda device: 108
    shares = []
    for size, C, F in ((256, 16, 16), (64, 64, 64), (32, 128, 128), (16, 256, 256), (2, 256, 256)):
        x = SimpleNamespace(shape=(16, size, size, C))
        s = gpu._describe(x, None, 4, 1, ((1, 2), (1, 2)), (16, size, size, F))
        shares.append(gpu._shares(s))
    assert shares == [1, 1, 1, 2, 16]


def test_a_batch_of_none(fast_machine):
    """CuPy makes a grid of 0 blocks one of 1: kernels must look before they write."""
    kernels, xp = fast_machine
    x, w, b = xp.empty((0, 4, 4, 4), "f4"), xp.zeros((2, 2, 4, 8), "f4"), xp.zeros(8, "f4")
    assert kernels.conv2d(x, w, b)[0].shape == (0, 3, 3, 8)
    assert kernels.max_pool2d(x)[0].shape == (0, 2, 2, 4)


def test_sums_do_not_depend_on_the_order_of_threads(stand_in, monkeypatch, rng):
    """No atomics: a run on one GPU can be repeated to the bit."""
    gpu = import_module("minicnn.kernels.gpu")
    arrays = kernel_cases.draw(rng, (2, 20, 20, 4), (4, 4, 4, 8), 8, 8, 8)
    x, *rest = (stand_in.module.asarray(a) for a in arrays)
    results = []
    for order in (0, 1, 3):
        monkeypatch.setattr(stand_in, "machine", cuda_on_cpu.Machine(order))
        y, cache = gpu.conv_bn_relu(x, None, BlockWeights(*rest))
        dx, _, gradients = gpu.conv_bn_relu_backward(y, cache)
        results.append([a.get() for a in (y, dx, *gradients)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
