"""What the kernels are run on in several ways, each case against the plain ops in float64.

A case is a function of the kernels (`minicnn.kernels.gpu`), an array module and a generator of
random numbers; it raises AssertionError where a number is wrong. `CASES` holds one of each kind,
small enough for planted bugs; Hypothesis draws more from `block` and the
others.
"""

import sys
from contextlib import contextmanager

import numpy as np

from minicnn import losses, ops
from minicnn.backend import set_precision
from minicnn.layers import Layer
from minicnn.ops import BlockWeights, Statistics
from minicnn.optim import Adam, Muon

TOLERANCE = 2e-5  # of the largest value
TF32_TOLERANCE = 2e-3  # of TF32 against exact numbers: 10 bits behind the point in every factor


def forget_kernels():
    """Have the modules of kernels for GPUs imported anew, by the cupy that is then in place."""
    for name in [name for name in sys.modules if name.startswith("minicnn.kernels.gpu")]:
        del sys.modules[name]


def equal(actual, expected, tolerance=TOLERANCE):
    """Equal within rounding, list by list; None only for None."""
    for mine, theirs in zip(actual, expected, strict=True):
        if theirs is None:
            assert mine is None
            continue
        mine = mine.get()
        assert mine.shape == np.shape(theirs) and mine.dtype == np.float32
        atol = tolerance * max(1.0, np.abs(theirs).max(initial=0))
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=atol)


def draw(rng, *shapes):
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def double(*arrays):
    return tuple(None if a is None else a.astype(np.float64) for a in arrays)


def device(xp, *arrays):
    return tuple(None if a is None else xp.asarray(a) for a in arrays)


