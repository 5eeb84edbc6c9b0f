"""The recipes of benchmarks/recipe.py: a fair reference, and views whose labels stay true."""

import sys
from functools import partial

import numpy as np
import pytest

from minicnn.checkpoint import net_arrays
from minicnn.layers import Conv2d
from minicnn.optim import Muon
from segment.data.labels import IGNORE
from segment.data.tiles import FULL, TILE, Picture, Tile, TileStore
from segment.synthetic.draw import CITIES
from segment.synthetic.scenes import write_scenes

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="no PyTorch")
recipe = pytest.importorskip("benchmarks.recipe")


@pytest.fixture
def store(rng):
    """Four scenes of one tile."""
    pictures, tiles = {}, []
    for n in range(4):
        pixels = rng.integers(0, 256, (TILE, TILE, 3), dtype=np.uint8)
        coverage = rng.choice(np.array([0, 100, FULL, IGNORE], np.uint8), (TILE, TILE))
        pictures["austin", f"austin{n}"] = Picture(pixels, coverage)
        tiles.append(Tile(f"austin{n}", "austin", f"austin{n}", 0, 0))
    return TileStore(pictures, tiles, None, None, "")


def test_pytorch_learns_the_same_from_the_same_batches(store):
    parts = {"train": np.arange(4), "val": np.arange(1), "test": np.arange(1)}
    ours, theirs = (
        [net_arrays(net) for net in kind(recipe.Recipe(batch_size=2), store, parts, 1, 2).learn()]
        for kind in (recipe.Student, recipe.TorchStudent)
    )
    start = net_arrays(recipe.UNet(seed=1))
    for mine, other in zip(ours, theirs, strict=True):  # the net, and its average
        moved = mine["head.w"] - start["head.w"]
        assert np.abs(moved).max() > 1e-5
        assert np.linalg.norm(other["head.w"] - start["head.w"] - moved) < 0.1 * np.linalg.norm(
            moved
        )
        np.testing.assert_allclose(other["encoder0.0.mean"], mine["encoder0.0.mean"], atol=5e-3)
    assert (ours[0]["head.w"] != ours[1]["head.w"]).any()


def test_the_command_writes_a_row_for_each_recipe_and_measures_none_twice(
    monkeypatch, tmp_path, capsys
):
    write_scenes(tmp_path / "data", CITIES[:3], scenes_per_city=1, size=TILE, seed=0)
    monkeypatch.setattr(recipe, "FOLDER", tmp_path)
    monkeypatch.setattr(recipe, "write", partial(recipe.write, folder=tmp_path))
    options = ["--data", str(tmp_path / "data"), "--cache", str(tmp_path / "cache"), "--tiles", "1"]
    options += ["--split", "city", "--learn-at", "0.3", "--rows", "default", "mirrored"]
    monkeypatch.setattr(sys, "argv", ["recipe", *options])
    recipe.main()
    assert "default 0 {'pooled'" in capsys.readouterr().out
    text = (tmp_path / "recipe.md").read_text()
    assert "## 1 tiles at 0.3 m\n" in text
    assert "| default | 1 |" in text and "| mirrored | 1 |" in text
    recipe.main()
    assert "default 0" not in capsys.readouterr().out


def test_pytorchs_muon_takes_the_same_steps(rng):
    """From the same gradients: those of two libraries differ by rounding, and Muon turns the
    smallest directions of them into whole ones."""
    net = Conv2d(3, 5, 4, rng=rng)
    ours = Muon(net, lr=0.1)
    weights = torch.tensor(net.params["w"].transpose(3, 2, 0, 1).copy(), requires_grad=True)
    theirs = recipe.TorchMuon([weights])
    for _ in range(3):
        g = rng.standard_normal(net.params["w"].shape).astype(np.float32)
        net.grads = {"w": g, "b": np.zeros(5, np.float32)}
        weights.grad = torch.tensor(g.transpose(3, 2, 0, 1).copy())
        ours.step()
        theirs.step(0.1)
    found = weights.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(found, net.params["w"], atol=1e-5)


@pytest.mark.parametrize("alter", [recipe.mirrored, recipe.turned])
def test_altered_crops_take_their_labels_along(rng, alter):
    coverage = rng.integers(0, FULL, (32, 32), dtype=np.uint8)
    crop = np.repeat(coverage[..., None], 3, axis=-1), coverage
    kinds = {alter(crop, np.random.default_rng(seed))[1].tobytes() for seed in range(60)}
    assert len(kinds) == {"mirrored": 2, "turned": 8}[alter.__name__]
    for seed in range(10):
        pixels, moved = alter(crop, np.random.default_rng(seed))
        assert (pixels[..., 1] == moved).all()


def test_what_is_drawn_a_pixel_smaller_grows_back_and_into_no_neighbour(rng):
    number = np.zeros((20, 30), np.int32)
    number[3:9, 2:12] = 1
    number[3:9, 13:20] = 2
    coverage = np.where(number > 0, FULL, 0).astype(np.uint8)
    coverage[15:, :5] = IGNORE
    _, small = recipe.shrunk((np.zeros((20, 30, 3), np.uint8), coverage), rng)
    assert ((small == FULL).sum(), (small == IGNORE).sum()) == (4 * 8 + 4 * 5, 25)
    back = recipe.grown(np.where(small == FULL, number, 0))
    corners = [(r, c) for r in (3, 8) for c in (2, 11, 13, 19)]  # steps are along the axes
    assert sorted(zip(*np.nonzero(back != number), strict=True)) == sorted(corners)
    touching = recipe.grown(np.where(np.arange(30) < 15, 1, 2)[None].astype(np.int32))
    assert (touching[0, :15] == 1).all() and (touching[0, 15:] == 2).all()


def test_labels_made_hard_or_smooth_leave_the_unknown_alone(rng):
    coverage = np.array([[0, 100, 127], [200, FULL, IGNORE]], np.uint8)
    crop = np.zeros((2, 3, 3), np.uint8), coverage
    assert recipe.hard(crop, rng)[1].tolist() == [[0, 0, FULL], [FULL, FULL, IGNORE]]
    assert recipe.smoothed(crop, rng)[1].tolist() == [[13, 103, 127], [193, 241, IGNORE]]
