"""Planted bugs, each of which some machine must find: proof that the kernels' tests can fail.

A fault of arithmetic shows in the numbers. A dropped barrier or guard often does not; the fake GPU
sees it happen, in the PTX that NVIDIA's compiler makes of it, and its message must say what it was.
"""

import os
import types
from importlib import import_module
from pathlib import Path

import cuda_on_cpu
import kernel_cases
import pytest

CPU = cuda_on_cpu.Machine(order=1)
CASES = kernel_cases.CASES


def replace_once(text, old, new):
    assert text.count(old) == 1, f"{text.count(old)} places for {old!r}"
    return text.replace(old, new)


# module, what is there, what is put there, the case that must fail
ARITHMETIC = {
    "a parameter left out": ("adam", "if (t.first[middle] <=", "if (t.first[middle] <", "Adam"),
    "eps inside the root": ("adam", "sqrtf(v) / root + eps", "sqrtf(v + eps) / root", "Adam"),
    "unlabelled pixels counted": (
        "loss",
        "sums[COUNT] += v;",
        "sums[COUNT] += 1.f;",
        "cross-entropy",
    ),
    "slope of the wrong loss": ("loss", "dice ? ratio - 2.f * y", "dice ? ratio - y", "Dice"),
    "exp without a bound": (
        "loss",
        "log1pf(expf(-fabsf(x)))",
        "log1pf(expf(-x))",
        "cross-entropy, extreme",
    ),
    "variance left biased": ("norm", "unbias * batch_var[c]", "batch_var[c]", "running averages"),
    "pad off by one": ("conv", "/ phases - back;", "/ phases - back + 1;", "first layer"),
    "stride taken for phases": ("conv", "return q * stride", "return q * phases", "whole channels"),
    "rows taken for columns": ("conv", "tap.ky * s.W + tap.kx", "tap.ky * s.H + tap.kx", "block"),
    "phases swapped": (
        "conv",
        "const int py = phase / s.phases, px = phase % s.phases;",
        "const int px = phase / s.phases, py = phase % s.phases;",
        "up, odd",
    ),
    "kernel not turned round": ("conv", "stride * (J - 1 - jy)", "stride * jy", "first layer"),
    "first channel ignored": ("conv", "all + c0 + c", "all + c", "block with skip"),
    "absent pixels in the variance": ("conv", "if (T::row(t, i) < rows) own", "own", "block"),
    "a slice too few": (
        "conv",
        "k0 < k_last; k0 += SLICE",
        "k0 + SLICE <= k_last; k0 += SLICE",
        "whole channels",
    ),
    "split counted twice": (
        "conv_dw",
        "(blockIdx.z + 1) * rows",
        "(blockIdx.z + 2) * rows",
        "block",
    ),
    "mean over the wrong count": (
        "norm",
        "const int count = min(rows, M - i * rows);",
        "const int count = rows;",
        "batch norm",
    ),
    "statistics taken for the batch's": (
        "norm",
        "if (from_batch) {",
        "if (true) {",
        "block, inference",
    ),
    "bias counted in the variance": (
        "norm",
        "block_sum(sum) / M;",
        "block_sum(sum) / M + b;",
        "block",
    ),
    "gradient through a closed ReLU": ("norm", "passes ? dy.at[j] : 0.f", "dy.at[j]", "block"),
    "last of equals": (
        "pool",
        "if (v.at[k] > best.at[k] ||",
        "if (v.at[k] >= best.at[k] ||",
        "pool, ties",
    ),
    "winner's row and column swapped": (
        "pool",
        "h % size * size + w % size",
        "w % size * size + h % size",
        "pool",
    ),
    "ReLU that swallows NaN": ("pointwise", "x[i] < 0.f ? 0.f : x[i]", "fmaxf(x[i], 0.f)", "relu"),
    "terms of a fragment swapped": (
        "conv_tf32",
        "left[i / 2][i % 2] = v.x;",
        "left[i / 2][i % 2] = v.y;",
        "TF32, 16 filters",
    ),
    "columns of a fragment swapped": (
        "conv_tf32",
        "down[2], left[i / 2], even)",
        "down[2], left[i / 2], odd)",
        "TF32, 64 filters",
    ),
    "rows of the result swapped": (
        "conv_tf32",
        "mma(up[1], up[3], down[1], down[3],",
        "mma(up[1], down[1], up[3], down[3],",
        "TF32, 32 filters",
    ),
    "threads of a warp out of order": (
        "conv_tf32",
        "g = t % 32 / 4;",
        "g = t % 8;",
        "TF32, 16 filters",
    ),
    "a share begun at the wrong term": (
        "conv",
        "tap.advance(k_first + 4",
        "tap.advance(4",
        "shared sums",
    ),
    "a share left out": ("reduce", "int p = 1; p < count", "int p = 2; p < count", "shared sums"),
    "bias added to no sum": ("reduce", "factor.at[j] + bias.at[j]", "factor.at[j]", "shared sums"),
    "momentum without its look ahead": (
        "muon",
        "g.at[j] + momentum * (m.at[j] - g.at[j]);",
        "m.at[j];",
        "Muon",
    ),
    "a kernel that grows": ("muon", "p.at[j] *= factor;", "", "Muon"),
    "part of a gram matrix left out": ("muon", "p < parts; ++p", "p < 1; ++p", "Muon"),
    "a channel for its neighbours": (
        "norm",
        "v.at[j] = row[c + j];",
        "v.at[j] = row[c];",
        "batch norm",
    ),
    "a part left out": ("reduce", "int r = 1; r < 8", "int r = 1; r < 7", "64 filters"),
}

