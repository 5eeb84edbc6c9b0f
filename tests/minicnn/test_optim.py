"""Optimisers resumed from their state, Muon by its plain iteration, schedules by closed forms.

That each optimiser takes PyTorch's steps is in test_against_torch.py.
"""

import math

import numpy as np
import pytest

import minicnn as mc
from minicnn import optim

KINDS = {
    "sgd": lambda net: optim.SGD(net, 0.05, momentum=0.8),
    "adam": lambda net: optim.Adam(net, 0.05),
    "muon": lambda net: optim.Muon(net, 0.05, adam=1.0),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def small_net(seed=0):
    rng = np.random.default_rng(seed)
    return mc.Sequential(mc.Conv2d(2, 3, 3, rng=rng), mc.BatchNorm2d(3), mc.ReLU())


def train(net, optimizer, batches):
    for x in batches:
        net.backward(net.forward(x, training=True))
        optimizer.step()


@every_kind
def test_the_first_step_by_hand(make):
    net = mc.BatchNorm2d(1)
    net.grads = {"gamma": np.array([2.0], np.float32), "beta": np.array([-3.0], np.float32)}
    optimizer = make(net)
    optimizer.step()
    expected = {
        optim.SGD: (1 - 0.05 * 2, 0.05 * 3),
        optim.Adam: (1 - 0.05, 0.05),  # whatever the gradient's size
        optim.Muon: (1 - 0.05, 0.05),  # it leaves what is no kernel to Adam
    }[type(optimizer)]
    np.testing.assert_allclose([net.params["gamma"][0], net.params["beta"][0]], expected, rtol=1e-6)


@every_kind
def test_resuming_from_a_file_is_bit_for_bit(make, rng, tmp_path):
    batches = rng.standard_normal((6, 1, 6, 6, 2)).astype(np.float32)
    straight = small_net()
    train(straight, make(straight), batches)

    first = small_net()
    optimizer = make(first)
    train(first, optimizer, batches[:3])
    file = tmp_path / "last.safetensors"
    mc.checkpoint.save(file, {**mc.checkpoint.net_arrays(first), **optimizer.state()}, {})
    arrays, _ = mc.checkpoint.load(file)
    second = small_net(seed=9)
    resumed = make(second)
    mc.checkpoint.load_net(second, {k: arrays[k] for k in mc.checkpoint.net_arrays(second)}, file)
    resumed.load_state(arrays)
    assert resumed.steps == 3
    train(second, resumed, batches[3:])
    for name, p in mc.checkpoint.net_arrays(straight).items():
        np.testing.assert_array_equal(p, mc.checkpoint.net_arrays(second)[name])


@every_kind
def test_parameters_move_in_place(make, rng):
    """Who holds a parameter sees it learn."""
    net = small_net()
    held = net.parameters()
    before = {name: p.copy() for name, p in held.items()}
    train(net, make(net), [rng.standard_normal((1, 6, 6, 2)).astype(np.float32)])
    for name, p in net.parameters().items():
        assert p is held[name]
        assert p.dtype == np.float32
    assert (held["0.w"] != before["0.w"]).all()


@pytest.mark.parametrize("shape", [(64, 16), (4096, 32), (9, 20), (48, 48), (5, 1)])
@pytest.mark.parametrize("rounds", [1, 5])
def test_orthogonalised_is_the_plain_iteration_and_bounds_the_singular_values(rng, shape, rounds):
    """Against X <- X (a I + b X^T X + c (X^T X)^2) in float64, which the Gram form avoids."""
    u = rng.standard_normal(shape).astype(np.float32)
    x = u.astype(float) / np.linalg.norm(u.astype(float))
    a, b, c = optim.NEWTON_SCHULZ
    for _ in range(rounds):
        gram = x.T @ x
        x = a * x + b * x @ gram + c * x @ gram @ gram
    got = optim.orthogonalised(u, rounds)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, x, atol=2e-5)
    if rounds == 5:
        singular = np.linalg.svd(optim.orthogonalised(u.astype(float)), compute_uv=False)
        assert singular.min() > 0.3 and singular.max() < 1.3
        left, _, right = np.linalg.svd(u.astype(float), full_matrices=False)
        assert (x * (left @ right)).sum() / min(shape) > 0.6  # it is the nearest rotation's kin


