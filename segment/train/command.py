"""Train the U-Net on aerial tiles: `python -m segment.train`."""

import argparse
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from minicnn.backend import (
    DeviceError,
    free_memory,
    out_of_memory,
    precision,
    set_precision,
    where,
)
from minicnn.ranks import sharing
from segment.cli import (
    add_data,
    add_device,
    add_pixel_size,
    add_reading,
    check_folder,
    chosen_device,
    parser,
    positive,
    whole,
)
from segment.data.crops import CROP
from segment.data.labels import BUILDING, IGNORE
from segment.data.scenes import find_scenes, sized
from segment.data.splits import SCENARIOS, Split, make_split, scenario_or_file
from segment.data.tiles import TileStore, open_store
from segment.errors import InputError
from segment.evaluate.command import calibrated, evaluate_tiles, example, ranked
from segment.evaluate.metrics import table
from segment.model import Model, ModelInfo, load_model, model_name, save_model
from segment.plots import examples
from segment.run_folder import Run
from segment.run_settings import (
    AUTO_BATCH,
    BUNDLED,
    FOLDS,
    LR,
    LR_ON,
    Settings,
    named,
    read_settings,
)
from segment.storage.documents import read_json, write_json
from segment.storage.paths import to_path
from segment.synthetic.scenes import default_scenes
from segment.train import folds
from segment.train.card import write_card
from segment.train.gpu_memory import LARGEST_AUTO, largest_batch, training_bytes
from segment.train.ranks import World, join
from segment.train.trainer import Trainer
from segment.unet import UNet

SAME = 0.95  # of a pixel size: told ones are rounded

log = logging.getLogger(__name__)


# Given the crops of a step, of the whole training, and the ranks of the run that it continues:
# raises what takes the training to other processes, which begin anew.
HandOver = Callable[[int, int, int | None], None]


def main(argv: list[str], may_hand_over: HandOver | None = None) -> None:
    with join() as world, sharing(world):
        _train(arguments().parse_args(argv), world, may_hand_over)