# module, what is there, what is put there, the case that must fail, the fault
MEMORY = {
    "barrier before the product dropped": (
        "conv",
        "        __syncthreads();\n        fetch(",
        "        fetch(",
        "whole channels",
        "race in shared memory, read",
    ),
    "barrier after the product dropped": (
        "conv",
        "multiply(t, sum);\n        __syncthreads();",
        "multiply(t, sum);",
        "whole channels",
        "race in shared memory, write",
    ),
    "barrier for half the block": (
        "conv",
        "multiply(t, sum);\n        __syncthreads();",
        "multiply(t, sum);\n        if (t < 32) __syncthreads();",
        "whole channels",
        "barrier|race in shared memory, write",
    ),
    "barrier between two sums dropped": (
        "norm",
        "    all[t] = sum;\n    __syncthreads();",
        "    all[t] = sum;",
        "batch norm",
        "race in shared memory",
    ),
    "image's edge not guarded": (
        "conv",
        "y < (unsigned)s.H &&",
        "y <= (unsigned)s.H &&",
        "whole channels",
        "out of bounds",
    ),
    "weights' end not guarded": (
        "conv",
        "if (row >= rows || col >= cols) return v;",
        "if (col >= cols) return v;",
        "block",
        "out of bounds",
    ),
    "last pixels not guarded": (
        "conv",
        "if (m >= M) break;",
        "",
        "whole channels",
        "out of bounds",
    ),
    "odd filters not guarded": (
        "conv",
        "if (col + j < cols) v.at[j] = p[j];",
        "v.at[j] = p[j];",
        "first layer",
        "out of bounds",
    ),
    "skip read from the start of its pixel": (
        "conv",
        "skip + pixel * s.D + tap.c - s.C",
        "skip + pixel * s.D + tap.c",
        "block with skip",
        "out of bounds",
    ),
    "four at a time where channels are odd": (
        "conv",
        "CONV(conv_any, false, Tile<16, 4>)",
        "CONV(conv_any, true, Tile<16, 4>)",
        "first layer",
        "out of bounds|misaligned",
    ),
    "shares all write one part": (
        "conv",
        "(q / QH + part * s.N)",
        "(q / QH)",
        "shared sums",
        "race in global memory",
    ),
    "splits all write one part": (
        "conv_dw",
        "(long long)blockIdx.z * k_end * s.F",
        "0",
        "block",
        "race in global memory",
    ),
    "factor not rounded": (
        "conv_tf32",
        "store4(&b[k][col], to_tf32(v));",
        "store4(&b[k][col], v);",
        "TF32, 16 filters",
        "mma of a number that is not TF32",
    ),
    "half a warp": (
        "conv_tf32",
        "mma(up[0]",
        "if (t % 32 < 16) mma(up[0]",
        "TF32, 16 filters",
        "mma reached by a part of the warp",
    ),
    "barrier on tensor cores dropped": (
        "conv_tf32",
        "multiply(t, sum);\n        __syncthreads();",
        "multiply(t, sum);",
        "TF32, 64 filters",
        "race in shared memory, write",
    ),
    "one thread too many": (
        "pointwise",
        "if (i >= size) return;",
        "",
        "relu",
        "out of bounds",
    ),
}

# in minicnn/kernels/gpu/__init__.py: what is there, what is put there, the case, the error
HOST = {
    "arguments swapped": (
        "w, scale, b, y, moments, s)",
        "w, scale, y, b, moments, s)",
        "head",
        None,
    ),
    "arrays with gaps let through": (
        "return x if x.flags.c_contiguous and x.data.ptr % 16 == 0 else x.copy()",
        "return x",
        "strided",
        (TypeError, "gaps"),
    ),
    "a block short of the last pixels": (
        "return -(-size // per_block)",
        "return max(1, size // per_block)",
        "block",
        None,
    ),
}


