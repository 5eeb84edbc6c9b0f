"""The CUDA kernels against the plain ops: compiled by g++, with the threads of a block in several
orders, and as the PTX that NVIDIA's compiler makes of them."""

from importlib import import_module

import cuda_on_cpu
import kernel_cases
import numpy as np
import ptx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

MACHINES = {
    "forward": cuda_on_cpu.Machine(order=0),
    "backward": cuda_on_cpu.Machine(order=1),
    "shuffled": cuda_on_cpu.Machine(order=7),
    "ptx": ptx.Machine(architecture=80),
}
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
channels = st.sampled_from([1, 3, 4, 5, 8, 12, 16])
filters = st.sampled_from([1, 2, 4, 7, 16, 20, 36, 68])
sides = st.integers(1, 17)
sampled = settings(max_examples=25)


@pytest.fixture(params=MACHINES)
def kernels(request, stand_in, monkeypatch):
    monkeypatch.setattr(stand_in, "machine", MACHINES[request.param])
    return import_module("minicnn.kernels.gpu")


@pytest.fixture
def fast_kernels(stand_in, monkeypatch):
    monkeypatch.setattr(stand_in, "machine", MACHINES["shuffled"])
    return import_module("minicnn.kernels.gpu")


@pytest.mark.parametrize("name", kernel_cases.CASES)
def test_kernels_equal_the_plain_ops(name, kernels, stand_in, rng):
    kernel_cases.CASES[name](kernels, stand_in.module, rng)


@sampled
@given(
    sizes=st.tuples(st.integers(1, 2), sides, sides, channels, filters),
    K=st.integers(1, 5),
    stride=st.integers(1, 3),
    pad=st.tuples(st.tuples(*[st.integers(0, 3)] * 2), st.tuples(*[st.integers(0, 3)] * 2)),
    rng=seeds,
)
def test_convolutions_of_any_shape(fast_kernels, stand_in, sizes, K, stride, pad, rng):
    N, H, W, C, F = sizes
    H, W = (max(side, K - sum(edge)) for side, edge in zip((H, W), pad, strict=True))
    case = kernel_cases.convolution(N, H, W, C, F, K, stride, pad)
    case(fast_kernels, stand_in.module, rng)


@sampled
@given(
    sizes=st.tuples(st.integers(1, 2), sides, sides, channels, filters),
    K=st.integers(2, 5),
    stride=st.integers(1, 3),
    rng=seeds,
)
def test_transposed_convolutions_of_any_shape(fast_kernels, stand_in, sizes, K, stride, rng):
    crop = int(rng.integers(0, (K - 1) // 2 + 1))
    case = kernel_cases.convolution(*sizes, K, stride, crop, "conv_transpose2d")
    case(fast_kernels, stand_in.module, rng)


@sampled
@given(
    sizes=st.tuples(st.integers(1, 2), sides, sides, channels, st.just(0) | channels, filters),
    K=st.integers(1, 4),
    training=st.booleans(),
    rng=seeds,
)
def test_blocks_of_any_shape(fast_kernels, stand_in, sizes, K, training, rng):
    case = kernel_cases.block(*sizes, K, ((K // 2, K - 1 - K // 2),) * 2, training)
    case(fast_kernels, stand_in.module, rng)


def test_a_batch_of_none(fast_kernels, stand_in):
    """CuPy makes a grid of 0 blocks one of 1: kernels must look before they write."""
    xp = stand_in.module
    x, w, b = xp.empty((0, 4, 4, 4), "f4"), xp.zeros((2, 2, 4, 8), "f4"), xp.zeros(8, "f4")
    assert fast_kernels.conv2d(x, w, b)[0].shape == (0, 3, 3, 8)
    assert fast_kernels.max_pool2d(x)[0].shape == (0, 2, 2, 4)


def test_sums_do_not_depend_on_the_order_of_threads(stand_in, monkeypatch, rng):
    """No atomics: a run on one GPU can be repeated to the bit."""
    gpu = import_module("minicnn.kernels.gpu")
    arrays = kernel_cases.draw(rng, (2, 20, 20, 4), (4, 4, 4, 8), 8, 8, 8)
    x, *rest = (stand_in.module.asarray(a) for a in arrays)
    results = []
    for order in (0, 1, 3):
        monkeypatch.setattr(stand_in, "machine", cuda_on_cpu.Machine(order))
        y, cache = gpu.conv_bn_relu(x, None, *rest)
        results.append(
            [a.get() for a in (y, *gpu.conv_bn_relu_backward(y, cache)) if a is not None]
        )
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
