"""What raises held-out IoU at equal cost: recipes that differ in one thing, over the same data.

    python -m benchmarks.recipe --data FOLDER... --split FILE --cache FOLDER [--seeds 0 1 2]
    python -m benchmarks.recipe ... --init runs/mine --lr 0.01 --rows default mirrored

Cost is counted in pixels that the net learns from, in units of a tile of 256 x 256, so that what
else the machine does has no say: 1,600 are about 5 minutes on two quiet cores. A row and seed that
the report has already is not measured again, so a call that is cut short is finished by the same
call.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel

from benchmarks import with_torch
from benchmarks.report import FOLDER, machine, table, write
from minicnn.checkpoint import net_arrays
from minicnn.losses import Loss, bce_with_logits, soft_jaccard, total
from minicnn.optim import NEWTON_SCHULZ, Adam, Muon, Optimizer
from segment.data.crops import CROP
from segment.data.labels import IGNORE
from segment.data.scenes import find_scenes
from segment.data.splits import make_split
from segment.data.tiles import FULL, TILE, TileStore, open_store
from segment.evaluate.command import evaluate_tiles, labels_of, predictions
from segment.evaluate.metrics import calibrate, histogram
from segment.evaluate.objects import calibrate_separation, spread
from segment.geo.separate import Relief
from segment.model import Model, ModelInfo, load_model, normalise
from segment.run_folder import Run
from segment.run_settings import Settings
from segment.train import trainer
from segment.train.trainer import LOSS, Trainer, visits
from segment.unet import UNet

NAME = "recipe"
DRAWN = "drawn"  # stands for the model that --drawn names
BUDGET = 1600  # tiles of 256 x 256 pixels
LARGE, THIN = 400, {"test": 4, "val": 4}  # of a city of more tiles, one in so many is scored

Crop = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # pixels (S, S, 3), coverage (S, S)


@dataclass(frozen=True)
class Recipe:
    """How a net is trained; what a row of the table does not name is `segment.train`'s default."""

    loss: Loss = LOSS
    optimizer: Callable[..., Optimizer] = Muon
    batch_size: int = 8
    lr: float = 0.03
    alter: Callable[[Crop, np.random.Generator], Crop] | None = None
    place: bool = True  # crops lie anywhere, nearer or farther; else on the grid of the tiles
    visits: Callable[[Sequence[str]], NDArray[np.float64]] = visits
    moved: bool = False  # learn from the labels of --moved
    grow: bool = False  # what is found grows by a pixel once it is parted
    init: str | None = None  # start from this model in place of random weights
    library: str = "minicnn"


def uniform(cities: Sequence[str]) -> NDArray[np.float64]:
    """Every crop once an epoch, whatever city it is of."""
    return np.ones(len(cities))


def mirrored(crop: Crop, rng: np.random.Generator) -> Crop:
    """Left and right change places, or not."""
    return crop if rng.random() < 0.5 else (crop[0][:, ::-1], crop[1][:, ::-1])


def turned(crop: Crop, rng: np.random.Generator) -> Crop:
    """One of the eight symmetries of the square."""
    pixels, coverage = mirrored(crop, rng)
    turns = int(rng.integers(4))
    return np.rot90(pixels, turns), np.rot90(coverage, turns)


