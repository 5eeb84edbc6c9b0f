"""Masks of whole scenes, georeferenced like them: `python -m segment.predict`."""

import argparse
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicnn.backend import choose_device
from segment import shards
from segment.blending import (
    WINDOW,
    Box,
    Floats,
    Progress,
    blended_bands,
    resampled_bands,
    source_box,
)
from segment.cli import (
    add_device,
    add_outlines,
    add_views,
    check_folder,
    parser,
    positive,
    progress,
    run,
    whole,
    within,
)
from segment.data.ground import ground_pixel_size, working_shape
from segment.data.rasters import Window, open_raster, read_pixels, shifted, write_cog, write_raster
from segment.data.scenes import Scene, find_scenes
from segment.errors import InputError
from segment.geo import footprints
from segment.model import Model, load_model, model_file
from segment.plots import overlay
from segment.storage.paths import AnyPath, to_path, writing
from segment.views import averaged

OVERLAP = 64  # pixels
ENDINGS = {
    "tif": (".tif", ".tiff"),
    "probability": (".tif", ".tiff"),
    "png": (".png",),
    "geojson": (".geojson", ".json"),
    "gpkg": (".gpkg",),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Band:
    """Finished rows of a scene or box, from `row` on: what was seen, is valid, and was found."""

    row: int
    pixels: NDArray[np.uint8]  # (rows, W, 3)
    valid: NDArray[np.bool_]  # (rows, W)
    probability: Floats  # (rows, W); 0 where invalid

    def mask(self, threshold: float) -> NDArray[np.uint8]:
        """255 where there is a building, 0 elsewhere; what isn't valid is no building."""
        building = self.valid & (self.probability >= threshold)
        return np.where(building, 255, 0).astype(np.uint8)


def scene_bands(
    model: Model,
    dataset: Any,
    overlap: int = OVERLAP,
    pixel_size: float | None = None,
    progress: Progress = iter,
    box: Box | None = None,
    views: int = 1,
) -> Iterator[Band]:
    """Predict an open scene, or a box of it to the same bits, from top to bottom.

    `pixel_size` is the scene's, in metres on the ground, where the file doesn't say or is wrong.
    If it isn't the model's, the scene is resampled to that and the probabilities back. With 2, 4
    or 8 `views` as many turned and mirrored ones are averaged: better, and as many times slower.
    """
    _check_overlap(overlap)
    shape = dataset.height, dataset.width
    grid = _working_shape(model, dataset, pixel_size)

    scale = shape[0] / grid[0], shape[1] / grid[1]
    box = box or (slice(0, shape[0]), slice(0, shape[1]))

    def read(rows: slice, cols: slice) -> Any:
        size = rows.stop - rows.start, cols.stop - cols.start
        place = cols.start * scale[1], rows.start * scale[0], size[1] * scale[1], size[0] * scale[0]
        return read_pixels(dataset, model.info.reading, Window(*place), size)

    inner = box if grid == shape else source_box(grid, shape, box)
    multiple = model.net.multiple
    look = averaged(model.predict, views)
    bands = blended_bands(look, read, grid, overlap, multiple, progress, inner)
    if grid != shape:
        bands = resampled_bands(bands, grid, shape, box)
    row, (rows, cols) = 0, box
    for probability in bands:
        height, width = probability.shape
        window = Window(cols.start, rows.start + row, width, height)
        pixels, valid = read_pixels(dataset, model.info.reading, window)
        yield Band(row, pixels, valid, np.where(valid, probability, np.float32(0)))
        row += height


def _check_overlap(overlap: int) -> None:
    if not 0 <= overlap <= WINDOW // 2:
        raise InputError(f"the overlap must be 0 to {WINDOW // 2} pixels, not {overlap}")


def _working_shape(model: Model, dataset: Any, pixel_size: float | None) -> tuple[int, int]:
    """The scene's height and width at the model's pixel size."""
    own, wanted = pixel_size or ground_pixel_size(dataset), model.info.pixel_size
    height, width = working_shape(dataset, own, wanted)
    if (height, width) != dataset.shape:
        about = "%s: pixels of %.3g m, resampled to the model's %.3g m"
        log.warning(about, dataset.name, own, wanted)
    return max(1, height), max(1, width)


def predict_scene(
    model: Model,
    path: str | AnyPath,
    threshold: float | None = None,
    overlap: int = OVERLAP,
    pixel_size: float | None = None,
    views: int = 1,
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The mask (H, W) of a scene, 255 on buildings and 0 elsewhere, and its raster profile.

    The profile has the scene's CRS and transform. `threshold` is the model's own unless given;
    `overlap`, `pixel_size` and `views` are as in `scene_bands`. Pixels that aren't valid are no
    building.
    """
    limit = model.info.threshold if threshold is None else threshold
    with open_raster(path) as dataset:
        (scene,) = find_scenes([path], labelled=False)
        bands = scene_bands(model, dataset, overlap, pixel_size or scene.pixel_size, views=views)
        return np.concatenate([band.mask(limit) for band in bands]), _profile(dataset, "uint8")


def _profile(dataset: Any, dtype: str) -> dict[str, Any]:
    """The profile of a GeoTIFF of one band that lies where the dataset does."""
    place = {"crs": dataset.crs, "transform": dataset.transform}
    size = {"height": dataset.height, "width": dataset.width}
    return {"driver": "GTiff", "count": 1, "dtype": dtype, **size, **place}


# ---------------------------------------------------------------- the command


def main(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)
    if options.shards is not None:
        _predict_shard(options)
        return
    if options.shard is not None:
        raise InputError("--shard says which of --shards N: that was expected, too")
    found = find_scenes(options.scenes, labelled=False)
    options.format = options.format or _format_of(options.out)
    jobs = list(zip(found, _outputs(found, options.out, options.format), strict=True))
    model = load_model(options.model).to(choose_device(options.device))
    for scene, path in jobs:
        with writing(path) as file:
            _predict_to_file(model, scene, file, options)
        print(path)


def _parser() -> argparse.ArgumentParser:
    p = parser(
        "predict",
        "Find the buildings in aerial scenes of any size. Memory grows with a scene's width, not "
        "its height; only png, geojson and gpkg hold a whole mask (png the photograph, too).",
    )
    p.add_argument("scenes", nargs="+", metavar="SCENE", help="rasters, folders or CSV files")
    p.add_argument(
        "--model", metavar="RUN|FILE", help="a run's folder or a model file; default: the bundled"
    )
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
        "GeoJSON or GeoPackage; default: what the ending of --out says, else tif",
    )
    p.add_argument(
        "--threshold",
        type=within(0, 1),
        metavar="F",
        help="probability from which a pixel is building; default: the model's own",
    )
    p.add_argument(
        "--overlap", type=int, default=OVERLAP, metavar="N", help="least overlap of windows, pixels"
    )
    p.add_argument(
        "--pixel-size",
        type=positive,
        metavar="M",
        help="the scenes' ground resolution in metres, where the files don't say or are wrong",
    )
    add_outlines(p)
    p.add_argument(
        "--shards",
        type=whole(1),
        metavar="N",
        help="do a share of the work, one of N; the folder --out then holds the plan and the "
        "masks, which `python -m segment.merge` makes one",
    )
    p.add_argument(
        "--shard",
        type=whole(0),
        metavar="I",
        help="which share, 0 to N - 1; default: the index in an AWS Batch array or the MPI rank; "
        "without any, the plan is made and nothing else",
    )
    p.add_argument(
        "--right-angles",
        action="store_true",
        help="draw outlines with right angles where that fits; --simplify is then the shortest "
        "wall, by default 1 m",
    )
    add_views(p)
    add_device(p)
    return p


def _format_of(out: str) -> str:
    """The format that a name's ending stands for; tif where it has none."""
    ending = Path(out).suffix.lower()
    return next((name for name, endings in ENDINGS.items() if ending in endings), "tif")


def _outputs(found: Sequence[Scene], out: str, form: str) -> list[AnyPath]:
    """The file that each scene gives; InputError where two are one, or one can't or mustn't be."""
    path = to_path(out)
    if out.endswith(("/", os.sep)) or not path.suffix or path.is_dir():
        paths = [path / f"{scene.image.stem}{ENDINGS[form][0]}" for scene in found]
    elif len(found) > 1:
        raise InputError(f"--out {out}: a folder was expected for {len(found)} scenes")
    elif path.suffix.lower() not in ENDINGS[form]:
        raise InputError(f"--out {out}: format {form} was expected to end in {ENDINGS[form][0]}")
    else:
        paths = [path]
    taken = Counter(paths)
    inputs = {scene.image.resolve() for scene in found}
    for scene, target in zip(found, paths, strict=True):
        if isinstance(target, Path):
            check_folder(target.parent)
        if taken[target] > 1:
            raise InputError(f"{scene.image}: another scene is to give {target}, too")
        if target.resolve() in inputs:
            raise InputError(f"--out {out}: {target} is a scene and would be overwritten")
    return paths


def _predict_to_file(model: Model, scene: Scene, path: Path, options: argparse.Namespace) -> None:
    threshold = model.info.threshold if options.threshold is None else options.threshold
    with open_raster(scene.image) as dataset:
        if options.format in ("geojson", "gpkg"):  # before the work, not after it
            footprints.require_vector()
            footprints.require_place(dataset.crs, dataset.transform, str(scene.image))
        bands = scene_bands(
            model,
            dataset,
            options.overlap,
            options.pixel_size or scene.pixel_size,
            partial(progress, desc=f"{scene.stem} on {model.device}", unit="batch"),
            views=options.views,
        )
        if options.format in ("tif", "probability"):
            limit = threshold if options.format == "tif" else None
            write_bands(bands, path, dataset, limit)
        elif options.format == "png":
            parts = [(band.pixels, band.mask(threshold)) for band in bands]
            pixels, mask = (np.concatenate(part) for part in zip(*parts, strict=True))
            overlay(pixels, mask, path)
        else:
            mask = np.concatenate([band.mask(threshold) for band in bands])
            place = dataset.transform, dataset.crs
            wishes = options.min_area, options.simplify, options.right_angles
            found = footprints.polygons(mask, *place, *wishes)
            footprints.write(found, path)


def _predict_shard(options: argparse.Namespace) -> None:
    """Write the masks of a shard that aren't there, or without a shard the plan of all."""
    out = to_path(options.out)
    if (options.format or "tif") != "tif" or out.suffix:
        raise InputError(f"--out {out}: a folder for masks was expected of --shards")
    if isinstance(out, Path):
        check_folder(out)
    model = load_model(options.model)
    plan = _plan(options, out, model)
    index = shards.own_index() if options.shard is None else options.shard
    if index is None:
        print(f"{out / shards.MANIFEST}: {len(plan.pieces)} masks in {plan.shards} shards")
        return
    model = model.to(choose_device(options.device))
    for piece in plan.of(index):
        path = out / shards.MASKS / piece.name
        if not shards.is_done(path, plan, piece):
            with writing(path) as file:
                _predict_piece(model, plan, piece, file)
        print(path)


def _plan(options: argparse.Namespace, out: AnyPath, model: Model) -> shards.Plan:
    """The plan in the folder, if it is of this request; made where there is none."""
    threshold = model.info.threshold if options.threshold is None else options.threshold
    request = {
        "inputs": options.scenes,
        "model": hashlib.sha256(model_file(options.model).read_bytes()).hexdigest(),
        "threshold": threshold,
        "overlap": options.overlap,
        "pixel_size": options.pixel_size,
        "views": options.views,
        "shards": options.shards,
    }
    if (out / shards.MANIFEST).is_file():
        plan = shards.read_plan(out)
        shards.check_request(out, plan, request)
        return plan
    _check_overlap(options.overlap)
    plan = shards.plan_of(request, find_scenes(options.scenes, False), model.net.multiple)
    shards.write_plan(out, plan)
    return plan


def _predict_piece(model: Model, plan: shards.Plan, piece: shards.Piece, path: Path) -> None:
    source, threshold = plan.scenes[piece.scene], plan.request["threshold"]
    with open_raster(source.image) as dataset:
        if dataset.shape != (source.height, source.width) or dataset.transform != source.place:
            raise InputError(f"{source.image} is another scene than when the plan was made")
        bar = partial(progress, desc=Path(piece.name).stem, unit="batch")
        overlap, views = plan.request["overlap"], plan.request["views"]
        how = {"box": piece.box, "views": views}
        bands = scene_bands(model, dataset, overlap, source.pixel_size, bar, **how)
        size = {"height": piece.height, "width": piece.width}
        place = {"transform": shifted(dataset.transform, piece.row, piece.col)}
        profile = _profile(dataset, "uint8") | size | place
        with write_cog(path, profile, {shards.TAG: plan.digest}) as out:
            for band in bands:
                _write_band(out, band, band.mask(threshold))


def write_bands(bands: Iterable[Band], path: Path, dataset: Any, threshold: float | None) -> None:
    """Write the mask, or without a threshold the probability, band by band, as a GeoTIFF."""
    profile = _profile(dataset, "float32" if threshold is None else "uint8")
    with write_raster(path, profile) as out:
        for band in bands:
            values = band.probability if threshold is None else band.mask(threshold)
            _write_band(out, band, values)


def _write_band(out: Any, band: Band, values: NDArray[Any]) -> None:
    rows = Window(0, band.row, out.width, len(values))
    out.write(values, 1, window=rows)
    out.write_mask(band.valid, window=rows)


if __name__ == "__main__":
    run(main)
