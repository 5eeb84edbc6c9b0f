"""Masks of whole scenes, georeferenced like them: `python -m segment.predict`."""

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from minicnn.backend import where
from minicnn.files import digest, write_text
from segment import cli
from segment.data.ground import ground_pixel_size, in_crs, place_of, same_crs
from segment.data.layouts import as_given, composed
from segment.data.rasters import open_raster, shifted, write_cog
from segment.data.reading import read_pixels
from segment.data.scenes import Scene, find_scenes
from segment.errors import InputError
from segment.geo import footprints
from segment.geo.buildings import all_buildings
from segment.geo.separate import TOGETHER
from segment.model import Model, load_model, model_file, model_name
from segment.plots import overlay
from segment.predict import shards
from segment.predict.instances import found_in, write_buildings
from segment.predict.scene import (
    OVERLAP,
    check_overlap,
    mask_profile,
    mask_tags,
    scene_bands,
    separation,
    write_band,
    write_bands,
    write_large,
)
from segment.predict.views import add_views
from segment.progress import progress
from segment.storage.paths import AnyPath, to_path, to_source, writing
from segment.storage.s3 import S3Path

ENDINGS = {
    "tif": (".tif", ".tiff"),
    "probability": (".tif", ".tiff"),
    "png": (".png",),
    "geojson": (".geojson", ".json"),
    "gpkg": (".gpkg",),
    "instances": (".tif", ".tiff"),
    "parquet": (".parquet", ".geoparquet"),
    "fgb": (".fgb",),
    "shp": (".shp",),
}
VECTORS = ("geojson", "gpkg", "parquet", "fgb", "shp")
STYLE = Path(__file__).with_name("outlines.qml")  # QGIS looks for such a file beside outlines

log = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    options = arguments().parse_args(argv)
    if options.shards is not None:
        _predict_shard(options)
        return
    if options.shard is not None:
        raise InputError("--shard says which of --shards N: that was expected, too")
    options.format = options.format or _format_of(options.out)
    _check_options(options)
    faulty: list[InputError] = []
    found = _scenes(options, faulty)
    if not found:
        _complain(faulty, "scenes can't be opened")
    jobs = list(zip(found, _outputs(found, options.out, options.format), strict=True))
    model = load_model(options.model).reads(options.bands, options.value_range)
    model = model.to(cli.chosen_device(options))
    for scene, path in jobs:
        try:
            with writing(path) as file:
                _predict_to_file(model, scene, file, options)
            if options.format in VECTORS:
                with writing(path.with_name(f"{path.stem}.qml")) as file:
                    write_text(file, STYLE.read_text())
            print(path)
        except InputError as error:
            faulty.append(error)
    _complain(faulty, "scenes could not be done")


def _complain(errors: Sequence[InputError], what: str) -> None:
    """Raise what went wrong: the one error, or a sentence about several after naming each."""
    if len(errors) == 1:
        raise errors[0]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        raise InputError(f"{len(errors)} {what}, as said above")


def _scenes(options: argparse.Namespace, faulty: list[InputError]) -> list[Scene]:
    """The scenes to do; masks of an earlier run, in the folder --out, are none."""
    out = to_path(options.out)
    given = [as_given(to_source(name)) for name in options.scenes]
    inside = any(f"{as_given(out)}".startswith(f"{folder}/") for folder in given)
    but = out if inside and out.is_dir() else None
    return find_scenes(options.scenes, labelled=False, faulty=faulty, but=but)


def _check_options(options: argparse.Namespace) -> None:
    """InputError for an option that the format can't honour."""
    outlines, masks = options.format in VECTORS, options.format == "tif"
    for name, value, fits in (
        ("--simplify", options.simplify, outlines),
        ("--right-angles", options.right_angles, outlines),
        ("--min-area", options.min_area, outlines or (masks and not options.separate)),
        ("--threshold", options.threshold is not None, options.format != "probability"),
    ):
        if value and not fits:
            raise InputError(f"{name}: format {options.format} can't honour it")


