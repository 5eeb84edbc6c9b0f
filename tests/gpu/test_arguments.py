"""What a caller may hand to a kernel: the CPU's numbers come of it, or an error; never others."""

from importlib import import_module

import cuda_on_cpu
import numpy as np
import pytest

from minicnn import losses, ops
from minicnn.kernels import cpu
from minicnn.ops import BlockWeights, Statistics

GPU = pytest.param("cupy", marks=pytest.mark.gpu)
SHAPE = (1, 8, 8, 1)
THREES = (3, 3.0, np.float64(3), np.float32(3), np.int64(3), np.uint8(3))


@pytest.fixture(params=["stand_in", GPU])
def xp(request):
    module = request.getfixturevalue(request.param)
    return module.module if request.param == "stand_in" else module


@pytest.fixture
def mask(rng):
    logits = rng.standard_normal(SHAPE).astype(np.float32)
    return logits, (rng.random(SHAPE) < 0.4).astype(np.float32), rng.random(SHAPE) < 0.8


def same(on_gpu, on_cpu):
    for mine, theirs in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_allclose(mine.get(), theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("number", THREES, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("loss", [losses.bce_with_logits, losses.soft_dice, losses.soft_jaccard])
def test_a_number_of_any_type_is_that_number(loss, number, xp, mask):
    logits, labels, _ = mask
    same(loss(xp.asarray(logits), xp.asarray(labels), number), loss(logits, labels, 3.0))


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("loss", [losses.bce_with_logits, losses.soft_dice, losses.soft_jaccard])
def test_validity_of_any_type_leaves_out_the_same_pixels(loss, kind, xp, mask):
    logits, labels, valid = mask
    expected = loss(logits, labels, valid=valid.astype(np.float32))
    same([np_like(a) for a in loss(logits, labels, valid=valid.astype(kind))], expected)
    device = [xp.asarray(a) for a in (logits, labels, valid.astype(kind))]
    same(loss(*device[:2], valid=device[2]), expected)


class np_like(np.ndarray):
    """A host array with CuPy's `get`."""

    def __new__(cls, array):
        return np.asarray(array).view(cls)

    def get(self):
        return np.asarray(self)


@pytest.mark.parametrize("loss", [losses.bce_with_logits, losses.soft_dice, losses.soft_jaccard])
def test_what_is_left_out_may_hold_nan(loss, xp, mask):
    logits, labels, valid = mask
    expected = loss(logits, labels, valid=valid.astype(np.float32))
    logits = np.where(valid, logits, np.nan).astype(np.float32)
    assert np.isfinite(expected[1]).all()
    same([np_like(a) for a in loss(logits, labels, valid=valid)], expected)
    device = [xp.asarray(a) for a in (logits, labels, valid)]
    same(loss(*device[:2], valid=device[2]), expected)


@pytest.mark.parametrize("mean, scale", [(127, 64), (127.0, 64.0), (np.int64(127), np.float64(64))])
def test_normalising_by_any_numbers(mean, scale, xp, rng):
    pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    gpu = import_module("minicnn.kernels.gpu")
    y = gpu.normalise(xp.asarray(pixels), mean, scale).get()
    np.testing.assert_allclose(y, (pixels - 127.0) / 64, rtol=1e-6)
    with pytest.raises(TypeError, match="pixels is unsigned char"):
        gpu.normalise(xp.asarray(pixels.astype(np.float32)), mean, scale)


def block(xp, rng):
    """Arguments of conv_bn_relu, on the device."""
    sizes = (1, 4, 4, 4), (1, 4, 4, 4), (3, 3, 8, 4), (4,), (4,), (4,)
    return [xp.asarray(rng.standard_normal(s).astype(np.float32)) for s in sizes]


WRONG = {
    "skip of float64": lambda a: a.__setitem__(1, a[1].astype(np.float64)),
    "skip of another size": lambda a: a.__setitem__(1, a[1][:, :2, :2]),
    "bias too short": lambda a: a.__setitem__(3, a[3][:2]),
    "gamma too short": lambda a: a.__setitem__(4, a[4][:2]),
    "beta too short": lambda a: a.__setitem__(5, a[5][:2]),
    "mean of float64": lambda a: a.append(Statistics(a[3].astype(np.float64), a[4] * a[4])),
    "variance too short": lambda a: a.append(Statistics(a[3], (a[4] * a[4])[:2])),
    "weights of float64": lambda a: a.__setitem__(2, a[2].astype(np.float64)),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_block_refuses_arrays_that_do_not_fit(fault, xp, rng):
    gpu = import_module("minicnn.kernels.gpu")
    arguments = block(xp, rng)
    WRONG[fault](arguments)
    with pytest.raises((TypeError, ValueError)):
        gpu.conv_bn_relu(*arguments[:2], BlockWeights(*arguments[2:6]), *arguments[6:], pad=1)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "batch_norm", "relu", "max_pool2d"])
@pytest.mark.parametrize("change", [lambda a: a[:, :-1], lambda a: a[..., :-1]])
def test_a_gradient_of_another_size_is_refused(name, change, xp, rng):
    gpu = import_module("minicnn.kernels.gpu")
    x, _, w, b, *_ = block(xp, rng)
    w = xp.ascontiguousarray(w[:, :, :4])
    given = {"conv2d": (w, b), "conv_transpose2d": (w, b), "batch_norm": (b, b)}.get(name, ())
    y, cache = getattr(gpu, name)(x, *given)
    with pytest.raises(ValueError):
        getattr(gpu, f"{name}_backward")(change(y), cache)


def test_adam_refuses_what_its_table_would_hide(xp):
    gpu = import_module("minicnn.kernels.gpu")
    good = [xp.zeros(4, np.float32) for _ in range(4)]
    for wrong in (xp.zeros(4), xp.zeros(8, np.float32)[::2]):
        with pytest.raises(TypeError, match="float32"):
            gpu.adam([(*good[:3], wrong)], (0.9, 0.999), 1e-3, 1, 1e-8)
    with pytest.raises(ValueError, match="one shape"):
        gpu.adam([(*good[:3], xp.zeros(3, np.float32))], (0.9, 0.999), 1e-3, 1, 1e-8)


def test_numbers_too_large_for_a_kernel_are_refused(xp):
    launches = import_module("minicnn.kernels.gpu.launches")
    a = xp.zeros(4, np.float32)
    for size in (2**31, 1.5):
        with pytest.raises((TypeError, OverflowError)):
            launches.launch("reduce", "sum_parts", (1,), (32, 8), a, a, 1, size)
    with pytest.raises(ValueError, match="zip"):
        launches.launch("reduce", "sum_parts", (1,), (32, 8), a, a, 1)


def test_parameters_are_read_as_the_compiler_reads_them(stand_in):
    """g++'s preprocessor is the oracle for what `signatures` finds in the text."""
    launches = import_module("minicnn.kernels.gpu.launches")
    for module in launches.FILES:
        text = launches.source(module)
        assert launches.signatures(text) == {
            name: [(p.type, p.name) for p in parameters]
            for name, parameters in cuda_on_cpu.signatures(text).items()
        }


def test_a_skip_of_another_size_is_refused_everywhere(rng):
    """By the plain reading and by the CPU's kernels as well."""
    arrays = block(np, rng)
    arrays[1] = arrays[1][:, :2, :2]
    for kernels in (ops, cpu):
        with pytest.raises(ValueError):
            kernels.conv_bn_relu(*arrays[:2], BlockWeights(*arrays[2:]), pad=1)
