"""Score a model on labelled tiles: `python -m segment.evaluate`."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minicnn.backend import where
from minicnn.files import write_text
from segment import cli
from segment.data.labels import BUILDING, IGNORE
from segment.data.scenes import find_scenes, sized
from segment.data.splits import SCENARIOS, Split, make_split, scenario_or_file
from segment.data.tiles import TileStore, open_store
from segment.errors import InputError
from segment.evaluate.examine import Batch, Findings, examine
from segment.evaluate.metrics import Confusion, table
from segment.evaluate.objects import Numbers, calibrate_separation, spread, truth_of
from segment.evaluate.report import Evaluation, write_report
from segment.evaluate.unsure import unsure_tiles
from segment.geo.separate import TOGETHER, Separation
from segment.model import Model, load_model
from segment.plots import Example
from segment.predict.views import add_views, averaged
from segment.progress import progress
from segment.run_folder import Run
from segment.run_settings import FOLDS, Settings, read_settings
from segment.storage.paths import to_path
from segment.synthetic.scenes import default_scenes

BATCH = 8
NAMED = 10  # tiles to label next that are printed; the file has all
SHOWN = 3  # tiles in the report from each of the best, the median and the worst


def predictions(
    model: Model,
    store: TileStore,
    indices: NDArray[np.intp],
    batch_size: int = BATCH,
    views: int = 1,
) -> Iterator[Batch]:
    """Probabilities, labels and true buildings of the tiles `indices`, batch by batch, with their
    place among these."""
    predict = averaged(model.predict, views)
    for start in progress(range(0, len(indices), batch_size), desc="evaluating", unit="batch"):
        part = slice(start, start + batch_size)
        yield part, predict(store.images[indices[part]]), *labels_of(store, indices[part])


def labels_of(store: TileStore, tiles: NDArray[np.intp]) -> tuple[NDArray[np.uint8], Numbers]:
    """Labels and true buildings of some tiles, (N, H, W)."""
    labels, numbers = store.labels[tiles], store.numbers[tiles]
    return labels, np.stack([truth_of(*both) for both in zip(labels, numbers, strict=True)])


def evaluate_tiles(
    model: Model, store: TileStore, indices: NDArray[np.intp], batch_size: int = BATCH
) -> Findings:
    """Findings on the tiles `indices`, at the model's own threshold and separation."""
    batches, info = predictions(model, store, indices, batch_size), model.info
    how = info.separation.on(store.pixel_size, info.pixel_size)
    return examine(batches, len(indices), info.threshold, store.pixel_size, how)


def calibrated(model: Model, store: TileStore, indices: NDArray[np.intp]) -> Separation:
    """What parts the model's buildings best on the validation tiles `indices`, or some of them."""
    chosen = indices[spread(np.array([store.tiles[i].city for i in indices]))]
    samples = (
        (store.tiles[index].city, *tile)
        for part, *batch in predictions(model, store, chosen)
        for index, tile in zip(chosen[part], zip(*batch, strict=True), strict=True)
    )
    return calibrate_separation(samples, model.info.threshold)


