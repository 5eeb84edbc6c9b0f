"""Every kernel through NVIDIA's compiler, for every GPU it may meet: does it fit, and well?

A missing compiler fails these tests; it does not skip them.
"""

import re
from importlib import import_module
from pathlib import Path

import nvrtc
import pytest

REGISTERS = 65_536  # of a multiprocessor
SHARED = 48 * 1024  # of a block, without asking for more


@pytest.fixture
def kernels(stand_in):
    return import_module("minicnn.kernels.gpu")


def test_the_compiler_is_the_one_that_users_have():
    assert nvrtc.version() == (12, 9)


@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_kernels_fit_the_gpu(architecture, kernels):
    for module in nvrtc.modules(kernels, architecture):
        text = kernels.launches.source(module)
        found = nvrtc.resources(text, architecture)
        assert found.keys() == nvrtc.threads(text, architecture).keys()
        for name, used in found.items():
            threads = nvrtc.threads(text, architecture)[name]
            assert used.spilled == 0 and used.stack == 0, f"{name} on sm_{architecture}: {used}"
            assert -(-used.registers // 8) * 8 * threads <= REGISTERS, f"{name}: {used}"
            assert used.shared <= SHARED, f"{name}: {used}"


def test_the_launches_are_of_the_size_that_kernels_are_compiled_for(kernels):
    """__launch_bounds__ is a promise; a larger block would not start."""
    bounds = {}
    for module in kernels.launches.FILES:
        bounds |= nvrtc.threads(kernels.launches.source(module), 80)
    text = Path(kernels.__file__).read_text()
    assert kernels.launches.THREADS == 256 and "(32, 8)" in text
    variants = re.findall(r'\("(\w+)", (\d+), (\d+)\)|"(any)", (\d+), (\d+)', text)
    assert len(variants) == 4
    for variant in variants:
        name, _, threads = (v for v in variant if v)
        assert bounds[f"conv_{name}"] == bounds[f"conv_dw_{name}"] == int(threads)
        for prefix in () if name == "any" else ("conv_tf32", "conv_dw_tf32"):
            assert bounds[f"{prefix}_{name}"] == int(threads)
    products = {"muon_gram", "muon_product", "muon_turn"}  # of tiles
    assert {bounds[name] for name in products} == {import_module("minicnn.kernels.gpu.muon").BLOCK}
    others = {b for n, b in bounds.items() if not n.startswith("conv_") and n not in products}
    assert others == {256}


def test_tensor_cores_are_used_from_the_architecture_on_that_has_them(kernels):
    text = kernels.launches.source("conv_tf32")
    assert "mma.sync" in nvrtc.ptx(text, kernels.TENSOR_CORES)
    with pytest.raises(RuntimeError, match="sm_80 or higher"):
        nvrtc.resources(text, 75)


def test_a_spill_and_a_warning_would_be_seen(kernels):
    greedy = """extern "C" __global__ void __launch_bounds__(1024) greedy(float* x) {
        float v[200];
        #pragma unroll
        for (int i = 0; i < 200; ++i) v[i] = x[i * 1024 + threadIdx.x];
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 200; ++i)
            x[i * 1024 + threadIdx.x] = v[i] * v[199 - i] + v[i * 7 % 200];
    }"""
    assert nvrtc.resources(greedy, 80)["greedy"].spilled > 0
    with pytest.raises(RuntimeError, match="warns"):
        nvrtc.ptx(
            'extern "C" __global__ void k(int* x) { unsigned i = 0; if (i < 0) x[0] = 1; }', 80
        )
    with pytest.raises(RuntimeError, match="error"):
        nvrtc.ptx('extern "C" __global__ void k(int* x) { y = 0; }', 80)
