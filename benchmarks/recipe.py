"""What raises held-out IoU at equal cost: recipes that differ in one thing, over the same data.

    python -m benchmarks.recipe --data FOLDER... --cache FOLDER --drawn RUN [--seeds 0 1 2]

Cost is counted in tiles that the net learns from, so that what else the machine does has no say:
3,200 of them are about 8 minutes on two quiet cores. A row and seed that the report has already
is not measured again, so a call that is cut short is finished by the same call.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel

from benchmarks import with_torch
from benchmarks.report import FOLDER, machine, table, write
from minicnn import layers
from minicnn.checkpoint import net_arrays
from minicnn.losses import Loss, bce_with_logits, soft_jaccard, total
from minicnn.optim import Constant, Cosine
from segment.data.augment import augment
from segment.data.labels import BUILDING, IGNORE
from segment.data.scenes import find_scenes
from segment.data.splits import make_split
from segment.data.tiles import TileStore, open_store
from segment.evaluate.metrics import BINS, Confusion, calibrate, count_tiles, histogram
from segment.model import Model, ModelInfo, load_model, normalise
from segment.run_folder import Run
from segment.train import trainer
from segment.train.trainer import LOSS, Trainer, visits
from segment.unet import UNet

NAME = "recipe"
DRAWN = "drawn"  # stands for the model that --drawn names
FROM_DRAWN = "first train on drawn scenes"
TILES = 3200
SPLIT_SEED = 655  # its test part holds scenes of Austin, all of Chicago, Banepa and Chinese sites
REGIONS = {
    "Chinese sites": ("china-cities",),
    "INRIA": ("austin", "chicago", "kitsap"),
    "Banepa": ("banepa-nepal",),
}
THIN = {"test": 4, "val": 8}  # of the Chinese tiles, far the most, one in so many is scored


@dataclass(frozen=True)
class Recipe:
    """How a net is trained; what a row of the table does not name is `segment.train`'s default."""

    loss: Loss = LOSS
    schedule: Callable[..., Any] = Cosine
    batch_size: int = 4
    lr: float = 1e-3
    augment: Callable[..., Any] = augment
    visits: Callable[[Sequence[str]], NDArray[np.float64]] = visits
    momentum: float = layers.MOMENTUM
    init: str | None = None  # start from this model in place of random weights
    scenes: float = 1  # this share of the scenes is there to train on
    library: str = "minicnn"


def uniform(cities: Sequence[str]) -> NDArray[np.float64]:
    """Every tile once an epoch, whatever city it is of."""
    return np.ones(len(cities))


