"""Losses by hand-worked numbers, at their ends, with pixels left out, and their gradients."""

import math
from functools import partial

import numpy as np
import pytest

from minicnn import losses
from minicnn.gradcheck import check_gradients

LOSSES = {
    "bce": losses.bce_with_logits,
    "weighted bce": partial(losses.bce_with_logits, pos_weight=4.0),
    "dice": losses.soft_dice,
    "jaccard": losses.soft_jaccard,
    "total": losses.total(losses.bce_with_logits, losses.soft_dice, losses.soft_jaccard),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def column(*values, dtype=np.float64):
    return np.array(values, dtype).reshape(1, -1, 1, 1)


def case(rng, shape=(2, 5, 4, 1)):
    logits = 3 * rng.standard_normal(shape)
    labels = (rng.random(shape) < 0.4).astype(float)
    return logits, labels, rng.random(shape) < 0.7


def check(loss, logits, rng, **arguments):
    """`check_gradients` wants an op; a loss is one whose upstream gradient is a number."""

    def forward(x):
        value, dlogits = loss(x, **arguments)
        return np.asarray(value), dlogits

    check_gradients(forward, lambda dy, dlogits: dy * dlogits, logits, rng=rng)


@every_loss
@pytest.mark.parametrize("masked", [True, False])
def test_gradient_along_a_random_direction(rng, loss, masked):
    logits, labels, valid = case(rng)
    check(loss, logits, rng, labels=labels, valid=valid if masked else None)


@every_loss
def test_pixels_left_out_do_not_count(rng, loss):
    """As if they were not there: whatever stands in them, labels of 255 among it."""
    logits, labels, valid = case(rng)
    expected, gradient = loss(
        logits[valid][None, :, None, None], labels[valid][None, :, None, None]
    )
    for kind in (bool, np.uint8, np.float64):
        value, dlogits = loss(
            np.where(valid, logits, 99.0), np.where(valid, labels, 255.0), valid=valid.astype(kind)
        )
        assert value == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(dlogits[valid], gradient.ravel(), rtol=1e-9)
        assert not dlogits[~valid].any()


@every_loss
def test_nothing_valid_is_no_loss(rng, loss):
    logits, labels, _ = case(rng)
    value, dlogits = loss(logits, labels, valid=np.zeros_like(labels))
    assert value == 0
    assert not dlogits.any()


@every_loss
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits_overflow_nowhere(loss, dtype):
    """A warning would fail this test; so would a NaN."""
    logits = column(-1e4, 1e4, -1e4, 1e4, 0.0, dtype=dtype)
    labels = column(0, 0, 1, 1, 1, dtype=dtype)
    value, dlogits = loss(logits, labels)
    assert math.isfinite(value) and value > 0
    assert np.isfinite(dlogits).all()
    assert dlogits.dtype == dtype


def test_sigmoid():
    x = np.array([-800.0, -2.0, 0.0, 2.0, 800.0])
    expected = [0.0, 1 / (1 + math.e**2), 0.5, 1 / (1 + math.e**-2), 1.0]
    np.testing.assert_allclose(losses.sigmoid(x), expected, rtol=1e-14)
    assert losses.sigmoid(x.astype(np.float32)).dtype == np.float32


def test_bce_by_hand():
    logits, labels = column(0.0, math.log(3), -math.log(3)), column(0, 1, 1)  # p: 1/2, 3/4, 1/4
    value, dlogits = losses.bce_with_logits(logits, labels)
    assert value == pytest.approx((math.log(2) - math.log(3 / 4) - math.log(1 / 4)) / 3)
    np.testing.assert_allclose(dlogits, column(1 / 2, -1 / 4, -3 / 4) / 3)
    value, dlogits = losses.bce_with_logits(logits, labels, pos_weight=2.0)
    assert value == pytest.approx((math.log(2) - 2 * math.log(3 / 4) - 2 * math.log(1 / 4)) / 3)
    np.testing.assert_allclose(dlogits, column(1 / 2, -1 / 2, -3 / 2) / 3)


def test_a_confident_error_costs_its_logit():
    value, dlogits = losses.bce_with_logits(column(1e4, -1e4), column(0, 1), pos_weight=3.0)
    assert value == pytest.approx((1e4 + 3e4) / 2)
    np.testing.assert_allclose(dlogits, column(1 / 2, -3 / 2))


def test_overlaps_by_hand():
    logits, labels = column(0.0, math.log(3), -math.log(3)), column(0, 1, 1)  # p: 1/2, 3/4, 1/4
    assert losses.soft_dice(logits, labels)[0] == pytest.approx(1 - 3 / 4.5)
    assert losses.soft_jaccard(logits, labels)[0] == pytest.approx(1 - 2 / 3.5)
    assert losses.soft_dice(logits, labels, smooth=0.5)[0] == pytest.approx(1 - 2.5 / 4)
    assert losses.soft_jaccard(logits, labels, smooth=0.5)[0] == pytest.approx(1 - 1.5 / 3)


def test_an_empty_mask_left_empty_is_no_loss():
    logits, labels = column(-99.0, -99.0), column(0, 0)
    for loss in LOSSES.values():
        assert loss(logits, labels)[0] == pytest.approx(0, abs=1e-12)


def test_a_loss_keeps_its_digits_over_many_pixels(rng):
    """float32 logits, but a sum over millions of them in float64."""
    logits = np.full((16, 256, 256, 1), 0.1, np.float32)
    expected = math.log1p(math.exp(float(logits[0, 0, 0, 0])))
    value, _ = losses.bce_with_logits(logits, np.zeros_like(logits))
    assert value == pytest.approx(expected, rel=1e-6)
    assert isinstance(value, float)


@every_loss
def test_bad_arguments_raise(loss):
    with pytest.raises(ValueError, match="do not fit"):
        loss(np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4)))
    with pytest.raises(TypeError, match="float32"):
        loss(np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4, 1), np.uint8))
