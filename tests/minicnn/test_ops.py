"""Every op three ways: its loops, a random-direction gradient check, and its adjoint.

Hypothesis draws the shapes: one pixel, odd sizes, strides that do not divide, lopsided padding.
All tests run on the plain ops and on the fast kernels, on the CPU and, where there is one, a GPU.
"""

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import minicnn as mc
from minicnn import naive
from minicnn.gradcheck import check_gradients
from minicnn.ops import BlockWeights, Statistics, pads

DIGITS = {np.float32: 1e-4, np.float64: 1e-10}  # rounding allowed, relative to the largest value
sizes = st.integers(1, 3)
dtypes = st.sampled_from(list(DIGITS))
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@pytest.fixture(params=["plain", "fast"])
def ops(request, xp):
    """The readable ops, and the kernels that stand in for them on this device."""
    return mc.ops if request.param == "plain" else mc.kernels_for(xp.empty(0))


def close(actual, expected):
    """Equal within rounding, relative to the largest value; the same shape and dtype."""
    actual, expected = mc.to_host(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    largest = np.abs(expected).max(initial=1, where=np.isfinite(expected))
    atol = largest * DIGITS[expected.dtype.type]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def all_close(actual, expected):
    for mine, theirs in zip(actual, expected, strict=True):
        if theirs is None:
            assert mine is None
        else:
            close(mine, theirs)


def normal(rng, *shapes, dtype=np.float64):
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def spread(rng, shape, dtype=np.float64):
    """Values at least 0.1 from each other and 0.05 from 0: no kink within a gradient check."""
    size = int(np.prod(shape))
    return ((rng.permutation(size) - size // 2 + 0.5) * 0.1).astype(dtype).reshape(shape)


def on(xp, *arrays):
    return tuple(xp.asarray(a) for a in arrays)


class Sliding(NamedTuple):
    """A convolution's (or its transpose's) arguments."""

    x: Any
    w: Any
    b: Any
    stride: int
    pad: Any
    rng: Any


@st.composite
def paddings(draw, most):
    side = st.tuples(st.integers(0, most), st.integers(0, most))
    return draw(st.integers(0, most) | st.tuples(side, side))


@st.composite
def convolutions(draw, dtype=dtypes):
    K, stride, pad, rng = draw(st.integers(1, 5)), draw(sizes), draw(paddings(2)), draw(seeds)
    H, W = (draw(st.integers(max(1, K - sum(side)), 8)) for side in pads(pad))
    N, C, F = draw(st.integers(1, 2)), draw(sizes), draw(sizes)
    arrays = normal(rng, (N, H, W, C), (K, K, C, F), F, dtype=draw(dtype))
    return Sliding(*arrays, stride, pad, rng)


@st.composite
def transposed_convolutions(draw, dtype=dtypes):
    K, stride, rng = draw(st.integers(1, 5)), draw(sizes), draw(seeds)
    crop = draw(paddings(min(2, (K - 1) // 2)))
    N, H, W, C, F = (draw(sizes) for _ in range(5))
    arrays = normal(rng, (N, H, W, C), (K, K, F, C), F, dtype=draw(dtype))
    return Sliding(*arrays, stride, crop, rng)


double = st.just(np.float64)


def arguments(case, xp):
    return *on(xp, case.x, case.w, case.b), case.stride, case.pad


# ---------------------------------------------------------------------------- convolutions

PAIRS = {
    "conv2d": convolutions,
    "conv_transpose2d": transposed_convolutions,
}
slides = pytest.mark.parametrize("name", PAIRS)


@slides
@given(data=st.data())
def test_convolution_equals_its_loops(name, ops, xp, data):
    case = data.draw(PAIRS[name]())
    y, cache = getattr(ops, name)(*arguments(case, xp))
    close(y, getattr(naive, name)(*case[:5]))
    (dy,) = normal(case.rng, y.shape, dtype=case.x.dtype)
    gradients = getattr(ops, f"{name}_backward")(xp.asarray(dy), cache)
    all_close(
        gradients, getattr(naive, f"{name}_backward")(dy, case.x, case.w, case.stride, case.pad)
    )


@slides
@given(data=st.data())
def test_convolution_gradients_along_a_random_direction(name, ops, xp, data):
    case = data.draw(PAIRS[name](double))
    check_gradients(
        lambda x, w, b: getattr(ops, name)(x, w, b, case.stride, case.pad),
        getattr(ops, f"{name}_backward"),
        *on(xp, case.x, case.w, case.b),
        rng=case.rng,
    )


@slides
@given(data=st.data())
def test_convolution_and_its_backward_are_adjoint(name, ops, xp, data):
    """<f(a), dy> = <a, f'(dy)> in the image and, b being 0, in the weights."""
    case = data.draw(PAIRS[name](double))
    x, w, b, stride, pad = arguments(case, xp)
    y, cache = getattr(ops, name)(x, w, 0 * b, stride, pad)
    (dy,) = on(xp, *normal(case.rng, y.shape))
    dx, dw, db = getattr(ops, f"{name}_backward")(dy, cache)
    product = float((y * dy).sum())
    for gradient, array in ((dx, x), (dw, w)):
        assert float((gradient * array).sum()) == pytest.approx(product, rel=1e-9, abs=1e-9)
    close(db, mc.to_host(dy.sum((0, 1, 2))))


@given(case=transposed_convolutions(double))
def test_transposed_convolution_is_the_adjoint_of_convolution(ops, xp, case):
    """<conv(a), x> = <a, conv_transpose(x)> with one and the same w."""
    x, w, b, stride, crop = arguments(case, xp)
    up, _ = ops.conv_transpose2d(x, w, 0 * b, stride, crop)
    (a,) = on(xp, *normal(case.rng, up.shape))
    down, _ = ops.conv2d(a, w, xp.zeros(x.shape[3]), stride, crop)
    assert down.shape == x.shape
    assert float((down * x).sum()) == pytest.approx(float((a * up).sum()), rel=1e-9, abs=1e-9)


@given(case=convolutions(double))
def test_1x1_convolution_is_a_matrix_product(ops, xp, case):
    x, w, b, *_ = arguments(case, xp)
    y, _ = ops.conv2d(x, w[:1, :1], b)
    close(y, mc.to_host(x @ w[0, 0] + b))


def test_bands_do_not_show(monkeypatch, rng):
    """Images too large to unfold at once are taken in bands of rows; one row is a band too."""
    (x, w, b) = normal(rng, (2, 9, 7, 3), (3, 3, 3, 2), 2)
    monkeypatch.setattr(mc.ops, "BAND_BYTES", 1)
    for stride in (1, 2):
        y, cache = mc.ops.conv2d(x, w, b, stride, 1)
        close(y, naive.conv2d(x, w, b, stride, 1))
        (dy,) = normal(rng, y.shape)
        all_close(mc.ops.conv2d_backward(dy, cache), naive.conv2d_backward(dy, x, w, stride, 1))


def test_large_convolution_equals_its_loops(ops, xp, rng):
    """Sizes at which the kernels block: many channels and filters, sides of no round number."""
    (x, w, b) = normal(rng, (1, 19, 21, 33), (4, 4, 33, 18), 18, dtype=np.float32)
    pad = mc.ops.same_pad(4)
    y, cache = ops.conv2d(*on(xp, x, w, b), 1, pad)
    close(y, naive.conv2d(x, w, b, 1, pad))
    (dy,) = normal(rng, y.shape, dtype=np.float32)
    all_close(ops.conv2d_backward(xp.asarray(dy), cache), naive.conv2d_backward(dy, x, w, 1, pad))


@pytest.mark.parametrize("kernel", range(1, 6))
def test_same_padding_keeps_the_size(ops, xp, kernel):
    x, w, b = xp.ones((1, 7, 6, 1)), xp.ones((kernel, kernel, 1, 1)), xp.zeros(1)
    assert ops.conv2d(x, w, b, 1, mc.ops.same_pad(kernel))[0].shape == x.shape


def test_a_kernel_without_room_is_an_error(ops, xp):
    x, w, b = xp.ones((1, 2, 5, 1)), xp.ones((4, 4, 1, 1)), xp.zeros(1)
    with pytest.raises(ValueError, match="does not fit"):
        ops.conv2d(x, w, b, 1, ((1, 0), (1, 0)))
    with pytest.raises(ValueError, match="leaves nothing"):
        ops.conv_transpose2d(x, w, b, 1, ((3, 2), (0, 0)))


@slides
def test_weights_of_other_channels_are_an_error(ops, xp, name):
    x, b = xp.ones((1, 6, 6, 3)), xp.zeros(2)
    for shape in ((3, 3, 2, 2), (3, 2, 3, 3)):
        with pytest.raises(ValueError, match="do not fit"):
            getattr(ops, name)(x, xp.ones(shape), b)


# ---------------------------------------------------------------------------- batch norm


@st.composite
def norms(draw, dtype=dtypes):
    shape = draw(st.integers(1, 2)), draw(st.integers(2, 5)), draw(st.integers(3, 5)), draw(sizes)
    rng = draw(seeds)
    x, gamma, beta = normal(rng, shape, shape[3], shape[3], dtype=draw(dtype))
    return 3 * x + beta, gamma, beta, rng


@given(case=norms())
def test_batch_norm_equals_its_loops(ops, xp, case):
    x, gamma, beta, rng = case
    y, cache = ops.batch_norm(*on(xp, x, gamma, beta))
    close(y, naive.batch_norm(x, gamma, beta))
    close(cache.statistics.mean, x.mean((0, 1, 2)))
    close(cache.statistics.var, x.var((0, 1, 2)))
    (dy,) = normal(rng, y.shape, dtype=x.dtype)
    gradients = ops.batch_norm_backward(xp.asarray(dy), cache)
    all_close(gradients, naive.batch_norm_backward(dy, x, gamma))


@given(case=norms(double), training=st.booleans())
def test_batch_norm_gradients_along_a_random_direction(ops, xp, case, training):
    x, gamma, beta, rng = case
    given_ones = Statistics(*on(xp, rng.standard_normal(gamma.shape), rng.random(gamma.shape)))
    check_gradients(
        lambda *arrays: ops.batch_norm(*arrays, None if training else given_ones),
        ops.batch_norm_backward,
        *on(xp, x, gamma, beta),
        rng=rng,
    )


@given(case=norms(double))
def test_batch_norm_with_given_statistics_is_affine(ops, xp, case):
    x, gamma, beta, rng = case
    mean, var = rng.standard_normal(gamma.shape), rng.random(gamma.shape)
    y, cache = ops.batch_norm(*on(xp, x, gamma, beta), Statistics(*on(xp, mean, var)))
    close(y, (x - mean) / np.sqrt(var + 1e-5) * gamma + beta)
    (dy,) = normal(rng, x.shape)
    dx, dgamma, dbeta = ops.batch_norm_backward(xp.asarray(dy), cache)
    close(dx, dy * gamma / np.sqrt(var + 1e-5))
    close(dgamma, (dy * (x - mean) / np.sqrt(var + 1e-5)).sum((0, 1, 2)))
    close(dbeta, dy.sum((0, 1, 2)))


def test_sums_over_many_pixels_keep_their_digits(ops, xp, rng):
    """float32 added up one by one would be down to four digits over a batch of tiles."""
    x = (5 + rng.standard_normal((8, 128, 256, 2))).astype(np.float32)
    ones = np.ones(2, np.float32)
    _, cache = ops.batch_norm(*on(xp, x, ones, ones))
    exact = x.astype(np.float64)
    for mine, true in zip(
        cache.statistics, (exact.mean((0, 1, 2)), exact.var((0, 1, 2))), strict=True
    ):
        np.testing.assert_allclose(mc.to_host(mine), true, rtol=1e-6)
    _, _, dbeta = ops.batch_norm_backward(xp.asarray(x), cache)
    np.testing.assert_allclose(mc.to_host(dbeta), exact.sum((0, 1, 2)), rtol=1e-6)


def test_batch_norm_of_one_pixel_is_beta(ops, xp):
    x, gamma, beta = on(xp, np.full((1, 1, 1, 2), 7.0), np.ones(2), np.array([3.0, -1.0]))
    y, cache = ops.batch_norm(x, gamma, beta)
    close(y, [[[[3.0, -1.0]]]])
    close(ops.batch_norm_backward(xp.ones_like(x), cache)[0], np.zeros((1, 1, 1, 2)))


# ---------------------------------------------------------------------------- relu, pooling


@st.composite
def images(draw, dtype=dtypes):
    shape = draw(st.integers(1, 2)), draw(st.integers(1, 7)), draw(st.integers(1, 7)), draw(sizes)
    rng = draw(seeds)
    return spread(rng, shape, draw(dtype)), rng


@given(case=images())
def test_relu_equals_its_loops(ops, xp, case):
    x, rng = case
    y, cache = ops.relu(xp.asarray(x))
    close(y, naive.relu(x))
    (dy,) = normal(rng, x.shape, dtype=x.dtype)
    close(ops.relu_backward(xp.asarray(dy), cache), naive.relu_backward(dy, x))


@given(case=images(double))
def test_relu_gradient_along_a_random_direction(ops, xp, case):
    x, rng = case
    check_gradients(ops.relu, ops.relu_backward, xp.asarray(x), rng=rng)


def test_relu_at_its_kink_and_ends(ops, xp):
    x = np.array([-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf])
    y, cache = ops.relu(xp.asarray(x))
    close(y, [0.0, 0.0, 0.0, 0.0, 1.0, np.inf])
    close(ops.relu_backward(xp.full(6, 5.0), cache), [0.0, 0.0, 0.0, 0.0, 5.0, 5.0])


@given(case=images(), size=sizes)
def test_max_pool_equals_its_loops(ops, xp, case, size):
    x, rng = case
    assume(size <= min(x.shape[1:3]))
    y, cache = ops.max_pool2d(xp.asarray(x), size)
    close(y, naive.max_pool2d(x, size))
    (dy,) = normal(rng, y.shape, dtype=x.dtype)
    dx = ops.max_pool2d_backward(xp.asarray(dy), cache)
    close(dx, naive.max_pool2d_backward(dy, x, size))


@given(case=images(double), size=sizes)
def test_max_pool_gradient_along_a_random_direction(ops, xp, case, size):
    x, rng = case
    assume(size <= min(x.shape[1:3]))
    check_gradients(
        lambda x: ops.max_pool2d(x, size), ops.max_pool2d_backward, xp.asarray(x), rng=rng
    )


@pytest.mark.parametrize("level", [0.0, -2.0, 5.0])
def test_in_a_tie_the_first_pixel_takes_all(ops, xp, level):
    """A flat area; and a column of equal largest values, where reading order is not memory's."""
    flat = np.full((2, 2), level)
    column = np.array([[level - 1, level], [level - 1, level]])
    x = np.concatenate([flat, column], 1)[None, :, :, None]
    y, cache = ops.max_pool2d(xp.asarray(x), 2)
    close(y, np.full((1, 1, 2, 1), level))
    dx = ops.max_pool2d_backward(xp.asarray([[[[3.0], [4.0]]]]), cache)
    close(dx, np.array([[3.0, 0, 0, 4.0], [0, 0, 0, 0]])[None, :, :, None])


def test_max_pool_keeps_an_outlier_to_its_channel(ops, xp):
    x = np.zeros((1, 2, 2, 2))
    x[0, 1, 0] = 9.0, -9.0
    y, _ = ops.max_pool2d(xp.asarray(x), 2)
    close(y, [[[[9.0, 0.0]]]])


# ---------------------------------------------------------------------------- the block


class Block(NamedTuple):
    """The arguments of conv_bn_relu."""

    x: Any
    skip: Any
    weights: BlockWeights
    pad: Any
    rng: Any


@st.composite
def blocks(draw, dtype=dtypes):
    K, rng = draw(st.integers(1, 5)), draw(seeds)
    pad = draw(st.just(mc.ops.same_pad(K)) | paddings(2))
    H, W = (draw(st.integers(max(2, K + 1 - sum(side)), 7)) for side in pads(pad))
    N, C, F, D = draw(st.integers(1, 2)), draw(sizes), draw(sizes), draw(st.integers(0, 3))
    shapes = (N, H, W, C), (N, H, W, D), (K, K, C + D, F), F, F, F
    x, skip, w, b, gamma, beta = normal(rng, *shapes, dtype=draw(dtype))
    case = Block(x, skip if D else None, BlockWeights(w, b, gamma, beta), pad, rng)
    assume(far_from_kinks(case))
    return case


def far_from_kinks(case, statistics=None):
    """No pre-activation so near 0 that rounding, or a finite difference, changes its sign."""
    joined = case.x if case.skip is None else np.concatenate((case.x, case.skip), 3)
    w, b, gamma, beta = case.weights
    z, _ = mc.ops.conv2d(joined, w, b, 1, case.pad)
    if z.var((0, 1, 2)).min() < 1e-2:  # values so close that the norm blows up every difference
        return False
    return np.abs(mc.ops.batch_norm(z, gamma, beta, statistics)[0]).min() > 1e-4


def some_statistics(case):
    """Made-up running statistics of the case's dtype, for inference."""
    mean, var = case.rng.standard_normal((2, len(case.weights.b)))
    var = np.abs(var) + 0.5
    statistics = Statistics(mean.astype(case.x.dtype), var.astype(case.x.dtype))
    assume(far_from_kinks(case, statistics))
    return statistics


def block_arguments(case, xp):
    """x, skip and the weights, as arrays of `xp`."""
    skip = None if case.skip is None else xp.asarray(case.skip)
    return xp.asarray(case.x), skip, BlockWeights(*on(xp, *case.weights))


@given(case=blocks())
def test_block_equals_its_loops(ops, xp, case):
    y, cache = ops.conv_bn_relu(*block_arguments(case, xp), None, case.pad)
    close(y, naive.conv_bn_relu(*case[:4]))
    (dy,) = normal(case.rng, y.shape, dtype=case.x.dtype)
    dx, dskip, gradients = ops.conv_bn_relu_backward(xp.asarray(dy), cache)
    assert not gradients.b.any()  # exactly: the mean takes the bias out again
    *expected, theirs = naive.conv_bn_relu_backward(dy, *case[:4])
    all_close((dx, dskip, *gradients), (*expected, *theirs._replace(b=0 * theirs.b)))


@given(case=blocks(), training=st.booleans())
def test_block_equals_the_plain_ops_in_a_row(ops, xp, case, training):
    x, skip, weights = block_arguments(case, xp)
    w, b, gamma, beta = weights
    statistics = None if training else Statistics(*on(xp, *some_statistics(case)))
    y, cache = ops.conv_bn_relu(x, skip, weights, statistics, case.pad)

    joined = x if skip is None else xp.concatenate((x, skip), 3)
    z, conv = mc.ops.conv2d(joined, w, b, 1, case.pad)
    normalised, norm = mc.ops.batch_norm(z, gamma, beta, statistics)
    expected, positive = mc.ops.relu(normalised)
    close(y, mc.to_host(expected))
    all_close(cache.statistics, map(mc.to_host, norm.statistics))

    dy = xp.asarray(case.rng.standard_normal(y.shape).astype(case.x.dtype))
    dz, dgamma, dbeta = mc.ops.batch_norm_backward(mc.ops.relu_backward(dy, positive), norm)
    dboth, dw, db = mc.ops.conv2d_backward(dz, conv)
    dx, dskip, gradients = ops.conv_bn_relu_backward(dy, cache)
    both = dx if dskip is None else xp.concatenate((dx, dskip), 3)
    if training:
        db = 0 * db  # what the plain ops leave there is rounding
    all_close((both, *gradients), map(mc.to_host, (dboth, dw, db, dgamma, dbeta)))


@given(case=blocks(double), training=st.booleans())
def test_block_gradients_along_a_random_direction(ops, xp, case, training):
    x, skip, weights = block_arguments(case, xp)
    joins = skip is not None
    statistics = None if training else Statistics(*on(xp, *some_statistics(case)))

    def forward(x, w, b, gamma, beta, skip=None):
        return ops.conv_bn_relu(x, skip, BlockWeights(w, b, gamma, beta), statistics, case.pad)

    def backward(dy, cache):
        dx, dskip, gradients = ops.conv_bn_relu_backward(dy, cache)
        return (dx, *gradients, dskip) if joins else (dx, *gradients)

    arrays = (x, *weights, skip) if joins else (x, *weights)
    check_gradients(forward, backward, *arrays, rng=case.rng)


@given(case=blocks())
def test_first_block_is_spared_dx(ops, xp, case):
    y, cache = ops.conv_bn_relu(*block_arguments(case, xp), None, case.pad)
    dx, dskip, gradients = ops.conv_bn_relu_backward(y, cache, need_dx=False)
    assert dx is None and dskip is None
    y, cache = ops.conv_bn_relu(*block_arguments(case, xp), None, case.pad)
    all_close(gradients, map(mc.to_host, ops.conv_bn_relu_backward(y, cache)[2]))


# ---------------------------------------------------------------------------- dtypes


def calls(ops, xp, dtype):
    """Every op on ones of a dtype."""

    def ones(*shape):
        return xp.ones(shape, dtype)

    image, weights, vector = ones(1, 4, 4, 2), ones(2, 2, 2, 2), ones(2)
    return {
        "conv2d": lambda: ops.conv2d(image, weights, vector),
        "conv_transpose2d": lambda: ops.conv_transpose2d(image, weights, vector),
        "batch_norm": lambda: ops.batch_norm(image, vector, vector),
        "relu": lambda: ops.relu(image),
        "max_pool2d": lambda: ops.max_pool2d(image, 2),
        "conv_bn_relu": lambda: ops.conv_bn_relu(
            image, None, BlockWeights(weights, vector, vector, vector)
        ),
    }


@pytest.mark.parametrize("name", calls(mc.ops, np, np.float32))
def test_only_float32_and_float64(ops, xp, name):
    for dtype in (np.float32, np.float64):
        assert calls(ops, xp, dtype)[name]()[0].dtype == dtype
    for dtype in (np.float16, np.int64, np.uint8, np.complex64, bool):
        with pytest.raises(TypeError, match="float32"):
            calls(ops, xp, dtype)[name]()


@slides
def test_dtypes_are_not_mixed(ops, xp, name):
    x, w, b = xp.ones((1, 4, 4, 2)), xp.ones((2, 2, 2, 2), np.float32), xp.ones(2)
    with pytest.raises(TypeError, match="float32"):
        getattr(ops, name)(x, w, b)