def rich(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """`augment`; half of the tiles zoomed by up to 1.5 either way, then one square cut out."""
    images, labels = augment(images, labels, rng)
    S = labels.shape[1]
    for n in range(len(images)):
        if rng.random() < 0.5:
            zoom = 1.5 ** rng.uniform(-1, 1)
            corner = rng.uniform(0, 1, 2) * (S - S / zoom)
            places = np.floor(corner[:, None] + (np.arange(S) + 0.5) / zoom).astype(int)
            inside = (places >= 0) & (places < S)
            rows, cols = np.clip(places, 0, S - 1)
            outside = ~(inside[0][:, None] & inside[1])
            images[n], labels[n] = images[n][rows][:, cols], labels[n][rows][:, cols]
            images[n][outside], labels[n][outside] = 0, IGNORE
        row, col = rng.integers(0, S - S // 4, 2)
        images[n, row : row + S // 4, col : col + S // 4] = 128
        labels[n, row : row + S // 4, col : col + S // 4] = IGNORE
    return images, labels


def steady(lr: float, *_: int) -> Constant:
    return Constant(lr)


ROWS = {
    "default": Recipe(),
    "PyTorch, the same": Recipe(library="torch"),
    FROM_DRAWN: Recipe(init=DRAWN),
    "every tile equally often": Recipe(visits=uniform),
    "cross-entropy alone": Recipe(loss=bce_with_logits),
    "Jaccard in place of Dice": Recipe(loss=total(bce_with_logits, soft_jaccard)),
    "batches of 2": Recipe(batch_size=2),
    "batches of 8": Recipe(batch_size=8),
    "zoom and cut-out": Recipe(augment=rich),
    "steady learning rate": Recipe(schedule=steady),
}

FEWER = {
    "a quarter of the scenes": Recipe(init=DRAWN, scenes=1 / 4),
    "a sixteenth of the scenes": Recipe(init=DRAWN, scenes=1 / 16),
}
ALL = ROWS | FEWER


class Student(Trainer):
    """A trainer for one recipe, that goes through `tiles` tiles and then stops."""

    def __init__(
        self,
        recipe: Recipe,
        store: TileStore,
        parts: dict[str, NDArray[Any]],
        seed: int,
        tiles: int,
    ) -> None:
        net = UNet(seed=seed)
        if recipe.init:
            net = load_model(recipe.init).net
            net.astype(np.float32)
        super().__init__(
            net,
            ModelInfo(),
            store,
            parts,
            Run(tempfile.gettempdir()),  # where nothing is written
            epochs=1,
            batch_size=recipe.batch_size,
            lr=recipe.lr,
            patience=1,
            seed=seed,
            device="cpu",
        )
        self.steps_per_epoch = tiles // self.batch_size
        self.schedule = trainer.Cosine(recipe.lr, self.steps_per_epoch, 100)

    def learn(self) -> tuple[UNet, UNet]:
        """The net after all its tiles, and its average."""
        for batch in self.augmented():
            self.train_step(*batch)
            self.step += 1
        return self.net, self.average.net


class TorchStudent(Student):
    """The same net from the same weights, over the same batches, in PyTorch."""

    def learn(self) -> tuple[UNet, UNet]:
        theirs = with_torch.UNet().to(memory_format=with_torch.LAYOUT)
        with_torch.copy_in(theirs, net_arrays(self.net))
        average = AveragedModel(theirs, avg_fn=approach, use_buffers=True)
        average.update_parameters(theirs)  # the first call copies
        optimizer = torch.optim.Adam(theirs.parameters())
        for images, labels in self.augmented():
            optimizer.param_groups[0]["lr"] = self.schedule.at(self.step)
            optimizer.zero_grad()
            x = torch.tensor(normalise(images)).permute(0, 3, 1, 2)
            loss = torch_loss(theirs(x)[:, 0], torch.tensor(labels))
            loss.backward()
            optimizer.step()
            average.update_parameters(theirs)
            self.step += 1
        with_torch.copy_out(theirs, net_arrays(self.net))
        with_torch.copy_out(average.module, net_arrays(self.average.net))
        return self.net, self.average.net


def approach(a: torch.Tensor, p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """As minicnn.optim.Average; t counts the updates before."""
    if not a.is_floating_point():  # batch norm counts its batches
        return p
    every = 1 if t <= 100 else 10
    return a if t % every else a + (1 - min(0.999, t / (9 + t)) ** every) * (p - a)


def torch_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy + soft Dice over the pixels that have a label."""
    valid = labels != IGNORE
    x, y = logits[valid], (labels[valid] == BUILDING).float()
    p = torch.sigmoid(x)
    dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
    return torch.nn.functional.binary_cross_entropy_with_logits(x, y) + dice


def measure(
    recipe: Recipe, store: TileStore, parts: dict[str, NDArray[Any]], seed: int, tiles: int
) -> dict[str, float]:
    """Train by a recipe; the pooled IoU of each region's held-out tiles."""
    kind = TorchStudent if recipe.library == "torch" else Student
    parts = {**parts, "train": fewer(store, parts["train"], recipe.scenes, seed)}
    with ExitStack() as stack:
        for name in ("loss", "augment", "visits"):
            target = "LOSS" if name == "loss" else name
            stack.enter_context(patch.object(trainer, target, getattr(recipe, name)))
        stack.enter_context(patch.object(trainer, "Cosine", recipe.schedule))
        stack.enter_context(patch.object(layers, "MOMENTUM", recipe.momentum))
        net, average = kind(recipe, store, parts, seed, tiles).learn()
    averaged = score(Model(average, ModelInfo()), store, parts)
    return {**score(Model(net, ModelInfo()), store, parts), "averaged": averaged["mean"]}


def fewer(store: TileStore, tiles: NDArray[Any], share: float, seed: int) -> NDArray[Any]:
    """The tiles that lie in a share of the scenes, drawn by the seed."""
    scenes = sorted({(store.tiles[i].city, store.tiles[i].scene) for i in tiles})
    count = max(1, round(share * len(scenes)))
    chosen = {scenes[i] for i in np.random.default_rng(seed).permutation(len(scenes))[:count]}
    return np.array([i for i in tiles if (store.tiles[i].city, store.tiles[i].scene) in chosen])


def score(model: Model, store: TileStore, parts: dict[str, NDArray[Any]]) -> dict[str, float]:
    """Pooled test IoU by region at the threshold calibrated on validation, and their mean."""
    counts = np.zeros((2, BINS), np.int64)
    for tiles, probability in predictions(model, store, thinned(store, parts["val"], "val")):
        counts += histogram(probability, store.labels[tiles])
    threshold, _ = calibrate(counts)
    sums = {region: Confusion() for region in REGIONS}
    for tiles, probability in predictions(model, store, thinned(store, parts["test"], "test")):
        rows = count_tiles(probability, store.labels[tiles], threshold)
        for tile, row in zip(tiles, rows, strict=True):
            for region, cities in REGIONS.items():
                if store.tiles[tile].city in cities:
                    sums[region] += Confusion(*map(int, row))
    scores = {region: confusion.iou for region, confusion in sums.items()}
    return {"mean": mean(scores.values()), **scores, "threshold": threshold}


def predictions(
    model: Model, store: TileStore, tiles: NDArray[Any]
) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
    for batch in np.array_split(tiles, -(-len(tiles) // 8)):
        yield batch, model.predict(store.images[batch])


def thinned(store: TileStore, tiles: NDArray[Any], part: str) -> NDArray[Any]:
    chinese = np.array([store.tiles[i].city == "china-cities" for i in tiles])
    return np.concatenate([tiles[~chinese], tiles[chinese][:: THIN[part]]])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe", description=__doc__)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--drawn", help="a model trained on drawn scenes: the run of `make train`")
    parser.add_argument("--pixel-size", type=float, default=0.3)
    parser.add_argument("--rows", nargs="+", choices=ALL, default=list(ALL), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tiles", type=int, default=TILES, help="that each row learns from")
    args = parser.parse_args()
    store = open_store(find_scenes(args.data), pixel_size=args.pixel_size, cache=args.cache)
    split = make_split(store.tiles, "scene", SPLIT_SEED)
    parts = {part: split.indices(store.tiles, part) for part in ("train", "val", "test")}
    for seed in args.seeds:
        for row in args.rows:
            data, recipe = known(), ALL[row]
            rows = data["budgets"].setdefault(str(args.tiles), {})
            if str(seed) in rows.get(row, {}) or (recipe.init and not args.drawn):
                continue
            if recipe.init:
                recipe = replace(recipe, init=args.drawn)
            result = measure(recipe, store, parts, seed, args.tiles)
            rows.setdefault(row, {})[str(seed)] = result
            print(row, seed, {name: round(value, 3) for name, value in result.items()}, flush=True)
            write(NAME, describe(data), data)


def known() -> dict[str, Any]:
    """What the report has already: budget -> row -> seed -> scores."""
    file = FOLDER / f"{NAME}.json"
    return json.loads(file.read_text()) if file.exists() else {"machine": machine(), "budgets": {}}


def describe(data: dict[str, Any]) -> str:
    text = [
        "# What the training's defaults rest on",
        "Written by `python -m benchmarks.recipe`. A row differs from the first of its table in "
        "one thing. Scores are pooled IoU of held-out places (scenes never trained on; Chicago is "
        "a city never trained on) at the threshold calibrated on validation, `mean` that of the "
        "three regions; ± is the standard deviation over seeds, which draw weights, order and "
        "augmentation. `averaged` is the mean of the running average of the weights in place of "
        "the last ones. Rows with 0 seeds are not measured yet: the same call goes on.",
    ]
    for tiles, rows in data["budgets"].items():
        text += [f"## {int(tiles):,} tiles", table([line(name, rows) for name in ROWS])]
        text += [
            "As many tiles seen, of fewer places:",
            table([line(name, rows) for name in (FROM_DRAWN, *FEWER)]),
        ]
    return "\n\n".join(text) + "\n"


def line(name: str, rows: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """A row of the table: means over the seeds that there are."""
    seeds = rows.get(name, {}).values()
    cells: dict[str, Any] = {"recipe": name, "seeds": len(seeds)}
    for column in ("mean", *REGIONS, "averaged"):
        values = [seed[column] for seed in seeds if column in seed]
        cells[column] = f"{mean(values):.3f}" if values else ""
        if len(values) > 1:
            cells[column] += f" ± {stdev(values):.3f}"
    return cells


if __name__ == "__main__":
    main()
