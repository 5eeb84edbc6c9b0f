"""Losses on logits, each with its gradient: `loss(logits, labels) -> (loss, dlogits)`.

logits and labels (N, H, W, 1), labels 0 or 1. `valid` (same shape, 0 or 1) leaves out pixels
without a label. Losses are means over the valid pixels, or ratios of sums over all of them.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from minicnn.backend import Array, array_module, check_float, kernels_for
from minicnn.ranks import sum_of_parts

Fused = Callable[..., tuple[float, Array]]


class Loss(Protocol):
    def __call__(
        self, logits: Array, labels: Array, *, valid: Array | None = None
    ) -> tuple[float, Array]: ...


def sigmoid(logits: Array) -> Array:
    """1 / (1 + exp(-x)), without an overflow at either end."""
    xp = array_module(logits)
    e = xp.exp(-xp.abs(logits))
    return xp.where(logits >= 0, 1, e) / (1 + e)


def bce_with_logits(
    logits: Array,
    labels: Array,
    pos_weight: float = 1.0,
    *,
    valid: Array | None = None,
) -> tuple[float, Array]:
    """Binary cross-entropy, -w y log p - (1 - y) log(1 - p) with p = sigmoid(logit), averaged.

    In logits: (1 - y) x + (1 + (w - 1) y) (log(1 + exp(-|x|)) + max(-x, 0)), where nothing
    overflows. `pos_weight` w counts a building's pixel w times.
    """
    if fused := _fused(logits, labels, valid):
        return fused("bce", logits, labels, valid, pos_weight)
    logits, valid = _counted(logits, valid)
    xp = array_module(logits)
    weight = 1 + (pos_weight - 1) * labels
    softplus = xp.log1p(xp.exp(-xp.abs(logits))) + xp.maximum(-logits, 0)
    losses = (1 - labels) * logits + weight * softplus
    p = sigmoid(logits)
    dlogits = (1 - labels) * p - pos_weight * labels * (1 - p)
    count = xp.asarray(logits.size, float)
    if valid is not None:
        count = valid.sum(dtype=float)
        losses, dlogits = losses * valid, dlogits * valid
    value, count = sum_of_parts(xp.stack((losses.sum(dtype=float), count)))
    count = xp.maximum(count, 1)
    return value / count, dlogits / count.astype(logits.dtype)


def soft_dice(
    logits: Array,
    labels: Array,
    smooth: float = 1.0,
    *,
    valid: Array | None = None,
) -> tuple[float, Array]:
    """1 - (2 sum(p y) + s) / (sum(p) + sum(y) + s): Dice's overlap of soft masks.

    Milletari, Navab, Ahmadi 2016, arXiv:1606.04797. `smooth` s keeps empty masks harmless.
    """
    if fused := _fused(logits, labels, valid):
        return fused("dice", logits, labels, valid, smooth)
    logits, valid = _counted(logits, valid)
    p, both, total = _overlaps(logits, labels, valid)
    ratio = (2 * both + smooth) / (total + smooth)
    dp = (ratio - 2 * labels) / (total + smooth)
    return 1 - ratio, _through_sigmoid(dp, p, valid)


def soft_jaccard(
    logits: Array,
    labels: Array,
    smooth: float = 1.0,
    *,
    valid: Array | None = None,
) -> tuple[float, Array]:
    """1 - (sum(p y) + s) / (sum(p) + sum(y) - sum(p y) + s): intersection over union, soft."""
    if fused := _fused(logits, labels, valid):
        return fused("jaccard", logits, labels, valid, smooth)
    logits, valid = _counted(logits, valid)
    p, both, total = _overlaps(logits, labels, valid)
    union = total - both + smooth
    ratio = (both + smooth) / union
    dp = (ratio * (1 - labels) - labels) / union
    return 1 - ratio, _through_sigmoid(dp, p, valid)


def total(*losses: Callable[..., tuple[float, Array]]) -> Loss:
    """The sum of several losses, as a loss: `total(bce_with_logits, soft_dice)`."""

    def loss(logits: Array, labels: Array, *, valid: Array | None = None) -> tuple[float, Array]:
        pairs = (f(logits, labels, valid=valid) for f in losses)
        values, gradients = zip(*pairs, strict=True)
        return sum(values), sum(gradients[1:], start=gradients[0])

    return loss


def _check(logits: Array, labels: Array, valid: Array | None) -> None:
    check_float(logits, labels)
    for name, given in (("labels", labels), ("valid", valid)):
        if given is not None and given.shape != logits.shape:
            raise ValueError(f"{name} {given.shape} do not fit logits {logits.shape}")


def _counted(logits: Array, valid: Array | None) -> tuple[Array, Array | None]:
    """Both in one type, with logits of 0 where nothing is known: 0 times NaN would be NaN."""
    if valid is None:
        return logits, None
    logits = array_module(logits).where(valid != 0, logits, logits.dtype.type(0))
    return logits, valid.astype(logits.dtype, copy=False)


def _fused(logits: Array, labels: Array, valid: Array | None) -> Fused | None:
    """The kernel for all three losses and their gradients, where there is one for `logits`."""
    _check(logits, labels, valid)
    fused: Fused | None = kernels_for(logits).loss if logits.dtype == np.float32 else None
    return fused


def _overlaps(logits: Array, labels: Array, valid: Array | None) -> tuple[Array, Array, Array]:
    """p, sum(p y), sum(p) + sum(y), the sums over valid pixels and in float64."""
    p = sigmoid(logits)
    counted = p if valid is None else p * valid
    known = labels if valid is None else labels * valid
    total = counted.sum(dtype=float) + known.sum(dtype=float)
    both = (counted * labels).sum(dtype=float)
    return p, *sum_of_parts(array_module(p).stack((both, total)))


def _through_sigmoid(dp: Array, p: Array, valid: Array | None) -> Array:
    dlogits = dp * p * (1 - p)
    return (dlogits if valid is None else dlogits * valid).astype(p.dtype)
