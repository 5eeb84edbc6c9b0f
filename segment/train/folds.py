"""Learning from a handful of tiles: a part held out would be too small, so every tile does both.

The tiles are dealt into folds. For each fold a model learns from the others and is scored on it:
together these are the scores of the method, each tile judged by a model that has not seen it. Then
one more model learns from all tiles. It is the one that is kept; nothing is left to score it on.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment.data.splits import Split
from segment.data.tiles import TILE, Tile, TileStore
from segment.errors import InputError
from segment.evaluate.command import labels_of, predictions
from segment.evaluate.examine import Batch, Findings, examine
from segment.evaluate.metrics import calibrate, histogram
from segment.evaluate.objects import calibrate_separation, spread
from segment.model import Model, load_model, save_model
from segment.run_folder import Row, Run
from segment.run_settings import FOLDS, Settings
from segment.train.ranks import World
from segment.train.trainer import Stop, Trainer

FEW = 40  # tiles: of fewer, a test and a validation part would hold some six each
COUNT = 3  # folds; each costs a training
EPOCHS, CROPS = 8, 40  # by default, and at least so many crops in each
ABOUT = (
    "each tile was scored by a model that had not seen its fold; the model that is kept has learnt "
    "from all tiles, and no tile is left to score it on"
)

Indices = NDArray[np.intp]
Make = Callable[[type[Trainer], dict[str, Indices], Run], Trainer]


def settled(
    settings: Settings, given: dict[str, Any], tiles: Sequence[Tile], folder: Run
) -> Settings:
    """A new run's settings, in folds where a trained model is to learn from few tiles."""
    if folder.config.exists():
        return settings
    if settings.init and "split" not in given and len(tiles) < FEW:
        settings = replace(settings, split=FOLDS)
    if settings.split == FOLDS and "epochs" not in given:
        settings = replace(settings, epochs=EPOCHS)
    return settings


def folds_of(tiles: Sequence[Tile], seed: int) -> list[Indices]:
    """Deal tiles into folds: by scene if there are enough, else by picture, else singly."""
    ways = (
        [f"{tile.city}/{tile.scene}" for tile in tiles],
        [f"{tile.city}/{tile.stem}" for tile in tiles],
        [tile.id for tile in tiles],
    )
    names = next((way for way in ways if len(set(way)) >= COUNT), None)
    if names is None:
        raise InputError(
            f"at least {COUNT} labelled tiles were expected, but the data has {len(tiles)}"
        )
    groups = sorted(set(names))
    order = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    order.sort(key=lambda group: -names.count(group))  # the largest first, each to the least
    folds: list[list[int]] = [[] for _ in range(COUNT)]
    for group in order:
        least = min(folds, key=len)
        least += [index for index, name in enumerate(names) if name == group]
    return [np.array(sorted(fold), np.intp) for fold in folds]


def split_of(tiles: Sequence[Tile], scenario: str, seed: int) -> Split:
    """Nothing is held out in the end."""
    return Split(scenario, seed, {"train": sorted(t.id for t in tiles), "val": [], "test": []})


class Fold(Trainer):
    """A training whose last epoch counts: the tiles that score it may not choose one, too."""

    least_crops = CROPS

    def best_epoch(self) -> int:
        return len(self.history)


class Whole(Fold):
    """The training on all tiles; its validation is the folds', epoch by epoch."""

    folds: Sequence[Sequence[Row]] = ()

    def validate(self, stop: Stop) -> tuple[Row, float]:
        rows = [history[self.epoch] for history in self.folds]
        names = ("val_loss", "val_accuracy", "val_iou")
        return {name: float(np.mean([row[name] for row in rows])) for name in names}, 0.5


@dataclass
class Scored:
    """What the folds say: the models of each, where they were scored, and what was found."""

    folds: list[Indices]
    models: list[Model]
    findings: Findings

    def model_of(self, index: int) -> Model:
        """The model that had not seen a tile."""
        return next(
            model for fold, model in zip(self.folds, self.models, strict=True) if index in fold
        )


def folder_of(folder: Run) -> Path:
    """Where the folds' runs are, on this machine, until their models are of no further use."""
    return folder.folder / "folds"


def train_folds(
    make: Make, store: TileStore, seed: int, folder: Run, world: World
) -> list[list[Row]]:
    """Train a model for each fold, or go on where that was stopped: the histories."""
    folds, histories = folds_of(store.tiles, seed), []
    why = "are too few to hold some out for good" if len(store) < FEW else "are dealt into folds"
    print(
        f"{len(store)} tiles {why}: {len(folds)} models are scored on tiles that they have not "
        "seen, then one learns from all"
    )
    for number, fold in enumerate(folds, start=1):
        rest = np.setdiff1d(np.arange(len(store)), fold)
        run = Run(folder_of(folder) / f"{number}", of=folder)
        if world.rank == 0:
            run.folder.mkdir(parents=True, exist_ok=True)
        trainer = make(Fold, {"train": rest, "val": fold}, run)
        if world.share(run.last.exists):
            trainer.resume()
        print(f"fold {number} of {len(folds)}: {len(rest)} tiles are learnt from, {len(fold)} not")
        trainer.fit()
        histories.append(trainer.history)
    print(f"all {len(store)} tiles are learnt from; what is called validation is the folds' mean")
    return histories


def score(store: TileStore, seed: int, folder: Run, device: str) -> Scored:
    """Score every tile by the model that has not seen it; from these also come the thresholds and
    the separation of the model that has learnt from all, which are put into its file.
    Memory: 600 KB a tile."""
    folds = folds_of(store.tiles, seed)
    runs = (folder_of(folder) / f"{number}" for number in range(1, len(folds) + 1))
    models = [load_model(run).to(device) for run in runs]
    found = np.zeros((len(store), TILE, TILE), np.float32)
    for fold, model in zip(folds, models, strict=True):
        for part, probability, *_ in predictions(model, store, fold):
            found[fold[part]] = probability
    labels, truths = labels_of(store, np.arange(len(store)))
    threshold, _ = calibrate(histogram(found, labels))
    cities = np.array([tile.city for tile in store.tiles])
    samples = ((cities[i], found[i], labels[i], truths[i]) for i in spread(cities))
    separation = calibrate_separation(samples, threshold)
    for model in models:
        model.info = replace(model.info, threshold=threshold, separation=separation)
    kept = load_model(folder.best)
    about = {name: value for name, value in kept.info.trained.items() if name != "val_iou"}
    about["scored"] = ABOUT
    info = replace(kept.info, threshold=threshold, separation=separation, trained=about)
    save_model(folder.best, kept.net, info)
    batch: Batch = (slice(0, len(found)), found, labels, truths)
    findings = examine([batch], len(found), threshold, store.pixel_size, separation)
    return Scored(folds, models, findings)


def forget(folder: Run) -> None:
    """The folds' models are of no further use."""
    shutil.rmtree(folder_of(folder), ignore_errors=True)