def hard(crop: Crop, _: np.random.Generator) -> Crop:
    """Each pixel building or not, as most of it is."""
    pixels, coverage = crop
    whole = np.where(coverage >= FULL // 2, FULL, 0)
    return pixels, np.where(coverage == IGNORE, IGNORE, whole).astype(np.uint8)


def smoothed(crop: Crop, _: np.random.Generator) -> Crop:
    """Labels between 0.05 and 0.95."""
    pixels, coverage = crop
    soft = np.round(FULL * 0.05 + 0.9 * coverage)
    return pixels, np.where(coverage == IGNORE, IGNORE, soft).astype(np.uint8)


def shrunk(crop: Crop, _: np.random.Generator) -> Crop:
    """Buildings drawn a pixel smaller all round: two that touch by a corner come apart."""
    pixels, coverage = crop
    known = np.where(coverage == IGNORE, FULL, coverage)
    least = np.minimum.reduce(list(with_beside(known)))
    return pixels, np.where(coverage == IGNORE, IGNORE, least).astype(np.uint8)


def grown(number: NDArray[np.int32]) -> NDArray[np.int32]:
    """Buildings (H, W) a pixel larger all round, where the ground is nobody's."""
    return np.where(number > 0, number, np.maximum.reduce(list(with_beside(number))))


def with_beside(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The values (H, W), then those above, below, left and right; beyond an edge is the edge."""
    padded = np.pad(values, 1, mode="edge")
    yield values
    yield from (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])


ROWS = {
    "default": Recipe(),
    "PyTorch, the same": Recipe(library="torch"),
    "Adam in place of Muon": Recipe(optimizer=Adam, lr=1e-3),
    "turned and mirrored": Recipe(alter=turned),
    "mirrored": Recipe(alter=mirrored),
    "whole pixels in place of soft labels": Recipe(alter=hard),
    "labels from 0.05 to 0.95": Recipe(alter=smoothed),
    "moved labels": Recipe(moved=True),
    "labels a pixel smaller, outlines grown back": Recipe(alter=shrunk, grow=True),
    "crops on the grid of the tiles": Recipe(place=False),
    "first train on drawn scenes": Recipe(init=DRAWN, lr=0.01),
    "every crop equally often": Recipe(visits=uniform),
    "cross-entropy alone": Recipe(loss=bce_with_logits),
    "Jaccard in place of Dice": Recipe(loss=total(bce_with_logits, soft_jaccard)),
    "batches of 4": Recipe(batch_size=4),
    "batches of 16": Recipe(batch_size=16),
}


class Student(Trainer):
    """A trainer for one recipe, that goes through a budget of crops and then stops."""

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
            Settings(epochs=1, batch_size=recipe.batch_size, lr=recipe.lr, seed=seed),
            device="cpu",
        )
        self.recipe = recipe
        self.steps_per_epoch = tiles * TILE**2 // (CROP**2 * self.batch_size)
        self.schedule = trainer.Cosine(recipe.lr, self.steps_per_epoch, self.steps_per_epoch // 50)
        self.optimizer = recipe.optimizer(net, recipe.lr)

    def batches(self) -> Iterator[NDArray[Any]]:
        """As the trainer's, over as many epochs as the budget has."""
        for step in range(self.steps_per_epoch):
            chance = np.random.default_rng((self.seed, step))
            share = self.visits / self.visits.sum()
            yield chance.choice(len(self.crops), self.batch_size, p=share)

    def crop(self, step: int, place: int, cell: int) -> Crop:
        rng = np.random.default_rng((self.seed, self.epoch, step, place))
        crop = self.crops.cut(cell, rng) if self.recipe.place else self.crops.still(cell, rng)
        return self.recipe.alter(crop, rng) if self.recipe.alter else crop

    def learn(self) -> tuple[UNet, UNet]:
        """The net after all its crops, and its average."""
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
        kernels = [p for p in theirs.parameters() if p.ndim == 4 and p.shape[-1] > 1]
        others = [p for p in theirs.parameters() if not (p.ndim == 4 and p.shape[-1] > 1)]
        muon, adam = TorchMuon(kernels), torch.optim.Adam(others)
        for images, coverage in self.augmented():
            lr = self.schedule.at(self.step)
            adam.param_groups[0]["lr"] = lr / 15
            theirs.zero_grad()
            x = torch.tensor(normalise(images)).permute(0, 3, 1, 2)
            torch_loss(theirs(x)[:, 0], torch.tensor(coverage)).backward()
            muon.step(lr)
            adam.step()
            average.update_parameters(theirs)
            self.step += 1
        with_torch.copy_out(theirs, net_arrays(self.net))
        with_torch.copy_out(average.module, net_arrays(self.average.net))
        return self.net, self.average.net


class TorchMuon:
    """As minicnn.optim.Muon, by the plain iteration."""

    def __init__(self, kernels: list[torch.Tensor]) -> None:
        self.kernels = kernels
        self.momenta = [torch.zeros_like(p) for p in kernels]
        self.lengths = [p.detach().norm() for p in kernels]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        a, b, c = NEWTON_SCHULZ
        for p, m, length in zip(self.kernels, self.momenta, self.lengths, strict=True):
            g = p.grad
            assert g is not None
            m.lerp_(g, 0.05)
            u = (g + 0.95 * (m - g)).permute(2, 3, 1, 0)  # (K, K, C, F) as here
            x = u.reshape(-1, u.shape[-1])
            x = x / x.norm()
            for _ in range(5):
                gram = x.T @ x
                x = a * x + x @ (b * gram + c * gram @ gram)
            p -= lr * length / min(x.shape) ** 0.5 * x.reshape(u.shape).permute(3, 2, 0, 1)
            p *= length / p.norm()


def approach(a: torch.Tensor, p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """As minicnn.optim.Average; t counts the updates before."""
    if not a.is_floating_point():  # batch norm counts its batches
        return p
    every = 1 if t <= 100 else 10
    return a if t % every else a + (1 - min(0.999, t / (9 + t)) ** every) * (p - a)


def torch_loss(logits: torch.Tensor, coverage: torch.Tensor) -> torch.Tensor:
    """Cross-entropy + soft Dice over the pixels that have a label."""
    valid = coverage != IGNORE
    x, y = logits[valid], coverage[valid].float() / FULL
    p = torch.sigmoid(x)
    dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
    return torch.nn.functional.binary_cross_entropy_with_logits(x, y) + dice


def taught(
    recipe: Recipe, store: TileStore, parts: dict[str, NDArray[Any]], seed: int, tiles: int
) -> UNet:
    """Train by a recipe; the averaged weights."""
    kind = TorchStudent if recipe.library == "torch" else Student
    with ExitStack() as stack:
        stack.enter_context(patch.object(trainer, "LOSS", recipe.loss))
        stack.enter_context(patch.object(trainer, "visits", recipe.visits))
        return kind(recipe, store, parts, seed, tiles).learn()[1]


def scores_of(
    recipe: Recipe, net: UNet, store: TileStore, parts: dict[str, NDArray[Any]]
) -> dict[str, float]:
    """`score` of what is found as the recipe finds it."""
    with ExitStack() as stack:
        if recipe.grow:
            parted = Relief.numbered
            stack.enter_context(
                patch.object(Relief, "numbered", lambda self, least: grown(parted(self, least)))
            )
        return score(net, store, parts)


def score(net: UNet, store: TileStore, parts: dict[str, NDArray[Any]]) -> dict[str, float]:
    """Test scores at the thresholds and the separation calibrated on validation: IoU of all pixels,
    the cities' mean, F1 of whole buildings, and the IoU of each city."""
    val, test = (thinned(store, parts[part], part) for part in ("val", "test"))
    model = Model(net, ModelInfo(pixel_size=store.pixel_size))
    found = np.concatenate([batch for _, batch, *_ in predictions(model, store, val)])
    labels, truths = labels_of(store, val)
    cities = np.array([store.tiles[i].city for i in val])
    threshold, _ = calibrate(histogram(found, labels))
    samples = ((cities[i], found[i], labels[i], truths[i]) for i in spread(cities))
    separation = calibrate_separation(samples, threshold)
    model.info = replace(model.info, threshold=threshold, separation=separation)
    summary = evaluate_tiles(model, store, test).summary([store.tiles[i] for i in test])
    pooled, rows = summary["pooled"], summary["cities"]
    return {
        "pooled": pooled["iou"],
        "mean": mean(row["iou"] for row in rows.values()),
        "F1": pooled["objects"]["f1"],
        "mean F1": mean(row["objects"]["f1"] for row in rows.values()),
        **{city: row["iou"] for city, row in rows.items()},
        **{f"F1 {city}": row["objects"]["f1"] for city, row in rows.items()},
        "threshold": threshold,
        **{f"of outlines: {name}": x for name, x in asdict(separation).items()},
    }


def thinned(store: TileStore, tiles: NDArray[Any], part: str) -> NDArray[Any]:
    """All tiles of a part, but of a large city one in a few."""
    sizes = Counter(tile.city for tile in store.tiles)
    large = np.array([sizes[store.tiles[i].city] > LARGE for i in tiles])
    return np.concatenate([tiles[~large], tiles[large][:: THIN[part]]])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe", description=__doc__)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--split", default="scene", help="a scenario or a split file")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--drawn", help="a model trained on drawn scenes: the run of `make train`")
    parser.add_argument("--init", help="a model that every row goes on from")
    parser.add_argument(
        "--moved",
        nargs="+",
        default=[],
        help="labels of the same pictures that segment.align moved",
    )
    parser.add_argument("--lr", type=float, help="in place of the rate of each row")
    parser.add_argument("--learn-at", type=float, default=0.6)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tiles", type=int, default=BUDGET, help="that each row learns from")
    args = parser.parse_args()
    store = open_store(find_scenes(args.data), pixel_size=args.learn_at, cache=args.cache)
    moved = args.moved and open_store(find_scenes(args.moved), None, args.learn_at, args.cache)
    setting = f"{args.tiles:,} tiles at {args.learn_at:g} m"
    if args.init:
        setting += f", from {Path(args.init).name}"
    if args.lr:
        setting += f", rate {args.lr:g}"
    setting += ", also scored by moved labels" * bool(args.moved)
    for seed in args.seeds:
        for row in args.rows:
            data, recipe = known(), ROWS[row]
            rows = data["budgets"].setdefault(setting, {})
            lacking = (recipe.init and not args.drawn) or (recipe.moved and not moved)
            if str(seed) in rows.get(row, {}) or lacking:
                continue
            start = args.drawn if recipe.init else args.init
            recipe = replace(recipe, init=start, lr=args.lr or recipe.lr)
            learn = moved if recipe.moved else store
            net = taught(recipe, learn, parts_of(learn, args.split), seed, args.tiles)
            result = scores_of(recipe, net, store, parts_of(store, args.split))
            if moved:
                told = scores_of(recipe, net, moved, parts_of(moved, args.split))
                result |= {f"{name}, moved": told[name] for name in ("pooled", "F1")}
            rows.setdefault(row, {})[str(seed)] = result
            print(row, seed, {name: round(value, 3) for name, value in result.items()}, flush=True)
            write(NAME, describe(data), data)


def parts_of(store: TileStore, split: str) -> dict[str, NDArray[Any]]:
    chosen = make_split(store.tiles, split, 0)
    return {part: chosen.indices(store.tiles, part) for part in ("train", "val", "test")}


def known() -> dict[str, Any]:
    """What the report has already: setting -> row -> seed -> scores."""
    file = FOLDER / f"{NAME}.json"
    return json.loads(file.read_text()) if file.exists() else {"machine": machine(), "budgets": {}}


def describe(data: dict[str, Any]) -> str:
    text = [
        "# Why these defaults",
        "Written by `python -m benchmarks.recipe`. A row differs from the first of its table in "
        "one thing. Scores are IoU of held-out places at the threshold calibrated on validation: "
        "pooled over all pixels, and the mean over cities; F1 is that of whole buildings, of all "
        "places and the mean over cities. ± is the standard deviation over seeds, "
        "which draw weights, order and crops. The same call measures the rows that are missing.",
    ]
    for setting, rows in data["budgets"].items():
        text += [f"## {setting}", table([line(name, rows) for name in ROWS if name in rows])]
    return "\n\n".join(text) + "\n"


def line(name: str, rows: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """A row of the table: means over the seeds that there are."""
    seeds = rows[name].values()
    cells: dict[str, Any] = {"recipe": name, "seeds": len(seeds)}
    for column in next(iter(seeds)):
        if "threshold" not in column and ":" not in column and "F1 " not in column:
            values = [seed[column] for seed in seeds]
            cells[column] = f"{mean(values):.3f}"
            if len(values) > 1:
                cells[column] += f" ± {stdev(values):.3f}"
    return cells


if __name__ == "__main__":
    main()