def arguments() -> argparse.ArgumentParser:
    p = cli.parser(
        "predict",
        "Find the buildings in aerial scenes of any size. Memory grows with a scene's width, not "
        "its height; png, outlines and --min-area hold a whole mask (png the photograph, too).",
    )
    p.add_argument("scenes", nargs="+", metavar="SCENE", help="rasters, folders or CSV files")
    cli.add_model(p)
    p.add_argument(
        "--out",
        required=True,
        metavar="PATH",
        help="the file for one scene, or a folder, where each scene gives <name>.<ending>",
    )
    p.add_argument(
        "--format",
        choices=ENDINGS,
        help="mask as GeoTIFF, probability as GeoTIFF, picture with the mask over it, outlines as "
        "GeoJSON, GeoPackage, GeoParquet, FlatGeobuf or Shapefile, ids of each pixel's building as "
        "GeoTIFF (instances); default: what the ending of --out says, else tif",
    )
    p.add_argument(
        "--threshold",
        type=cli.within(0, 1),
        metavar="F",
        help="probability from which a pixel is building; default: the model's own, one for "
        "masks and one for outlines",
    )
    p.add_argument(
        "--overlap", type=int, default=OVERLAP, metavar="N", help="least overlap of windows, pixels"
    )
    cli.add_pixel_size(p)
    p.add_argument(
        "--crs",
        type=_crs,
        metavar="CRS",
        help="the CRS of scenes that have coordinates without one (a world file), as EPSG:32633",
    )
    cli.add_reading(p)
    cli.add_outlines(p)
    cli.add_separate(p, "outlines and instances yes, masks and pictures no")
    _add_shards(p)
    p.add_argument(
        "--right-angles",
        action="store_true",
        help="draw outlines with right angles where that fits; --simplify is then the shortest "
        "wall, by default 1 m",
    )
    add_views(p)
    cli.add_device(p)
    return p


def _add_shards(to: argparse.ArgumentParser) -> None:
    """What one of many processes does."""
    to.add_argument(
        "--shards",
        type=cli.whole(1),
        metavar="N",
        help="do a share of the work, one of N; the folder --out then holds the plan and the "
        "masks, which `python -m segment.merge` makes one",
    )
    to.add_argument(
        "--shard",
        type=cli.whole(0),
        metavar="I",
        help="which share, 0 to N - 1; default: the index in an AWS Batch array or the MPI rank; "
        "without any, the plan is made and nothing else",
    )


def _crs(text: str) -> CRS:
    """An argparse type: a coordinate reference system."""
    try:
        return CRS.from_user_input(text)
    except CRSError:
        raise argparse.ArgumentTypeError(f"{text} is no CRS; EPSG:32633 is one") from None


def _format_of(out: str) -> str:
    """The format that a name's ending stands for; tif where it has none."""
    ending = Path(out).suffix.lower()
    return next((name for name, endings in ENDINGS.items() if ending in endings), "tif")


def _outputs(found: Sequence[Scene], out: str, form: str) -> list[AnyPath]:
    """The file that each scene gives; InputError where two are one, or one can't or mustn't be."""
    path = to_path(out)
    if out.endswith(("/", os.sep)) or not path.suffix or path.is_dir():
        paths = _in_folder(path, found, ENDINGS[form][0])
    elif len(found) > 1:
        raise InputError(f"--out {out}: a folder was expected for {len(found)} scenes")
    elif path.suffix.lower() not in ENDINGS[form]:
        raise InputError(f"--out {out}: format {form} was expected to end in {ENDINGS[form][0]}")
    else:
        paths = [path]
    if form == "shp" and isinstance(path, S3Path):
        raise InputError(f"--out {out}: a Shapefile is several files; for a bucket, take gpkg")
    taken = Counter(paths)
    inputs = {scene.image.resolve() for scene in found}
    for scene, target in zip(found, paths, strict=True):
        if isinstance(target, Path):
            cli.check_folder(target.parent)
        if taken[target] > 1:
            raise InputError(f"{scene.image}: another scene is to give {target}, too")
        if target.resolve() in inputs:
            raise InputError(f"--out {out}: {target} is a scene and would be overwritten")
    return paths