def _train(options: argparse.Namespace, world: World, may_hand_over: HandOver | None) -> None:
    device = chosen_device(options)
    world.use(device)
    free = free_memory() if device == "gpu" else 0
    if options.batch_size == "auto":
        options.batch_size = None if options.resume else _auto_batch(device, free, world.count)
    folder = Run(world.share(lambda: options.out or time.strftime("runs/%Y%m%d-%H%M%S")))
    check_folder(folder.folder)
    settings, resumes = world.share(lambda: _settle(options, folder, device))
    _set_precision(settings, device, options.resume)
    folder.cache = settings.cache
    if world.share(folder.metrics.exists):
        print(f"{folder.home} is finished")
        return world.share(lambda: _report(folder))
    store = world.in_turn(lambda: _tiles(settings))
    settings = world.share(lambda: folds.settled(settings, named(options), store.tiles, folder))
    few_tiles = settings.split == FOLDS
    draw = folds.split_of if few_tiles else make_split
    split = draw(store.tiles, settings.split, settings.seed)
    parts = {part: split.indices(store.tiles, part) for part in ("train", "val", "test")}
    make = partial(_trainer, settings, store, device, world)
    trainer = make(folds.Whole if few_tiles else Trainer, parts, folder)
    own_batches = few_tiles and settings.batch_size > folds.CROPS  # which might not divide
    if may_hand_over and device == "cpu" and not own_batches:
        crops = trainer.epochs * trainer.steps_per_epoch * trainer.batch_size
        may_hand_over(trainer.batch_size, crops, (settings.ranks or 1) if resumes else None)
    world.speak()
    if resumes and settings.ranks not in (None, world.count):
        print(
            f"ranks: {settings.ranks} when the run began, {world.count} from here on; "
            "the last bits may differ"
        )
    if world.rank == 0 and not resumes:
        _begin(folder, replace(settings, ranks=world.count), split)
        _warn_of_one_class(store, parts)
    sizes = ", ".join(f"{len(indices)} {part}" for part, indices in parts.items())
    print(f"{len(store):,} tiles ({sizes}) on {where(device)}, batches of {trainer.batch_size}")
    try:
        if isinstance(trainer, folds.Whole):
            trainer.folds = folds.train_folds(make, store, settings.seed, folder, world)
        if world.share(folder.last.exists):
            trainer.resume()
        trainer.fit()
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise InputError(_too_large(trainer.batch_size // world.count, free)) from None
    if few_tiles:
        world.share(lambda: _score_folds(folder, store, settings, device))
    else:
        world.share(lambda: _separate(folder, store, parts["val"], device))
        _test(folder, store, parts["test"], device, settings, world)
    world.share(lambda: _report(folder))


def _begin(folder: Run, settings: Settings, split: Split) -> None:
    """Write what a run is, before its first step."""
    folder.folder.mkdir(parents=True, exist_ok=True)
    write_json(folder.config, asdict(settings))
    split.save(folder.split)
    folder.mirror()


def arguments() -> argparse.ArgumentParser:
    p = parser("train", "Train the U-Net to find buildings.")
    d = Settings()
    add_data(p)
    add_device(p)
    p.add_argument("--out", metavar="RUN", help="the run's folder; default: runs/<time>")
    p.add_argument(
        "--split",
        type=_split,
        metavar=f"{'|'.join(SCENARIOS)}|{FOLDS}|FILE",
        help=f"what is held out for testing, in {FOLDS} every tile in turn and nothing in the end; "
        f"default: {d.split}, or {FOLDS} where --init is to learn from fewer than {folds.FEW} "
        "tiles",
    )
    p.add_argument("--epochs", type=whole(1), help=f"at most so many; default: {d.epochs}")
    p.add_argument(
        "--batch-size",
        type=_batch,
        metavar="N|auto",
        help="crops of 128 pixels a step; auto: what fits the GPU's memory",
    )
    p.add_argument(
        "--lr", type=positive, help=f"highest learning rate; default: {LR}, with --init {LR_ON}"
    )
    p.add_argument(
        "--patience",
        type=whole(1),
        help=f"stop after so many epochs without a better validation IoU; default: {d.patience}",
    )
    add_pixel_size(p)
    p.add_argument(
        "--learn-at",
        type=positive,
        metavar="M",
        help="the model's pixel size in metres, which scenes of another are resampled to; default: "
        "that of the model of --init, else the scenes' own",
    )
    p.add_argument("--seed", type=whole(0), help=f"decides every random choice; default: {d.seed}")
    p.add_argument("--resume", action="store_true", help="continue the run in --out")
    p.add_argument(
        "--init",
        metavar="WEIGHTS|bundled",
        help="go on from a trained model: its pixel size and reading hold unless given",
    )
    add_reading(p)
    return p


def _split(text: str) -> str:
    return text if text == FOLDS else scenario_or_file(text)


def _batch(text: str) -> int | str:
    return text if text == "auto" else whole(1)(text)


def _auto_batch(device: str, free: int, ranks: int) -> int:
    """Crops a step: on a GPU what fits its free memory, within reason, and so on each rank's."""
    if device == "cpu":
        return AUTO_BATCH
    batch = min(LARGEST_AUTO, largest_batch(UNet(), free, CROP))
    if batch == 0:
        raise InputError(_too_large(1, free))
    return batch * ranks


def _too_large(batch: int, free: int) -> str:
    net = UNet()
    fits = min(largest_batch(net, free, CROP), batch - 1)
    advice = f"--batch-size {fits} would fit" if fits > 0 else "not even one crop fits"
    return (
        f"a batch of {batch} crops takes {training_bytes(net, batch, CROP) / 2**30:.1f} GiB "
        f"and the GPU has {free / 2**30:.1f} GiB free: {advice}"
    )


def _settle(options: argparse.Namespace, folder: Run, device: str) -> tuple[Settings, bool]:
    """The run's settings, and whether it continues one: then they must be that one's."""
    folder.fetch()
    given = named(options)
    if not folder.config.exists():
        if options.resume:
            if "data" not in given:
                raise InputError(
                    f"{folder.home} holds no run to resume; to start afresh --data was expected"
                )
            print(f"{folder.home} holds no run yet: starting afresh")
        if "init" in given:
            given = {"lr": LR_ON} | _inherited(given["init"]) | given
        given.setdefault("precision", precision(device))
        return Settings(**given), False
    if not options.resume:
        raise InputError(
            f"{folder.home} holds a run already: continue it with --resume, or name another --out"
        )
    settings = read_settings(folder.config)
    settings = replace(settings, cache=given.pop("cache", settings.cache))
    for name, value in given.items():
        if getattr(settings, name) != value:
            raise InputError(
                f"{folder.home}: the run has {name} {getattr(settings, name)}, and --resume "
                f"can't change it to {value}"
            )
    started = folder.last.exists() or folds.folder_of(folder).exists()
    if not started:
        print(f"{folder.home} holds no checkpoint yet: starting afresh")
    return settings, started


def _set_precision(settings: Settings, device: str, resume: bool) -> None:
    """Multiply as the run began to; it may go on where it can't, and says so."""
    set_precision(settings.precision)
    try:
        precision(device)
    except DeviceError as error:
        if not resume:
            raise
        print(f"the run began in tf32 and goes on in float32: {error}")
        set_precision("float32")


def _inherited(init: str) -> dict[str, Any]:
    """What a model that goes on learning does as it was taught, unless another is asked for."""
    info = load_model(_weights(init)).info
    about = {"learn_at": info.pixel_size, **asdict(info.reading)}
    return {name: value for name, value in about.items() if value is not None}


def _weights(init: str) -> str | None:
    """Where the weights lie that --init names."""
    return None if init == BUNDLED else init


def _warn_of_one_class(store: TileStore, parts: dict[str, np.ndarray]) -> None:
    """Say before the training what would make it learn, or choose, nothing."""
    for part, name in (("train", "training"), ("val", "validation")):
        if not len(parts[part]):
            continue
        kinds: set[int] = set()
        for index in parts[part]:
            kinds |= {*np.unique(store.labels[index]).tolist()} - {IGNORE}
            if len(kinds) == 2:
                break
        else:
            lacking = "building" if BUILDING not in kinds else "background"
            log.warning(
                "no %s in the %s part: look at the labels, or split otherwise", lacking, name
            )


def _tiles(settings: Settings) -> TileStore:
    cache = settings.cache
    scenes = find_scenes(settings.data or default_scenes(cache), cache=cache)
    size = settings.pixel_size
    for scene in scenes:
        if size and scene.pixel_size and not SAME < scene.pixel_size / size < 1 / SAME:
            raise InputError(
                f"--pixel-size {size:g}: a pixel of {scene.image} measures {scene.pixel_size:.3g} "
                f"m, as its place or the CSV says; --learn-at {size:g} resamples scenes to {size:g}"
            )
    return open_store(sized(scenes, size), settings.reading, settings.learn_at, cache)


def _trainer(
    settings: Settings,
    store: TileStore,
    device: str,
    world: World,
    kind: type[Trainer],
    parts: dict[str, np.ndarray],
    folder: Run,
) -> Trainer:
    trained = {
        "data": [to_path(p).name for p in settings.data] or ["synthetic scenes"],
        "split": settings.split,
        "seed": settings.seed,
        "precision": settings.precision,
    }
    info = ModelInfo(reading=settings.reading, pixel_size=store.pixel_size, trained=trained)
    net = UNet(seed=settings.seed)
    if settings.init:
        model = load_model(_weights(settings.init))
        start = {"model": model_name(_weights(settings.init)), "trained": model.info.trained}
        info = replace(info, trained=trained | {"began_as": start})
        net = model.net
        net.astype(np.float32)  # a copy of every array: a loaded net is frozen
    return kind(net, info, store, parts, folder, settings, device, world)


def _separate(folder: Run, store: TileStore, tiles: np.ndarray, device: str) -> None:
    """Calibrate on validation what parts the best model's buildings, and put it into its file."""
    model = load_model(folder.best).to(device)
    info = replace(model.info, separation=calibrated(model, store, tiles))
    save_model(folder.best, model.to("cpu").net, info)


def _test(
    folder: Run,
    store: TileStore,
    tiles: np.ndarray,
    device: str,
    settings: Settings,
    world: World,
) -> None:
    """Score the best model on the test part; draw examples of what it finds there."""
    model = world.share(lambda: load_model(folder.best)).to(device)
    own, _ = world.part(tiles)
    findings = evaluate_tiles(model, store, own)
    findings = findings.with_rows(world.gather(findings.rows())[: len(tiles)])
    if world.rank > 0:
        return
    _draw_examples(folder, store, tiles, lambda _: model, findings.pixels)
    _finish(folder, settings, findings.summary([store.tiles[i] for i in tiles]), {})


def _score_folds(folder: Run, store: TileStore, settings: Settings, device: str) -> None:
    """Score each tile by the fold's model that has not seen it."""
    scored, tiles = folds.score(store, settings.seed, folder, device), np.arange(len(store))
    _draw_examples(folder, store, tiles, scored.model_of, scored.findings.pixels)
    about = {"scored": folds.ABOUT, "folds": len(scored.folds)}
    _finish(folder, settings, scored.findings.summary(store.tiles), about)
    folds.forget(folder)


def _finish(folder: Run, settings: Settings, scores: dict[str, Any], about: dict[str, Any]) -> None:
    """Write the scores, `about` saying what they are if not those of a test part."""
    info = load_model(folder.best).info
    limits = {"threshold": info.threshold, "outline_threshold": info.outline_threshold}
    document = {"split": settings.split, **about, **limits, "test": scores}
    if settings.init:
        write_card(folder.card, folder.best, info, _weights(settings.init), scores)
    write_json(folder.metrics, document)  # last: it marks the run as finished
    folder.mirror()


def _draw_examples(
    folder: Run,
    store: TileStore,
    tiles: np.ndarray,
    model_of: Callable[[int], Model],
    counts: np.ndarray,
) -> None:
    """Draw the best, the median and the worst test tile by IoU, of those with buildings."""
    order, ious = ranked(counts)
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    rows = [
        replace(shown, name=f"{name}, {shown.name}")
        for name, i in chosen.items()
        for shown in [example(model_of(tiles[i]), store, tiles[i], ious[i])]
    ]
    examples(rows, folder.overlay)


def _report(folder: Run) -> None:
    document = read_json(folder.metrics)
    print(table(document["test"]))
    if "scored" in document:
        print(document["scored"])
    for name in ("best", "curves", "overlay", "card"):
        if (file := getattr(folder, name)).exists():
            print(f"{'model' if name == 'best' else name}: {folder.home / file.name}")
