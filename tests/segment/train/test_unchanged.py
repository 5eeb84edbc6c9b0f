"""A training, step by step, is that of an independent program: the published formulas in PyTorch.

So what a training computes can't change unnoticed, whatever is rebuilt. In double precision the two
agree to rounding; in single precision, on the fast kernels, as well as Muon lets them: it makes
the smallest directions of a gradient, which are rounding, as large as the others.
`python -m benchmarks.two_commits` compares two commits with each other, bit for bit.
"""

import math

import numpy as np
import pytest

from minicnn.checkpoint import net_arrays
from segment.data.crops import CROP
from segment.data.labels import IGNORE
from segment.data.tiles import FULL, TILE, Picture, Tile, TileStore
from segment.model import ModelInfo, normalise
from segment.run_folder import Run
from segment.run_settings import Settings
from segment.train import trainer
from segment.unet import UNet

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="no PyTorch")
with_torch = pytest.importorskip("benchmarks.with_torch")
recipe = pytest.importorskip("benchmarks.recipe")

EPOCHS, WIDTHS, LR = 2, (4, 8, 16), 0.03


class Watched(trainer.Trainer):
    """A trainer that remembers the loss of each step."""

    def read(self, bar):
        before = self.sums.loss
        super().read(bar)
        if self.sums.loss != before:
            self.losses.append((self.sums.loss - before) / self.batch_size)


@pytest.fixture
def new_trainer(rng, tmp_path, monkeypatch):
    """Noise with labels, and pixels without one: two crops of a city and one of another to learn
    from, and a tile to validate on."""
    pictures, tiles = {}, []
    for n, city in enumerate(["austin", "tyrol-w", "tyrol-w"]):
        pixels = rng.integers(0, 256, (TILE, TILE, 3), dtype=np.uint8)
        coverage = rng.choice(np.array([0, 100, FULL, IGNORE], np.uint8), (TILE, TILE))
        if n < 2:
            coverage[CROP:], coverage[:, CROP * (2 - n) :] = IGNORE, IGNORE
        pictures[city, f"{city}{n}"] = Picture(pixels, coverage)
        tiles.append(Tile(f"{city}{n}", city, f"{city}{n}", 0, 0))
    store = TileStore(pictures, tiles, None, None, "")
    parts = {"train": np.arange(2), "val": np.arange(2, 3), "test": np.arange(2, 3)}

    def new(dtype):
        monkeypatch.setattr(trainer, "normalise", lambda pixels: normalise(pixels).astype(dtype))
        net = UNet(widths=WIDTHS, seed=3).astype(dtype)
        settings = Settings(epochs=EPOCHS, batch_size=2, lr=LR, seed=3)
        made = Watched(net, ModelInfo(), store, parts, Run(tmp_path), settings, "cpu")
        made.losses = []
        return made

    return new


def reference(untouched):
    """Losses, weights and averaged weights, by PyTorch, from the weights and over the crops of an
    untouched trainer. All that is done with them is written anew, here or in `benchmarks`."""
    net = with_torch.UNet(WIDTHS).double()
    arrays = net_arrays(untouched.net)
    with torch.no_grad():
        with_torch.copy_in(net, arrays)
    average = torch.optim.swa_utils.AveragedModel(net, avg_fn=recipe.approach, use_buffers=True)
    average.update_parameters(net)  # the first call copies
    kernels = [p for p in net.parameters() if p.ndim == 4 and p.shape[-1] > 1]
    others = [p for p in net.parameters() if not (p.ndim == 4 and p.shape[-1] > 1)]
    muon, adam = recipe.TorchMuon(kernels), torch.optim.Adam(others)
    losses, steps = [], untouched.steps_per_epoch
    for epoch in range(EPOCHS):
        untouched.epoch = epoch
        for step, (images, coverage) in enumerate(untouched.augmented()):
            done = epoch * steps + step  # one epoch of warming up, then half a cosine
            lr = LR * (done + 1) / steps
            if epoch > 0:
                lr = LR * (1 + math.cos(math.pi * step / ((EPOCHS - 1) * steps))) / 2
            net.zero_grad()
            x = (torch.tensor(images).double().permute(0, 3, 1, 2) - 127.5) / 64
            loss = wanted(net(x)[:, 0], torch.tensor(coverage))
            loss.backward()
            adam.param_groups[0]["lr"] = lr / 15
            adam.step()
            muon.step(lr)
            average.update_parameters(net)
            losses.append(loss.item())
    learnt, averaged = ({n: a.copy() for n, a in arrays.items()} for _ in range(2))
    with_torch.copy_out(net, learnt)
    with_torch.copy_out(average.module, averaged)
    return losses, learnt, averaged


def wanted(logits, coverage):
    """Cross-entropy and soft Dice over the pixels that have a label."""
    valid = coverage != IGNORE
    x, y = logits[valid], coverage[valid].double() / FULL
    p = torch.sigmoid(x)
    entropy = -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()
    return entropy + 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def apart(found, wanted, start):
    """How far arrays are apart, as a share of the way that they went."""
    way = sum(np.square(wanted[name] - start[name]).sum() for name in wanted)
    return math.sqrt(sum(np.square(found[n] - wanted[n]).sum() for n in wanted) / way)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("dtype", "of_losses", "of_weights"), [(np.float64, 1e-9, 1e-8), (np.float32, 1e-4, 0.2)]
)
def test_a_training_is_that_of_the_published_formulas(new_trainer, dtype, of_losses, of_weights):
    losses, learnt, averaged = reference(new_trainer(np.float64))
    own = new_trainer(dtype)
    start = {name: array.astype(np.float64) for name, array in net_arrays(own.net).items()}
    own.fit()
    assert len(losses) == EPOCHS * own.steps_per_epoch == 4
    np.testing.assert_allclose(own.losses, losses, rtol=of_losses)
    assert apart(net_arrays(own.net), learnt, start) < of_weights
    assert apart(net_arrays(own.average.net), averaged, start) < of_weights
