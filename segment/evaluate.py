"""Score a model on labelled tiles: `python -m segment.evaluate`."""

import argparse
import json
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicnn.backend import choose_device
from segment.cli import add_data, add_device, parser, progress, run
from segment.metrics import count_tiles, summarise, table
from segment.model import Model, load_model
from segment.run import Run, read_json
from segment.scenes import find_scenes
from segment.splits import SCENARIOS, Split, make_split
from segment.storage import to_path
from segment.synthetic import default_scenes
from segment.tiles import TileStore, open_store

BATCH = 8


def evaluate_tiles(
    model: Model, store: TileStore, indices: NDArray[np.intp], batch_size: int = BATCH
) -> NDArray[np.int64]:
    """Confusion counts (T, 4) of the tiles `indices`, binarised at the model's own threshold."""
    counts = np.zeros((len(indices), 4), np.int64)
    starts = range(0, len(indices), batch_size)
    for start in progress(starts, desc="evaluating", unit="batch"):
        part = slice(start, start + batch_size)
        probability = model.predict(store.images[indices[part]])
        labels = store.labels[indices[part]]
        counts[part] = count_tiles(probability, labels, model.info.threshold)
    return counts


def main(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)
    model = load_model(options.model).to(choose_device(options.device))
    folder = _run(options.model)
    store, indices, what = _choose(options, model, folder)
    _warn_of_learnt_tiles(folder, store, indices)
    counts = evaluate_tiles(model, store, indices)
    summary = summarise(counts, [store.tiles[i] for i in indices])
    if options.json:
        about = {"evaluated": what, "threshold": model.info.threshold, "device": model.device}
        print(json.dumps(about | summary, indent=2))
    else:
        print(f"{what} on {model.device}, threshold {model.info.threshold:.3f}")
        print(table(summary))


def _parser() -> argparse.ArgumentParser:
    p = parser("evaluate", "Score a model: IoU, accuracy and more, beside calling all background.")
    p.add_argument(
        "--model", metavar="RUN|FILE", help="a run's folder or a model file; default: the bundled"
    )
    add_data(p)
    p.add_argument(
        "--split",
        choices=SCENARIOS,
        help="score the test part of this split; default: with --data all tiles, without it "
        "the test part that the model has not been trained on",
    )
    add_device(p)
    p.add_argument("--json", action="store_true", help="print JSON rather than a table")
    return p


def _run(model: str | None) -> Run | None:
    """The run that --model names, with what is needed to know its data."""
    if model is None or not to_path(model).is_dir():
        return None
    folder = Run(model)
    folder.fetch(folder.config, folder.split)
    return folder


def _choose(
    options: argparse.Namespace, model: Model, folder: Run | None
) -> tuple[TileStore, NDArray[np.intp], str]:
    """The tiles to score, and in words which they are.

    A run's own data are cut as the run cut them. Any other data are brought to the pixel size of
    the model, and split, where a split is wanted, by the seed that the model was trained with.
    """
    own: dict[str, Any] | None = None
    if folder is not None and options.data is None:
        own = read_json(folder.config)
    paths = options.data or (own and own["data"]) or default_scenes(options.cache)
    pixel_size = own["pixel_size"] if own else model.info.pixel_size
    scenes = find_scenes(paths, cache=options.cache)
    store = open_store(scenes, model.info.reading, pixel_size, options.cache)

    trained = model.info.trained
    scenario = options.split or (trained.get("split") if options.data is None else None)
    if scenario is None:
        return store, np.arange(len(store)), f"all {len(store):,} tiles"
    if folder is not None and own and options.split is None:
        split = Split.load(folder.split)
    else:
        split = make_split(store.tiles, scenario, trained.get("seed", 0))
    indices = split.indices(store.tiles, "test")
    return store, indices, f"the {len(indices):,} test tiles of the split {scenario!r}"


def _warn_of_learnt_tiles(folder: Run | None, store: TileStore, indices: NDArray[np.intp]) -> None:
    """Say so if the model of a run is scored on tiles that it was trained or calibrated on."""
    if folder is None or not folder.split.exists():
        return
    parts = Split.load(folder.split).parts
    learnt = {*parts["train"], *parts["val"]}
    count = sum(store.tiles[i].id in learnt for i in indices)
    if count:
        print(f"{count} of these {len(indices)} tiles were used in training", file=sys.stderr)


if __name__ == "__main__":
    run(main)