@pytest.fixture
def kernels(stand_in):
    return import_module("minicnn.kernels.gpu")


def plant(kernels, monkeypatch, module, old, new):
    good = kernels.launches.source
    assert old in good(module)
    monkeypatch.setattr(
        kernels.launches,
        "source",
        lambda name: replace_once(good(name), old, new) if name == module else good(name),
    )


@pytest.mark.parametrize("name", ARITHMETIC)
def test_wrong_arithmetic_shows_in_the_numbers(name, kernels, stand_in, monkeypatch, rng):
    *mutation, case = ARITHMETIC[name]
    plant(kernels, monkeypatch, *mutation)
    monkeypatch.setattr(stand_in, "machine", CPU)
    with pytest.raises((AssertionError, cuda_on_cpu.LaunchError), match=r"Not equal|wrote outside"):
        CASES[case](kernels, stand_in.module, rng)


@pytest.fixture
def fake_gpu(cupy):
    """The real CuPy's kernels, on the fake GPU; every array an allocation of its own."""
    if "MINICNN_FAKE_GPU" not in os.environ:
        pytest.skip("not on a real GPU")
    cupy.cuda.set_allocator(None)
    yield import_module("minicnn.kernels.gpu"), cupy
    cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MEMORY)
def test_wrong_access_to_memory_is_seen(name, fake_gpu, monkeypatch, rng):
    *mutation, case, fault = MEMORY[name]
    kernels, cupy = fake_gpu
    plant(kernels, monkeypatch, *mutation)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match=fault):
        CASES[case](kernels, cupy, rng)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "old, new",
    [("{%4, %5, %6, %7}", "{%4, %6, %5, %7}"), ("{%8, %9}", "{%9, %8}")],
    ids=["a", "b"],
)
def test_swapped_operands_of_the_instruction_show(old, new, fake_gpu, monkeypatch, rng):
    """Only PTX holds the instruction itself."""
    kernels, cupy = fake_gpu
    plant(kernels, monkeypatch, "conv_tf32", old, new)
    with pytest.raises(AssertionError, match="Not equal"):
        CASES["TF32, 16 filters"](kernels, cupy, rng)


@pytest.mark.parametrize("name", ["factor not rounded", "half a warp"])
def test_wrong_use_of_tensor_cores_is_refused_by_the_cpu(name, kernels, stand_in, monkeypatch, rng):
    *mutation, case, fault = MEMORY[name]
    plant(kernels, monkeypatch, *mutation)
    monkeypatch.setattr(stand_in, "machine", CPU)
    with pytest.raises(cuda_on_cpu.LaunchError, match=fault):
        CASES[case](kernels, stand_in.module, rng)


def strided(kernels, xp, rng):
    (x,) = (xp.asarray(a) for a in kernel_cases.draw(rng, (2, 6, 6, 8)))
    kernels.max_pool2d(x[:, :, :, ::2])


@pytest.mark.parametrize("name", HOST)
def test_wrong_launches_are_refused_or_show(name, kernels, stand_in, monkeypatch, rng):
    old, new, case, error = HOST[name]
    text = replace_once(Path(kernels.__file__).read_text(), old, new)
    mutant = types.ModuleType("mutant")
    mutant.__file__ = kernels.__file__
    exec(compile(text, "mutant", "exec"), vars(mutant))
    run = CASES.get(case, strided)
    if error is None:
        with pytest.raises(AssertionError, match="Not equal"):
            run(mutant, stand_in.module, rng)
    else:
        with pytest.raises(error[0], match=error[1]):
            run(mutant, stand_in.module, rng)


@pytest.mark.parametrize("order", [0, 1, 5])
def test_a_dropped_barrier_shows_in_the_numbers_too(order, kernels, stand_in, monkeypatch, rng):
    mutation = (
        "conv",
        "multiply(t, sum);\n        __syncthreads();",
        "multiply(t, sum);",
    )
    plant(kernels, monkeypatch, *mutation)
    monkeypatch.setattr(stand_in, "machine", cuda_on_cpu.Machine(order))
    with pytest.raises(AssertionError, match="Not equal"):
        CASES["whole channels"](kernels, stand_in.module, rng)


def test_a_barrier_in_a_branch_is_refused_by_the_cpu(kernels, stand_in, monkeypatch, rng):
    _, old, new, case, _ = MEMORY["barrier for half the block"]
    plant(kernels, monkeypatch, "conv", old, new)
    monkeypatch.setattr(stand_in, "machine", CPU)
    with pytest.raises(cuda_on_cpu.LaunchError, match="barrier"):
        CASES[case](kernels, stand_in.module, rng)