def test_nothing_to_orthogonalise_is_nothing():
    assert not optim.orthogonalised(np.zeros((6, 3), np.float32)).any()


def test_muon_by_the_plain_iteration(rng):
    """Three steps of a kernel in float64, beside the formulas of the docstring."""
    net = mc.Conv2d(3, 4, 2, rng=rng)
    w = net.params
    w["w"], w["b"] = w["w"].astype(float), w["b"].astype(float)
    expected, m = w["w"].copy(), np.zeros((12, 4))
    length = np.linalg.norm(expected)
    optimizer = optim.Muon(net, lr=0.1, momentum=0.8, adam=0.5)
    a, b, c = optim.NEWTON_SCHULZ
    for _ in range(3):
        g = rng.standard_normal((2, 2, 3, 4))
        net.grads = {"w": g, "b": np.ones(4)}
        optimizer.step()
        m = 0.8 * m + 0.2 * g.reshape(12, 4)
        x = 0.2 * g.reshape(12, 4) + 0.8 * m
        x /= np.linalg.norm(x)
        for _ in range(5):
            gram = x.T @ x
            x = a * x + b * x @ gram + c * x @ gram @ gram
        expected -= 0.1 * length / math.sqrt(4) * x.reshape(expected.shape)
        expected *= length / np.linalg.norm(expected)
        np.testing.assert_allclose(w["w"], expected, rtol=1e-9)
    np.testing.assert_allclose(w["b"], -3 * 0.1 * 0.5, rtol=1e-6)  # Adam's, at half the rate


def test_muon_leaves_kernels_of_one_pixel_to_adam(rng):
    net = mc.Sequential(mc.Conv2d(3, 4, 2, rng=rng), mc.Conv2d(4, 1, 1, rng=rng))
    optimizer = optim.Muon(net)
    assert optimizer.names == ("0.w",) and optimizer.adam.names == ("0.b", "1.w", "1.b")


def test_muon_moves_a_net_of_kernels_only(rng):
    net = mc.Conv2d(2, 3, 3, rng=rng)
    del net.params["b"]
    net.grads = {"w": np.ones_like(net.params["w"])}
    before = net.params["w"].copy()
    optim.Muon(net, 0.05).step()
    assert (net.params["w"] != before).any()


def test_cosine_with_warmup():
    schedule = optim.Cosine(0.8, steps=110, warmup=10)
    warmup = [schedule.at(step) for step in range(10)]
    np.testing.assert_allclose(warmup, 0.08 * np.arange(1, 11))
    after = [schedule.at(step) for step in (10, 35, 60, 85, 110, 500)]
    half, root = 0.4, math.sqrt(0.5)
    np.testing.assert_allclose(
        after, [0.8, half * (1 + root), half, half * (1 - root), 0, 0], atol=1e-12
    )


@pytest.mark.parametrize(("steps", "warmup"), [(5, 5), (3, 5), (1, 0), (0, 0)])
def test_cosine_with_no_room(steps, warmup):
    schedule = optim.Cosine(1.0, steps, warmup)
    assert all(0 <= schedule.at(step) <= 1 for step in range(10))


def test_an_average_follows_the_net_as_the_formula_says(rng):
    net = small_net()
    average = optim.Average(net, decay=0.95)
    expected = {name: a.astype(float) for name, a in mc.checkpoint.net_arrays(net).items()}
    for t in range(1, 250):  # from 171 on t / (9 + t) is above the decay
        for array in mc.checkpoint.net_arrays(net).values():
            array += rng.standard_normal(array.shape).astype(np.float32)
        average.update(t)
        if t > 100 and t % 10:
            continue
        d = min(0.95, t / (9 + t)) ** (10 if t > 100 else 1)
        for name, array in mc.checkpoint.net_arrays(net).items():
            expected[name] = d * expected[name] + (1 - d) * array
    for name, array in mc.checkpoint.net_arrays(average.net).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)
        assert not np.shares_memory(array, mc.checkpoint.net_arrays(net)[name])
