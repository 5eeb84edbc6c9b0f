"""Ranks that share a batch, here threads of one process: together they equal one with all of it."""

import threading

import numpy as np
import pytest

import minicnn as mc
from minicnn.backend import array_module, kernels_for
from minicnn.gradcheck import check_layer
from minicnn.losses import bce_with_logits, soft_dice, soft_jaccard, total
from minicnn.optim import Muon
from minicnn.ranks import Ranks, parts, sharing
from segment.unet import UNet

LOSS = total(bce_with_logits, soft_dice, soft_jaccard)
LAYERS = {
    "norm": lambda: mc.BatchNorm2d(3),
    "block": lambda: mc.ConvBlock(3, 4, 3, rng=np.random.default_rng(1)),
}


class Threads(Ranks):
    """Ranks that are threads, one of them at work at a time: each lays down its part of a sum,
    and all add up what lies there."""

    def __init__(self, count):
        self.count = count
        self.barrier = threading.Barrier(count, timeout=60)
        self.turn = threading.Lock()
        self.parts = {}

    @property
    def rank(self):
        return int(threading.current_thread().name)

    def sum(self, a):
        return sum(self._everyones(a))

    def hand_round(self, arrays, owners):
        everyones = self._everyones([mc.to_host(a).copy() for a in arrays])
        for number, owner in enumerate(owners):
            arrays[number][...] = array_module(arrays[number]).asarray(everyones[owner][number])

    def _everyones(self, mine):
        self.parts[self.rank] = mine
        self._meet()
        parts = [self.parts[rank] for rank in range(self.count)]
        self._meet()
        return parts

    def _meet(self):
        self.turn.release()
        try:
            self.barrier.wait()
        finally:
            self.turn.acquire()

    def run(self, f, *shares):
        """What `f` returns on each rank, given its item of each of `shares`."""
        results = [None] * self.count

        def work(rank):
            with self.turn:
                try:
                    results[rank] = f(*(items[rank] for items in shares))
                except BaseException:
                    self.barrier.abort()
                    raise

        threads = [
            threading.Thread(target=work, args=(rank,), name=str(rank))
            for rank in range(self.count)
        ]
        with sharing(self):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return results


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_parts_of_a_batch_equal_the_whole(xp, rng, dtype):
    """Logits, loss, gradients (which add up) and running statistics; some labels are missing."""
    level = np.arange(4)[:, None, None, None]  # the parts differ in their means
    x = (rng.standard_normal((4, 16, 16, 3)) + level).astype(dtype)
    y = (rng.random((4, 16, 16, 1)) > 0.7).astype(dtype)
    valid = (rng.random(y.shape) > level / 5).astype(dtype)

    def step(*arrays):
        x, y, valid = map(xp.asarray, arrays)
        net = UNet(widths=(4, 8), seed=1).astype(dtype)
        net.to("cpu" if xp is np else "gpu")
        logits = net.forward(x, training=True)
        loss, dlogits = LOSS(logits, y, valid=valid)
        net.backward(dlogits)
        dicts = net.gradients(), net.buffers()
        return (
            mc.to_host(logits),
            mc.to_host(loss),
            *({name: mc.to_host(a) for name, a in d.items()} for d in dicts),
        )

    logits, loss, gradients, buffers = step(x, y, valid)
    both = Threads(2).run(step, *(np.split(a, 2) for a in (x, y, valid)))
    near = {"rtol": 1e-9, "atol": 1e-11} if dtype == "float64" else {"rtol": 2e-4, "atol": 2e-5}
    np.testing.assert_allclose(np.concatenate([part[0] for part in both]), logits, **near)
    for part in both:
        np.testing.assert_allclose(part[1], loss, **near)
        for name, buffer in buffers.items():
            np.testing.assert_allclose(part[3][name], buffer, **near, err_msg=name)
            np.testing.assert_array_equal(part[3][name], both[0][3][name])
    for name, gradient in gradients.items():
        added = both[0][2][name] + both[1][2][name]
        np.testing.assert_allclose(added, gradient, **near, err_msg=name)


def test_ranks_share_out_the_turning_of_kernels(xp, rng, monkeypatch):
    """Each turns some, and all end with what one alone would have, momenta included."""
    kernels = {
        "one": (4, 4, 3, 5),
        "two": (2, 2, 8, 8),
        "three": (3, 3, 2, 6),
        "four": (2, 2, 5, 1),
    }
    shapes = {**kernels, "bias": (7,)}  # which Adam moves
    steps = [{n: rng.standard_normal(s, np.float32) for n, s in shapes.items()} for _ in range(3)]
    start = {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()}
    turned = []

    class Noting(Muon):
        def _turn(self, p, *more):
            turned.append(p.shape)
            super()._turn(p, *more)

    monkeypatch.setattr(kernels_for(xp.zeros(1)), "suits_muon", lambda p: False)

    def train(_):
        net = mc.Layer()
        net.params = {name: xp.array(p) for name, p in start.items()}
        optimizer = Noting(net)
        for step in steps:
            net.grads = {name: xp.asarray(g) for name, g in step.items()}
            optimizer.step()
        return {n: mc.to_host(a) for n, a in {**net.params, **optimizer.state()}.items()}

    expected = train(0)
    assert len(turned) == 12
    turned.clear()
    for result in Threads(2).run(train, range(2)):
        for name, a in expected.items():
            np.testing.assert_array_equal(result[name], a, err_msg=name)
    assert sorted(turned) == sorted(3 * list(kernels.values()))


@pytest.mark.parametrize("work", [[], [3], [9, 4, 4, 1], [1] * 7])
def test_work_is_shared_out_evenly(work):
    owners = np.array(Threads(3).shared_out(work), int)
    loads = [sum(np.array(work)[owners == rank]) for rank in range(3)]
    assert len(owners) == len(work) and max(loads) <= max([*work, -(-sum(work) // 3)], default=0)


def test_sharing_ends_with_its_block():
    with pytest.raises(KeyError), sharing(Threads(2)):
        assert parts() == 2
        raise KeyError
    assert parts() == 1


class Halves(mc.Layer):
    """A layer on two ranks, each with half of the batch, seen as one layer on all of it."""

    def __init__(self, name):
        super().__init__()
        self.layers = [LAYERS[name]().astype(float) for _ in range(2)]
        self.threads = Threads(2)
        for layer in self.layers:
            layer.params = self.layers[0].params

    def children(self):
        return {"one": self.layers[0]}

    def forward(self, x, training=False):
        return self._each(lambda layer, part: layer.forward(part, training), x)

    def backward(self, dy):
        dx = self._each(lambda layer, part: layer.backward(part), dy)
        one, other = (layer.grads for layer in self.layers)
        self.layers[0].grads = {name: one[name] + other[name] for name in one}
        return dx

    def _each(self, f, a):
        return np.concatenate(self.threads.run(f, self.layers, np.split(a, 2)))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_over_ranks_along_a_random_direction(rng, name):
    """One rank's images move the statistics, so the outputs, of every rank."""
    x = rng.standard_normal((4, 5, 6, 3))
    x[:2] += 1
    check_layer(Halves(name), x, rng=rng, training=True)