def ranked(counts: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The rows of (T, 4) counts by falling IoU, and every row's IoU.

    Only tiles with buildings are ranked, or all where none has any.
    """
    ious = np.array([Confusion(*map(int, row)).iou for row in counts])
    built = counts[:, 0] + counts[:, 2] > 0  # tp + fn
    order = np.argsort(-ious, kind="stable")
    return (order[built[order]] if built.any() else order), ious


def example(model: Model, store: TileStore, index: int, iou: float, views: int = 1) -> Example:
    """A tile with its truth and what the model finds in it, as a picture shows them."""
    tile, pixels, label = store.tiles[index], np.asarray(store.images[index]), store.labels[index]
    probability = averaged(model.predict, views)(pixels[None])[0]
    mask = (probability >= model.info.threshold) & (label != IGNORE)
    return Example(f"{tile.id}: IoU {iou:.2f}", pixels, label == BUILDING, mask)


def main(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)
    models = options.model or [None]
    if options.unsure:
        _list_unsure(models, options)
        return
    report = None if options.report is None else _report_path(options.report, options.model)
    done = [_evaluate(model, options) for model in models]
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_report(done, report)
    if options.json:
        documents = [each.document() for each in done]
        print(json.dumps(documents[0] if len(done) == 1 else documents, indent=2))
    else:
        for each in done:
            print(f"{each.what} on {each.device}, {each.thresholds}")
            print(f"{table(each.summary)}\n{each.in_words()}")
    if report and not options.json:
        print(report)


def _list_unsure(models: list[str | None], options: argparse.Namespace) -> None:
    """Write the tiles of the data, by how unsure the one model is of them, and name the first."""
    if len(models) > 1 or not options.data:
        raise InputError("--unsure: one --model was expected, and --data to look at")
    path = Path(options.unsure)
    cli.check_folder(path.parent)
    model = load_model(models[0]).reads(options.bands, options.value_range)
    model = model.to(cli.chosen_device(options))
    scenes = sized(find_scenes(options.data, labelled=False), options.pixel_size)
    features = unsure_tiles(model, scenes, options.views)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"type": "FeatureCollection", "features": features}))
    for feature in features[:NAMED]:
        told = feature["properties"]
        where = f"{told['image']}, row {told['row']}, column {told['col']}"
        print(f"{told['rank']:3}. {told['unsure']:.3f} bits a pixel: {where}")
    print(f"{path}: {len(features):,} tiles, the least sure first")


def _evaluate(path: str | None, options: argparse.Namespace) -> Evaluation:
    """Score one model; with a report wanted, also picture what it does best and worst."""
    model = load_model(path).reads(options.bands, options.value_range)
    model = model.to(cli.chosen_device(options))
    if options.threshold is not None:
        model.info = replace(model.info, threshold=options.threshold)
    folder = _run(path)
    store, indices, what = _choose(options, model, folder)
    model = model.at(options.score_at)
    learnt = _learnt_tiles(folder, store, indices)
    if learnt:
        print(f"{learnt} of these {len(indices)} tiles were used in training", file=sys.stderr)
    batches = predictions(model, store, indices, views=options.views)
    pixel_size = store.pixel_size or model.info.pixel_size
    how = model.info.separation.obeying(options.threshold)
    how = how.on(pixel_size, model.info.pixel_size)
    how = how if options.separate else TOGETHER
    findings = examine(batches, len(indices), model.info.threshold, pixel_size, how)
    examples: dict[str, list[Example]] = {}
    if options.report is not None:
        order, ious = ranked(findings.pixels)
        middle = max(0, (len(order) - SHOWN) // 2)
        parts = {"best": order[:SHOWN], "median": order[middle:][:SHOWN], "worst": order[-SHOWN:]}
        examples = {
            name: [example(model, store, indices[i], ious[i], options.views) for i in part]
            for name, part in parts.items()
        }
    return Evaluation(
        name=to_path(path).name if path else "the bundled model",
        what=what,
        device=where(model.device),
        threshold=model.info.threshold,
        outline_threshold=max(model.info.threshold, how.threshold),
        views=options.views,
        learnt=learnt,
        pixel_size=pixel_size,
        findings=findings,
        summary=findings.summary([store.tiles[i] for i in indices]),
        examples=examples,
    )


def _report_path(given: str, models: list[str] | None) -> Path:
    """Where the report goes: the file named, or report.html in the folder of the one run."""
    if given:
        cli.check_folder(Path(given).parent)
        return Path(given)
    if not models or len(models) > 1 or not Path(models[0]).is_dir():
        raise InputError("--report FILE was expected: there is no one run's folder to put it in")
    return Run(models[0]).report


def _parser() -> argparse.ArgumentParser:
    about = "Score a model: IoU, accuracy and more, beside calling all background."
    p = cli.parser("evaluate", about)
    p.add_argument(
        "--model",
        nargs="+",
        metavar="RUN|FILE",
        help="runs' folders or model files, each scored on its own; default: the bundled",
    )
    cli.add_data(p)
    p.add_argument(
        "--split",
        type=scenario_or_file,
        metavar=f"{'|'.join(SCENARIOS)}|FILE",
        help="score the test part of this split; default: with --data all tiles, without it "
        "the test part that the model has not been trained on",
    )
    cli.add_pixel_size(p)
    cli.add_reading(p)
    p.add_argument(
        "--score-at",
        type=cli.positive,
        metavar="M",
        help="cut and score tiles of this ground resolution, whatever the model works at: so that "
        "models of different pixel sizes can be compared; default: the model's",
    )
    p.add_argument(
        "--threshold",
        type=cli.within(0, 1),
        metavar="F",
        help="probability from which a pixel is building; default: each model's own, one for "
        "masks and one for outlines",
    )
    cli.add_separate(p, "yes")
    p.set_defaults(separate=True)
    add_views(p)
    cli.add_device(p)
    p.add_argument("--json", action="store_true", help="print JSON rather than a table")
    p.add_argument(
        "--report",
        nargs="?",
        const="",
        metavar="FILE",
        help="write curves, tables and pictures as one HTML file; default: report.html in the run",
    )
    p.add_argument(
        "--unsure",
        metavar="FILE",
        help="score nothing, but write the tiles of --data, labelled or not, as GeoJSON: those "
        "that the model is least sure of first, to label next",
    )
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
    own: Settings | None = None
    if folder is not None and options.data is None:
        own = read_settings(folder.config)
    paths = options.data or (own and own.data) or default_scenes(options.cache)
    scenes = find_scenes(paths, cache=options.cache)
    scenes = sized(scenes, options.pixel_size or (own.pixel_size if own else None))
    score_at = options.score_at or (own.learn_at if own else model.info.pixel_size)
    store = open_store(scenes, model.info.reading, score_at, options.cache)

    trained = model.info.trained
    scenario = options.split or (trained.get("split") if options.data is None else None)
    if scenario is None or (scenario == FOLDS and folder is None):
        return store, np.arange(len(store)), f"all {len(store):,} tiles"
    if folder is not None and own and options.split is None and options.score_at is None:
        split = Split.load(folder.split)
    else:
        split = make_split(store.tiles, scenario, trained.get("seed", 0))
    if folder is not None and not split.parts["test"]:
        raise InputError(
            f"{folder.home} has learnt from all its tiles: its metrics.json has the scores of its "
            "folds, and other tiles were expected as --data"
        )
    indices = split.indices(store.tiles, "test")
    return store, indices, f"the {len(indices):,} test tiles of the split {scenario!r}"


def _learnt_tiles(folder: Run | None, store: TileStore, indices: NDArray[np.intp]) -> int:
    """How many of the tiles the model of a run was trained or calibrated on."""
    if folder is None or not folder.split.exists():
        return 0
    parts = Split.load(folder.split).parts
    learnt = {*parts["train"], *parts["val"]}
    return sum(store.tiles[i].id in learnt for i in indices)