def _in_folder(out: AnyPath, found: Sequence[Scene], ending: str) -> list[AnyPath]:
    """<stem>.tif for each scene, in the folders that it lies below where two stems are one."""
    names = [
        scene.image.stem if scene.stem.startswith(composed(scene.image.stem)) else scene.stem
        for scene in found
    ]
    taken = Counter(names)
    return [
        to_path("/".join([str(out), *([scene.below] if taken[name] > 1 else []), name + ending]))
        for name, scene in zip(names, found, strict=True)
    ]


def _predict_to_file(model: Model, scene: Scene, path: Path, options: argparse.Namespace) -> None:
    threshold = model.info.threshold if options.threshold is None else options.threshold
    separate = options.format not in ("tif", "png")
    if options.separate is not None:
        separate = options.separate
    with open_raster(scene.image, own=True) as opened:
        dataset = in_crs(opened, options.crs)
        size = options.pixel_size or scene.pixel_size or ground_pixel_size(dataset)
        crs, transform = _checked_place(dataset, scene, size, options)
        bar = partial(progress, desc=f"{scene.stem} on {where(model.device)}", unit="batch")
        bands = scene_bands(model, dataset, options.overlap, size, bar, views=options.views)
        asked = options.threshold, options.min_area
        how = separation(model, dataset, size, *asked) if separate else TOGETHER
        tags = mask_tags(model_name(options.model), threshold)
        if options.format == "probability":
            del tags["MINICNN_THRESHOLD"]
            write_bands(bands, path, dataset, None, tags)
        elif options.format == "tif" and separate:
            write_buildings(bands, path, dataset, threshold, how, tags, ids=False)
        elif options.format == "tif" and options.min_area:
            write_large(bands, path, dataset, threshold, options.min_area / (size or 1) ** 2, tags)
        elif options.format == "tif":
            write_bands(bands, path, dataset, threshold, tags)
        elif options.format == "instances":
            write_buildings(bands, path, dataset, threshold, how, tags, ids=True)
        elif options.format == "png":
            mark = np.concatenate([band.marks(threshold) for band in bands])
            if separate:
                mark = all_buildings(mark, how).parted(slice(0, len(mark)), mark.shape[1])
            photograph, _ = read_pixels(dataset, model.info.reading)
            overlay(photograph, np.where(mark > 0, 255, 0).astype(np.uint8), path)
        else:
            found = found_in(bands, dataset, threshold, how)
            wishes = options.min_area, options.simplify, options.right_angles
            outlines = footprints.placed(found, dataset.shape, transform, crs, *wishes)
            footprints.write(replace(outlines, model=model_name(options.model)), path)


def _checked_place(
    dataset: Any, scene: Scene, size: float | None, options: argparse.Namespace
) -> tuple[CRS | None, Affine]:
    """CRS and transform of a scene; InputError, before the work, where the format needs more."""
    crs, transform = place_of(dataset)
    if options.crs and not same_crs(crs, options.crs):
        log.warning("%s has a CRS of its own: --crs is not taken for it", scene.image)
    if transform and not crs:
        about = f"{scene.image} has coordinates without a CRS: --crs EPSG:... says which it is"
        if options.format in VECTORS:
            raise InputError(f"{about}, and outlines need it")
        log.warning("%s", about)
    transform = transform or dataset.transform
    if options.format in VECTORS:
        footprints.require_vector(*(["pyarrow"] if options.format == "parquet" else []))
        footprints.require_place(crs, transform, str(scene.image))
    elif options.min_area and not size:
        raise InputError(f"{scene.image} has no pixel size, so --min-area needs --pixel-size")
    return crs, transform