def tf32(x):
    """`x` rounded to TF32, halves away from zero, in float64."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.trunc(mantissa * 2**11 + np.copysign(0.5, x)) / 2**11, exponent)


@contextmanager
def tensor_cores():
    set_precision("tf32")
    try:
        yield
    finally:
        set_precision("float32")


def convolution(N, H, W, C, F, K, stride, pad, name="conv2d"):
    """A plain or a transposed convolution, both ways."""

    def run(kernels, xp, rng):
        shape = (K, K, C, F) if name == "conv2d" else (K, K, F, C)
        arrays = draw(rng, (N, H, W, C), shape, F)
        y, cache = getattr(kernels, name)(*device(xp, *arrays), stride, pad)
        expected, kept = getattr(ops, name)(*double(*arrays), stride, pad)
        equal([y], [expected])
        (dy,) = draw(rng, expected.shape)
        back = getattr(kernels, f"{name}_backward")(xp.asarray(dy), cache)
        equal(back, getattr(ops, f"{name}_backward")(dy.astype(float), kept))

    return run


def convolution_tf32(N, H, W, C, F, K, stride, pad, name="conv2d"):
    """The same on tensor cores: what they make of rounded factors is exact but for float32."""

    def run(kernels, xp, rng):
        shape = (K, K, C, F) if name == "conv2d" else (K, K, F, C)
        x, w, b = draw(rng, (N, H, W, C), shape, F)
        forward, backward = getattr(ops, name), getattr(ops, f"{name}_backward")
        rounded, kept = forward(tf32(x), tf32(w), *double(b), stride, pad)
        exact, kept_exact = forward(*double(x, w, b), stride, pad)
        (dy,) = draw(rng, exact.shape)
        with tensor_cores():
            y, cache = getattr(kernels, name)(*device(xp, x, w, b), stride, pad)
            back = getattr(kernels, f"{name}_backward")(xp.asarray(dy), cache)
        equal([y], [rounded])
        equal([y], [exact], TF32_TOLERANCE)
        expected = backward(dy.astype(float), kept_exact)
        equal(back[:2], backward(tf32(dy), kept)[:2])
        equal(back[:2], expected[:2], TF32_TOLERANCE)
        equal(back[2:], expected[2:])  # of the bias: no product

    return run


def block(N, H, W, C, D, F, K, pad, training=True, held=None, tolerance=TOLERANCE):
    """Convolution, batch norm and ReLU in one, with the skip's D channels, both ways; `held` is
    what the kernels make of an image and the weights."""

    def run(kernels, xp, rng):
        x, skip, w, *rest = draw(rng, (N, H, W, C), (N, H, W, D), (K, K, C + D, F), F, F, F)
        skip = skip if D else None
        given = None
        if not training:
            mean, var = draw(rng, F, F)
            given = Statistics(mean, var**2 + np.float32(0.5))
        on_device = given and Statistics(*device(xp, *given))
        weights = BlockWeights(*device(xp, w, *rest))
        y, cache = kernels.conv_bn_relu(*device(xp, x, skip), weights, on_device, pad)
        x, skip, w = (a if a is None or held is None else held(a) for a in (x, skip, w))
        exact, exactly = BlockWeights(*double(w, *rest)), given and Statistics(*double(*given))
        expected, kept = ops.conv_bn_relu(*double(x, skip), exact, exactly, pad)
        equal([y, *cache.statistics], [expected, *kept.statistics])
        (dy,) = draw(rng, expected.shape)
        *inputs, gradients = kernels.conv_bn_relu_backward(xp.asarray(dy), cache)
        *others, theirs = ops.conv_bn_relu_backward(dy.astype(float), kept)
        equal([*inputs, *gradients], [*others, *theirs], tolerance)

    return run


def block_tf32(*sizes, **options):
    """The same on tensor cores. Backward is compared from the rounded z on: a ReLU that opens by
    rounding would be no small difference."""
    case = block(*sizes, **options, held=tf32, tolerance=TF32_TOLERANCE)

    def run(kernels, xp, rng):
        with tensor_cores():
            case(kernels, xp, rng)

    return run


def norm(N, H, W, C, training=True, offset=0):
    """Batch norm by itself; `offset` moves the mean away from 0, where sums of squares drown."""

    def run(kernels, xp, rng):
        x, gamma, beta, mean, var = draw(rng, (N, H, W, C), C, C, C, C)
        x += np.float32(offset)
        given = None if training else Statistics(mean, var**2 + np.float32(0.5))
        on_device = given and Statistics(*device(xp, *given))
        y, cache = kernels.batch_norm(*device(xp, x, gamma, beta), on_device)
        expected, kept = ops.batch_norm(
            *double(x, gamma, beta), given and Statistics(*double(*given))
        )
        if offset:  # float32 has so many digits of x itself
            np.testing.assert_allclose(cache.statistics.var.get(), kept.statistics.var, rtol=1e-4)
            return
        equal([y, *cache.statistics], [expected, *kept.statistics])
        (dy,) = draw(rng, expected.shape)
        back = kernels.batch_norm_backward(xp.asarray(dy), cache)
        equal(back, ops.batch_norm_backward(dy.astype(float), kept))

    return run


def pool(N, H, W, C, size, ties=False):
    def run(kernels, xp, rng):
        (x,) = draw(rng, (N, H, W, C))
        x = np.round(x) if ties else x
        y, cache = kernels.max_pool2d(xp.asarray(x), size)
        expected, kept = ops.max_pool2d(x, size)
        equal([y], [expected])
        (dy,) = draw(rng, expected.shape)
        for other in (None, x):
            back = kernels.max_pool2d_backward(*device(xp, dy), cache, *device(xp, other))
            equal([back], [ops.max_pool2d_backward(dy, kept, other)])

    return run


def relu(shape):
    def run(kernels, xp, rng):
        (x,) = draw(rng, shape)
        x.flat[:2] = 0, np.nan
        y, cache = kernels.relu(xp.asarray(x))
        expected, kept = ops.relu(x)
        equal([y], [expected])
        (dy,) = draw(rng, shape)
        equal([kernels.relu_backward(xp.asarray(dy), cache)], [ops.relu_backward(dy, kept)])

    return run


def loss(f, masked, extreme=False, **options):
    """A loss and its gradient."""

    def run(kernels, xp, rng):
        (logits,) = draw(rng, (3, 40, 50, 1))
        logits *= np.float32(60 if extreme else 1)
        labels = (rng.random(logits.shape) < 0.4).astype(np.float32)
        valid = (rng.random(logits.shape) < 0.9).astype(np.float32) if masked else None
        (on_device,), (exact,) = device(xp, valid), double(valid)
        value, slope = f(*device(xp, logits, labels), **options, valid=on_device)
        expected, gradient = f(*double(logits, labels), **options, valid=exact)
        np.testing.assert_allclose(float(value), float(expected), rtol=1e-5)
        equal([slope * np.float32(1000)], [gradient * 1000])

    return run


class Parameters(Layer):
    """Parameters of many sizes, more than a table of adam.cu holds."""

    def __init__(self, rng, to):
        super().__init__()
        shapes = [(1 + 7 * i % 300,) for i in range(100)] + [(4, 4, 3, 16)]
        self.params = {str(i): to(*draw(rng, s)) for i, s in enumerate(shapes)}
        self.grads = {str(i): to(*draw(rng, s)) for i, s in enumerate(shapes)}


def optimiser(kind, layer=Parameters, **options):
    """Three steps along gradients that change, against the same in float64."""

    def run(kernels, xp, rng):
        state = rng.bit_generator.state
        mine = layer(rng, xp.asarray)
        rng.bit_generator.state = state
        theirs = layer(rng, lambda a: a.astype(float))
        optimisers = kind(mine, 0.01, **options), kind(theirs, 0.01, **options)
        for _ in range(3):
            for optimizer in optimisers:
                optimizer.step()
            for name, gradient in theirs.grads.items():
                (new,) = draw(rng, gradient.shape)
                gradient += 0.5 * new
                mine.grads[name] += xp.asarray(0.5 * new)
        equal(mine.params.values(), theirs.params.values())
        equal(optimisers[0].averages.values(), optimisers[1].averages.values())

    return run


class Kernels(Layer):
    """Kernels that muon.cu moves, of sizes in and beside its tiles, more than its table holds; some
    that it leaves to the plain step; and what Adam moves."""

    def __init__(self, rng, to):
        super().__init__()
        shapes = [(4, 4, 3, 16), (2, 2, 70, 68), (3, 3, 4, 36), (4, 4, 40, 4), (2, 2, 1, 8)]
        shapes += [(2, 2, 3, 5), (1, 1, 8, 4), (8,), *[(2, 2, 2, 4)] * 33]
        self.params = {str(i): to(*draw(rng, s)) for i, s in enumerate(shapes)}
        self.grads = {str(i): to(*draw(rng, s)) for i, s in enumerate(shapes)}
        self.grads["10"] *= 0  # a gradient of nothing turns nothing


def running(C):
    def run(kernels, xp, rng):
        arrays = draw(rng, C, C, C, C)
        mean, var, *batch = device(xp, *arrays)
        kernels.update_running(mean, var, Statistics(*batch), 0.1, 1.25)
        old_mean, old_var, new_mean, new_var = double(*arrays)
        equal([mean, var], [0.9 * old_mean + 0.1 * new_mean, 0.9 * old_var + 0.125 * new_var])

    return run


def bytes_to_floats(shape):
    def run(kernels, xp, rng):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        equal([kernels.normalise(xp.asarray(pixels), 127.5, 64.0)], [(pixels - 127.5) / 64])

    return run


CASES = {
    "first layer": convolution(2, 9, 7, 3, 5, 4, 1, ((1, 2), (1, 2))),
    "head": convolution(2, 6, 5, 16, 1, 1, 1, 0),
    "whole channels": convolution(1, 12, 13, 4, 8, 3, 2, 1),
    "32 filters": convolution(1, 9, 8, 4, 20, 2, 3, 0),
    "64 filters": convolution(1, 9, 17, 8, 68, 2, 1, ((0, 1), (0, 1))),
    "up": convolution(2, 5, 6, 8, 4, 4, 2, 1, "conv_transpose2d"),
    "shared sums": convolution(1, 5, 6, 32, 8, 4, 1, ((1, 2), (1, 2))),
    "shared sums, up": convolution(1, 3, 3, 4, 128, 4, 2, 1, "conv_transpose2d"),
    "shared sums, block": block(1, 6, 7, 24, 12, 16, 4, ((1, 2), (1, 2))),
    "shared sums, inference": block(1, 6, 7, 24, 12, 16, 4, ((1, 2), (1, 2)), training=False),
    "up, odd": convolution(1, 4, 5, 3, 2, 3, 2, ((0, 1), (1, 0)), "conv_transpose2d"),
    "block": block(1, 9, 16, 4, 0, 8, 4, ((1, 2), (1, 2))),
    "block with skip": block(2, 5, 7, 4, 8, 20, 4, ((1, 2), (1, 2))),
    "block, odd skip": block(2, 6, 4, 3, 2, 5, 3, 1),
    "block, inference": block(1, 7, 9, 4, 4, 8, 4, ((1, 2), (1, 2)), training=False),
    "batch norm": norm(2, 9, 9, 5),
    "batch norm, inference": norm(1, 4, 5, 3, training=False),
    "batch norm, many channels": norm(1, 3, 4, 300),
    "batch norm, far mean": norm(2, 16, 16, 4, offset=100),
    "pool": pool(2, 7, 9, 5, 2),
    "pool, ties": pool(1, 6, 6, 3, 3, ties=True),
    "relu": relu((2, 5, 6, 7)),
    "cross-entropy": loss(losses.bce_with_logits, masked=True, pos_weight=3.0),
    "cross-entropy, extreme": loss(losses.bce_with_logits, masked=False, extreme=True),
    "Dice": loss(losses.soft_dice, masked=True),
    "Jaccard": loss(losses.soft_jaccard, masked=False, smooth=2.0),
    "Adam": optimiser(Adam),
    "Muon": optimiser(Muon, Kernels),
    "running averages": running(300),
    "bytes": bytes_to_floats((2, 9, 7, 3)),
}
TENSOR_CASES = {
    "TF32, 16 filters": convolution_tf32(1, 9, 13, 4, 8, 4, 1, ((1, 2), (1, 2))),
    "TF32, 32 filters": convolution_tf32(1, 9, 8, 8, 20, 2, 3, 0),
    "TF32, 64 filters": convolution_tf32(1, 9, 17, 8, 68, 2, 1, ((0, 1), (0, 1))),
    "TF32, shared sums": convolution_tf32(1, 5, 6, 32, 8, 4, 1, ((1, 2), (1, 2))),
    "TF32, up": convolution_tf32(2, 5, 6, 8, 4, 4, 2, 1, "conv_transpose2d"),
    "TF32, block with skip": block_tf32(2, 5, 7, 4, 8, 20, 4, ((1, 2), (1, 2))),
    "TF32, inference": block_tf32(1, 7, 9, 4, 4, 8, 4, ((1, 2), (1, 2)), training=False),
}
CASES |= TENSOR_CASES
