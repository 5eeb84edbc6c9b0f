"""The checker itself: it passes what is right and sees what famous checks are blind to."""

import numpy as np
import pytest

import minicnn as mc
from minicnn import ops
from minicnn.gradcheck import check_gradients, check_layer


def conv_case(rng):
    return tuple(rng.standard_normal(shape) for shape in ((2, 6, 6, 3), (3, 3, 3, 4), 4))


def conv(x, w, b):
    return ops.conv2d(x, w, b, 1, 1)


def right(dy, cache):
    return ops.conv2d_backward(dy, cache)


def rotated_kernel(dy, cache):
    x, w, stride, pad = cache
    return ops.conv2d_backward(dy, (x, w[::-1, ::-1], stride, pad))[0], *right(dy, cache)[1:]


def rotated_dw(dy, cache):
    dx, dw, db = right(dy, cache)
    return dx, dw[::-1, ::-1], db


def transposed_dw(dy, cache):
    dx, dw, db = right(dy, cache)
    return dx, dw.swapaxes(0, 1), db


def shifted_dx(dy, cache):
    dx, dw, db = right(dy, cache)
    return np.roll(dx, 1, 1), dw, db


def mean_for_db(dy, cache):
    dx, dw, db = right(dy, cache)
    return dx, dw, db / len(dy)


WRONG = [rotated_kernel, rotated_dw, transposed_dw, shifted_dx, mean_for_db]


def test_it_passes_what_is_right(rng):
    for _ in range(20):
        assert check_gradients(conv, right, *conv_case(rng), rng=rng) < 1e-8


@pytest.mark.parametrize("wrong", WRONG)
def test_it_sees_each_classic_mistake_every_time(rng, wrong):
    for _ in range(20):
        with pytest.raises(AssertionError, match="finite difference"):
            check_gradients(conv, wrong, *conv_case(rng), rng=rng)


@pytest.mark.parametrize("factor", [0, -7])
def test_it_sees_a_batch_norm_without_its_gradient(rng, factor):
    """With an upstream gradient of ones both pass: the sum over a normalised batch is constant."""

    def wrong(dy, cache):
        dx, dgamma, dbeta = ops.batch_norm_backward(dy, cache)
        return factor * dx, dgamma, dbeta

    x = rng.standard_normal((2, 4, 4, 2))
    with pytest.raises(AssertionError):
        check_gradients(ops.batch_norm, wrong, x, np.ones(2), np.zeros(2), rng=rng)


def test_a_layers_parameters_are_checked_and_given_back(rng):
    layer = mc.Conv2d(2, 3, 3, rng=rng).astype(np.float64)
    before = {name: p.copy() for name, p in layer.parameters().items()}
    x = rng.standard_normal((1, 5, 5, 2))
    assert check_layer(layer, x, rng=rng) < 1e-8
    for name, p in layer.parameters().items():
        np.testing.assert_array_equal(p, before[name])


def test_it_sees_a_wrong_layer(rng):
    class Wrong(mc.Conv2d):
        def backward(self, dy):
            dx = super().backward(dy)
            self.grads["w"] *= 1.001
            return dx

    layer = Wrong(2, 3, 3, rng=rng).astype(np.float64)
    with pytest.raises(AssertionError):
        check_layer(layer, rng.standard_normal((1, 5, 5, 2)), rng=rng)


def test_a_missing_gradient_is_an_error(rng):
    with pytest.raises(ValueError):
        check_gradients(conv, lambda dy, cache: right(dy, cache)[:2], *conv_case(rng), rng=rng)
