"""PyTorch as a second oracle: the same numbers in, the same numbers out, forwards and backwards.

Its arrays are (N, C, H, W) and its weights (F, C, K, K); `theirs` and `ours` translate.
"""

import numpy as np
import pytest

import minicnn as mc
from minicnn import losses, ops, optim
from minicnn.ops import Statistics, pads

PADS = [0, 1, ((1, 2), (1, 2)), ((0, 2), (1, 0))]


@pytest.fixture
def theirs(torch):
    """A leaf tensor of an image, of weights, or of a vector, in PyTorch's order of axes."""

    def tensor(array, axes=(0, 3, 1, 2)):
        array = array.transpose(axes) if array.ndim == 4 else array
        return torch.tensor(np.ascontiguousarray(array), requires_grad=True)

    return tensor


WEIGHTS = (3, 2, 0, 1)  # (K, K, C, F) -> (F, C, K, K), and (K, K, F, C) -> (C, F, K, K)


def ours(tensor, axes=(0, 2, 3, 1)):
    array = tensor.detach().numpy()
    return array.transpose(axes) if array.ndim == 4 else array


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def compare(y, backward, expected, *leaves, rng):
    """The output, and for a random dy the gradient of every leaf: (tensor, axes of ours)."""
    close(y, ours(expected))
    dy = rng.standard_normal(y.shape)
    expected.backward(expected.new_tensor(dy.transpose(0, 3, 1, 2)))
    gradients = backward(dy)
    if not isinstance(gradients, tuple):
        gradients = (gradients,)
    for mine, (tensor, axes) in zip(gradients, leaves, strict=True):
        close(mine, ours(tensor.grad, axes))


IMAGE, VECTOR, FILTERS = (0, 2, 3, 1), None, (2, 3, 1, 0)


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_conv2d(torch, theirs, rng, kernel, stride, pad):
    x, w, b = (rng.standard_normal(s) for s in ((2, 7, 6, 3), (kernel, kernel, 3, 5), 5))
    y, cache = ops.conv2d(x, w, b, stride, pad)
    tx, tw, tb = theirs(x), theirs(w, WEIGHTS), theirs(b)
    (top, bottom), (left, right) = pads(pad)
    padded = torch.nn.functional.pad(tx, (left, right, top, bottom))
    expected = torch.nn.functional.conv2d(padded, tw, tb, stride)
    leaves = (tx, IMAGE), (tw, FILTERS), (tb, VECTOR)
    compare(y, lambda dy: ops.conv2d_backward(dy, cache), expected, *leaves, rng=rng)


@pytest.mark.parametrize("crop", [0, 1, ((1, 0), (0, 2))])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 4])
def test_conv_transpose2d(torch, theirs, rng, kernel, stride, crop):
    x, w, b = (rng.standard_normal(s) for s in ((2, 4, 3, 5), (kernel, kernel, 3, 5), 3))
    y, cache = ops.conv_transpose2d(x, w, b, stride, crop)
    tx, tw, tb = theirs(x), theirs(w, WEIGHTS), theirs(b)
    (top, bottom), (left, right) = pads(crop)
    whole = torch.nn.functional.conv_transpose2d(tx, tw, tb, stride)
    expected = whole[:, :, top : whole.shape[2] - bottom, left : whole.shape[3] - right]
    leaves = (tx, IMAGE), (tw, FILTERS), (tb, VECTOR)
    compare(y, lambda dy: ops.conv_transpose2d_backward(dy, cache), expected, *leaves, rng=rng)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(torch, theirs, rng, training):
    x, gamma, beta = (rng.standard_normal(s) for s in ((2, 5, 4, 3), 3, 3))
    mean, var = rng.standard_normal(3), rng.random(3)
    statistics = None if training else Statistics(mean, var)
    y, cache = ops.batch_norm(x, gamma, beta, statistics)
    leaves = theirs(x), theirs(gamma), theirs(beta)
    running = torch.tensor(mean), torch.tensor(var)
    norm = torch.nn.functional.batch_norm
    expected = norm(leaves[0], *running, *leaves[1:], training=training)
    leaves = zip(leaves, (IMAGE, VECTOR, VECTOR), strict=True)
    compare(y, lambda dy: ops.batch_norm_backward(dy, cache), expected, *leaves, rng=rng)


