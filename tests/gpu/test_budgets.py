"""What a training step on the GPU may cost, counted by the stand-in."""

import gc
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

from minicnn.backend import staged
from minicnn.optim import Average, Muon
from segment.selfcheck.roofline import GPUS, count, seconds
from segment.train.gpu_memory import largest_batch, training_bytes
from segment.train.ranks import World
from segment.train.trainer import Trainer
from segment.unet import UNet

LAUNCHES = 277  # of a step with Muon, whatever the batch
SHARED = 20  # more, where few pixels have blocks share sums
WIDTHS = (4, 8, 16, 32, 64)


class Steps:
    """A trainer's steps without its data: `take` does one and returns what it cost."""

    def __init__(self, stand_in, widths=WIDTHS):
        self.stand_in, self.net = stand_in, UNet(widths=widths)
        self.net.to("gpu")
        self.optimizer = Muon(self.net)
        self.optimizer.steps = 100  # then come nine in ten that the average takes no note of
        self.added = []
        self.trainer = SimpleNamespace(
            net=self.net,
            optimizer=self.optimizer,
            schedule=SimpleNamespace(at=lambda step: 1e-3),
            epoch=0,
            step=0,
            steps_per_epoch=1,
            world=World(),
            average=Average(self.net),
            sums=SimpleNamespace(add=lambda *batch: self.added.append(batch)),
        )
        self.trainer.forward = lambda *a, **k: Trainer.forward(self.trainer, *a, **k)

    def take(self, batch, size):
        self.trainer.batch_size = batch
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        labels = rng.choice(np.array([0, 1, 255], np.uint8), (batch, size, size))
        (on_device,) = staged([(pixels, labels)], "gpu")
        self.stand_in.reset()
        with self.stand_in.forbid_transfers():
            Trainer.train_step(self.trainer, *on_device)
        self.added.clear()
        return dict(self.stand_in.counts)


@pytest.fixture
def steps(stand_in):
    steps = Steps(stand_in)
    steps.take(1, 16)  # the first allocates the gradients
    gc.collect()  # what other tests left lives no longer, or it would be counted until it goes
    return steps


def test_nothing_is_copied_inside_a_step(steps):
    cost = steps.take(2, 32)
    assert not {"h2d", "d2h", "async h2d"} & cost.keys()


def test_a_batch_travels_once_and_as_bytes(steps, stand_in):
    stand_in.reset()
    tiles = np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 32, 32), np.uint8)
    list(staged([tiles], "gpu"))
    assert stand_in.counts["async h2d bytes"] == 2 * 32 * 32 * 4
    assert stand_in.counts["h2d"] == 0


@pytest.mark.parametrize("batch, size", [(1, 16), (3, 32)])
def test_launches(steps, batch, size, monkeypatch):
    cost = steps.take(batch, size)
    assert cost["launches"] <= LAUNCHES + SHARED
    assert cost["launch adam"] == cost["launch muon_turn"] == 1
    kernels = import_module("minicnn.kernels.gpu")
    monkeypatch.setattr(kernels, "LEAST", 10**6)
    assert steps.take(batch, size)["launches"] <= LAUNCHES
    assert cost["launch bn_apply"] == 18 and cost["launch bn_backward_apply"] == 18


def test_memory_is_what_the_count_says(steps):
    """`--batch-size auto` goes by the count: no less than the truth, and not much more."""
    for batch, size in ((1, 64), (2, 64), (2, 128)):
        peak = steps.take(batch, size)["peak bytes"]
        counted = training_bytes(steps.net, batch, size)
        without_parts = counted - training_bytes(steps.net, 0, size)
        assert peak <= counted
        assert peak >= 0.8 * without_parts


def test_memory_does_not_grow(steps):
    live = [steps.take(1, 32)["live bytes"] for _ in range(3)]
    assert live[0] == live[1] == live[2]


def test_bytes_allocated_per_tile(steps):
    """The maps there and back, and at this small size the parts of the weight gradients."""
    one, two = (steps.take(batch, 128)["allocated bytes"] for batch in (1, 2))
    forward = training_bytes(steps.net, 1, 128) - training_bytes(steps.net, 0, 128)
    assert two - one <= 4.2 * forward


# ---------------------------------------------------------------------------- the count


def test_the_count_is_that_of_the_design():
    net = UNet()
    forward, both = (count(net, batch=1, training=t) for t in (False, True))
    assert sum(w.flop for w in forward) == pytest.approx(11.38e9, rel=1e-3)
    assert sum(w.flop for w in both) == pytest.approx(34.03e9, rel=1e-3)


def test_predictions_rank_the_gpus_as_their_data_sheets_do():
    work = count(UNet())
    rates = {gpu.name: 16 / seconds(work, gpu) for gpu in GPUS}
    assert rates["T4"] < rates["L4"] < rates["A10G"] < rates["H100"]
    assert rates["A10G"] == pytest.approx(650, rel=0.1) and rates["T4"] == pytest.approx(
        199, rel=0.1
    )


def test_the_largest_batch_is_the_largest():
    net = UNet()
    for free in (1 << 30, 15 << 30):
        batch = largest_batch(net, free)
        assert training_bytes(net, batch) <= free < training_bytes(net, batch + 1)
    assert largest_batch(net, 1 << 20) == 0
