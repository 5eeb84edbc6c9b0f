"""Masks of whole scenes, georeferenced like them: `python -m segment.predict`."""

import argparse
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
from segment import footprints
from segment.blending import WINDOW, Floats, Progress, blended_bands, resampled_bands
from segment.cli import (
    add_device,
    add_views,
    check_folder,
    parser,
    positive,
    progress,
    run,
    within,
)
from segment.errors import InputError
from segment.model import Model, load_model
from segment.plots import overlay
from segment.scenes import (
    Scene,
    Window,
    find_scenes,
    ground_pixel_size,
    open_raster,
    read_pixels,
    working_shape,
    write_raster,
)
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
    """Finished rows of a scene, from `row` on: what was seen, where it is valid, what was found."""

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
    views: int = 1,
) -> Iterator[Band]:
    """Predict an open scene from top to bottom.

    `pixel_size` is the scene's, in metres on the ground, where the file doesn't say or is wrong.
    If it isn't the model's, the scene is resampled to that and the probabilities back. With 2, 4
    or 8 `views` as many turned and mirrored ones are averaged: better, and as many times slower.
    """
    if not 0 <= overlap <= WINDOW // 2:
        raise InputError(f"the overlap must be 0 to {WINDOW // 2} pixels, not {overlap}")
    shape = dataset.height, dataset.width
    grid = _working_shape(model, dataset, pixel_size)

    def read(row: int, rows: int) -> Any:
        top, high = row * shape[0] / grid[0], rows * shape[0] / grid[0]
        window = Window(0, top, shape[1], high)
        return read_pixels(dataset, model.info.reading, window, (rows, grid[1]))

    look = averaged(model.predict, views)
    bands = blended_bands(look, read, grid, overlap, model.net.multiple, progress)
    if grid != shape:
        bands = resampled_bands(bands, grid, shape)
    row = 0
    for probability in bands:
        window = Window(0, row, shape[1], len(probability))
        pixels, valid = read_pixels(dataset, model.info.reading, window)
        yield Band(row, pixels, valid, np.where(valid, probability, np.float32(0)))
        row += len(probability)


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
    path: str | Path,
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
    found = find_scenes(options.scenes, labelled=False)
    options.format = options.format or _format_of(options.out)
    jobs = list(zip(found, _outputs(found, options.out, options.format), strict=True))
    model = load_model(options.model).to(choose_device(options.device))
    for scene, path in jobs:
        path.parent.mkdir(parents=True, exist_ok=True)
        _predict_to_file(model, scene, path, options)
        print(path)


def _parser() -> argparse.ArgumentParser:
    p = parser(
        "predict",
        "Find the buildings in aerial scenes of any size. Memory grows with a scene's width, not "
        "its height; only png, geojson and gpkg hold a whole mask (png the photograph, too).",
    )
    area_or_length = within(0, 1e12)
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
    p.add_argument(
        "--min-area", type=area_or_length, default=0.0, metavar="M2", help="drop smaller outlines"
    )
    p.add_argument(
        "--simplify",
        type=area_or_length,
        default=0.0,
        metavar="M",
        help="tolerance of outlines in metres",
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


def _outputs(found: Sequence[Scene], out: str, form: str) -> list[Path]:
    """The file that each scene gives; InputError where two are one, or one can't or mustn't be."""
    path = Path(out)
    if path.is_dir() or out.endswith(("/", os.sep)) or not path.suffix:
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
            footprints.require_place(dataset.crs, dataset.transform, scene.image)
        bands = scene_bands(
            model,
            dataset,
            options.overlap,
            options.pixel_size or scene.pixel_size,
            partial(progress, desc=scene.stem, unit="batch"),
            options.views,
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


def write_bands(bands: Iterable[Band], path: Path, dataset: Any, threshold: float | None) -> None:
    """Write the mask, or without a threshold the probability, band by band, as a GeoTIFF."""
    profile = _profile(dataset, "float32" if threshold is None else "uint8")
    with write_raster(path, profile) as out:
        for band in bands:
            values = band.probability if threshold is None else band.mask(threshold)
            rows = Window(0, band.row, dataset.width, len(values))
            out.write(values, 1, window=rows)
            out.write_mask(band.valid, window=rows)


if __name__ == "__main__":
    run(main)