def _predict_shard(options: argparse.Namespace) -> None:
    """Write the masks of a shard that aren't there, or without a shard the plan of all."""
    out = to_path(options.out)
    if (options.format or "tif") != "tif" or out.suffix:
        raise InputError(f"--out {out}: a folder for masks was expected of --shards")
    if options.min_area or options.simplify or options.right_angles or options.crs:
        raise InputError("--shards: masks only; `python -m segment.merge` draws the outlines")
    if isinstance(out, Path):
        cli.check_folder(out)
    model = load_model(options.model).reads(options.bands, options.value_range)
    faulty: list[InputError] = []
    plan = _plan(options, out, model, faulty)
    index = shards.own_index() if options.shard is None else options.shard
    if index is None:
        print(f"{out / shards.MANIFEST}: {len(plan.pieces)} masks in {plan.shards} shards")
        _complain(faulty, "scenes can't be opened")
        return
    model = model.to(cli.chosen_device(options))
    for piece in plan.of(index):
        path = out / shards.MASKS / piece.name
        try:
            if not shards.is_done(path, plan, piece):
                with writing(path) as file:
                    _predict_piece(model, plan, piece, file)
            print(path)
        except InputError as error:
            faulty.append(error)
    _complain(faulty, "scenes or masks could not be done")


def _plan(
    options: argparse.Namespace, out: AnyPath, model: Model, faulty: list[InputError]
) -> shards.Plan:
    """The plan in the folder, if it is of this request; made where there is none.

    What is wrong with scenes that a new plan leaves out goes into `faulty`.
    """
    threshold = model.info.threshold if options.threshold is None else options.threshold
    how = model.info.separation.obeying(options.threshold)
    request = {
        "inputs": options.scenes,
        "model": digest(model_file(options.model)),
        "name": model_name(options.model),
        "threshold": threshold,
        "separation": asdict(how) | {"pixel_size": model.info.pixel_size},
        "overlap": options.overlap,
        "pixel_size": options.pixel_size,
        "reading": str(model.info.reading),
        "views": options.views,
        "shards": options.shards,
    }
    if (out / shards.MANIFEST).is_file():
        plan = shards.read_plan(out)
        shards.check_request(out, plan, request)
        return plan
    check_overlap(options.overlap)
    found = find_scenes(options.scenes, labelled=False, faulty=faulty)
    if not found:
        _complain(faulty, "scenes can't be opened")
    plan = shards.plan_of(request, found, model.net.multiple, faulty)
    shards.write_plan(out, plan)
    return plan


def _predict_piece(model: Model, plan: shards.Plan, piece: shards.Piece, path: Path) -> None:
    source, threshold = plan.scenes[piece.scene], plan.request["threshold"]
    with open_raster(source.image, own=True) as dataset:
        _, transform = place_of(dataset)
        place_now = transform or Affine.identity()
        if dataset.shape != (source.height, source.width) or place_now != source.place:
            raise InputError(f"{source.image} is another scene than when the plan was made")
        bar = partial(progress, desc=Path(piece.name).stem, unit="batch")
        overlap, views = plan.request["overlap"], plan.request["views"]
        how = {"box": piece.box, "views": views}
        bands = scene_bands(model, dataset, overlap, source.pixel_size, bar, **how)
        size = {"height": piece.height, "width": piece.width}
        place = {"transform": shifted(source.place, piece.row, piece.col), "crs": source.crs}
        plain = {"gcps": None, "rpcs": None, "colormap": None, "count": 2}
        profile = mask_profile(dataset, "uint8") | size | place | plain
        with write_cog(path, profile, {shards.TAG: plan.digest}) as out:
            out.descriptions = "building", "how sure"  # merge parts buildings by the second
            for band in bands:
                write_band(out, band, np.stack([band.mask(threshold), band.marks(threshold)]))
