"""The recipes of benchmarks/recipe.py: a fair reference, and views whose labels stay true."""

import numpy as np
import pytest

from minicnn.checkpoint import net_arrays
from segment.data.labels import IGNORE
from segment.data.tiles import Tile, TileStore

pytest.importorskip("torch")
recipe = pytest.importorskip("benchmarks.recipe")


@pytest.fixture
def store(rng):
    """Four tiles of 32 pixels, which the net takes as well as any other."""
    images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    labels = rng.choice(np.array([0, 1, 255], np.uint8), (4, 32, 32))
    tiles = [Tile(f"austin{n}", "austin", f"austin{n}_0", 0, 0) for n in range(4)]
    return TileStore(images, labels, tiles, None, None, "")


def test_pytorch_learns_the_same_from_the_same_batches(store):
    parts = {"train": np.arange(4), "val": np.arange(1), "test": np.arange(1)}
    ours, theirs = (
        [net_arrays(net) for net in kind(recipe.Recipe(batch_size=2), store, parts, 1, 6).learn()]
        for kind in (recipe.Student, recipe.TorchStudent)
    )
    start = net_arrays(recipe.UNet(seed=1))["head.w"]
    for mine, other in zip(ours, theirs, strict=True):  # the net, and its average
        moved = mine["head.w"] - start
        assert np.abs(moved).max() > 1e-5
        np.testing.assert_allclose(other["head.w"] - start, moved, rtol=0.02, atol=1e-5)
        np.testing.assert_allclose(other["encoder0.0.mean"], mine["encoder0.0.mean"], rtol=0.01)
    assert (ours[0]["head.w"] != ours[1]["head.w"]).any()


def test_zoomed_tiles_take_their_labels_along(rng):
    labels = rng.choice(np.array([0, 1], np.uint8), (40, 32, 32))
    images = np.repeat(labels[..., None] * np.uint8(200), 3, axis=-1)
    seen, marked = recipe.rich(images, labels, np.random.default_rng(0))
    for image, label in zip(seen, marked, strict=True):
        known = label != IGNORE
        assert 0.3 < known.mean() < 1  # a square is cut out of each, and some are zoomed out
        grey = image[..., 0].astype(int)
        assert grey[known & (label == 1)].min() > grey[known & (label == 0)].max()


def test_fewer_scenes_are_whole_scenes(store):
    store.tiles[1:] = [Tile(f"b{n // 2}", "banepa", f"b{n}_0", 0, 0) for n in range(3)]
    chosen = [list(recipe.fewer(store, np.arange(4), 1 / 3, seed)) for seed in range(20)]
    assert {tuple(tiles) for tiles in chosen} == {(0,), (1, 2), (3,)}
    assert list(recipe.fewer(store, np.arange(1, 4), 1, 0)) == [1, 2, 3]