def test_running_statistics(torch, theirs, rng):
    """Two batches of different sizes: the momentum, and the variance made unbiased."""
    layer, module = mc.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    for shape in ((2, 4, 5, 3), (1, 3, 2, 3)):
        x = rng.standard_normal(shape).astype(np.float32) * 3 + 1
        layer.forward(x, training=True)
        module(theirs(x))
    np.testing.assert_allclose(layer.state["mean"], module.running_mean, rtol=1e-5)
    np.testing.assert_allclose(layer.state["var"], module.running_var, rtol=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_max_pool_and_relu(torch, theirs, rng, size):
    x = rng.standard_normal((2, 7, 6, 3))
    positive, relu_cache = ops.relu(x)
    y, pool_cache = ops.max_pool2d(positive, size)
    tx = theirs(x)
    expected = torch.nn.functional.max_pool2d(tx.relu(), size)

    def backward(dy):
        return ops.relu_backward(ops.max_pool2d_backward(dy, pool_cache), relu_cache)

    compare(y, backward, expected, (tx, IMAGE), rng=rng)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_tie_in_a_pool(torch, theirs, rng, value):
    """A flat image, as ReLU makes: PyTorch too gives all to the first pixel of an area."""
    x = np.full((1, 4, 4, 2), value)
    y, cache = ops.max_pool2d(x, 2)
    tx = theirs(x)
    expected = torch.nn.functional.max_pool2d(tx, 2)
    compare(y, lambda dy: ops.max_pool2d_backward(dy, cache), expected, (tx, IMAGE), rng=rng)


# ---------------------------------------------------------------------------- losses


def torch_dice(torch, p, y, valid):
    p, y = p * valid, y * valid
    return 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def torch_jaccard(torch, p, y, valid):
    p, y = p * valid, y * valid
    both = (p * y).sum()
    return 1 - (both + 1) / (p.sum() + y.sum() - both + 1)


def torch_bce(torch, logits, y, valid, pos_weight=1.0):
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    weight = torch.tensor(pos_weight, dtype=logits.dtype)
    summed = bce(logits, y, weight=valid, pos_weight=weight, reduction="sum")
    return summed / valid.sum()


LOSSES = {
    "bce": (losses.bce_with_logits, torch_bce),
    "weighted bce": (
        lambda x, y, valid: losses.bce_with_logits(x, y, 3.5, valid=valid),
        lambda *arguments: torch_bce(*arguments, pos_weight=3.5),
    ),
    "dice": (losses.soft_dice, lambda t, x, y, valid: torch_dice(t, x.sigmoid(), y, valid)),
    "jaccard": (
        losses.soft_jaccard,
        lambda t, x, y, valid: torch_jaccard(t, x.sigmoid(), y, valid),
    ),
    "bce + dice": (
        losses.total(losses.bce_with_logits, losses.soft_dice),
        lambda t, x, y, valid: torch_bce(t, x, y, valid) + torch_dice(t, x.sigmoid(), y, valid),
    ),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(torch, rng, name, masked):
    mine, reference = LOSSES[name]
    logits = 4 * rng.standard_normal((3, 5, 4, 1))
    labels = (rng.random(logits.shape) < 0.3).astype(float)
    valid = (rng.random(logits.shape) < 0.6) if masked else None
    loss, dlogits = mine(logits, labels, valid=valid)

    leaf = torch.tensor(logits, requires_grad=True)
    counted = torch.ones(logits.shape) if valid is None else torch.tensor(valid)
    expected = reference(torch, leaf, torch.tensor(labels), counted.to(leaf.dtype))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    close(dlogits, leaf.grad.numpy())


# ---------------------------------------------------------------------------- optimisers


class Slope(mc.Layer):
    """Parameters with gradients that a test writes."""

    def __init__(self, rng):
        super().__init__()
        self.params = {"w": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)}


OPTIMISERS = {
    "sgd": (optim.SGD, "SGD", {"momentum": 0.0}),
    "sgd, momentum": (optim.SGD, "SGD", {"momentum": 0.9}),
    "adam": (optim.Adam, "Adam", {}),
    "adam, set up otherwise": (optim.Adam, "Adam", {"betas": (0.8, 0.9), "eps": 1e-3}),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers_take_the_same_path(torch, rng, name):
    """Ten steps, with a rate that changes on the way."""
    kind, their_kind, settings = OPTIMISERS[name]
    net = Slope(rng)
    tensors = {key: torch.tensor(p, requires_grad=True) for key, p in net.params.items()}
    mine = kind(net, lr=0.1, **settings)
    reference = getattr(torch.optim, their_kind)(tensors.values(), lr=0.1, **settings)
    for step in range(10):
        mine.lr = reference.param_groups[0]["lr"] = 0.1 / (1 + step)
        for key, tensor in tensors.items():
            net.grads[key] = rng.standard_normal(tensor.shape)
            tensor.grad = torch.tensor(net.grads[key])
        mine.step()
        reference.step()
        for key, tensor in tensors.items():
            close(net.params[key], tensor.detach().numpy())


def test_cosine(torch):
    mine = optim.Cosine(0.2, steps=20)
    holder = torch.optim.SGD([torch.zeros(1)], lr=0.2)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(holder, 20)
    for step in range(20):
        assert mine.at(step) == pytest.approx(holder.param_groups[0]["lr"])
        holder.step()
        reference.step()
