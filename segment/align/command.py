"""Move labels to where a model sees the buildings: `python -m segment.align`."""

import argparse
import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minicnn.files import atomic_write
from segment.align.shift import Shift, building_shifts, moved_label, picture_shift
from segment.cli import add_data, add_device, add_model, check_folder, chosen_device, parser
from segment.data.ground import ground_pixel_size
from segment.data.labels import read_buildings
from segment.data.rasters import open_raster, write_raster
from segment.data.scenes import Scene, find_scenes
from segment.errors import InputError
from segment.evaluate.objects import truth_of
from segment.model import Model, load_model
from segment.predict.scene import mask_profile, scene_bands
from segment.progress import progress

REACH, OWN_REACH = 6.0, 2.0  # metres: of a picture's shift, and of a building's beyond that
COLUMNS = ("city", "picture", "building", "right_m", "down_m", "before", "after", "moved")

Row = tuple[Any, ...]


def main(argv: list[str]) -> None:
    options = arguments().parse_args(argv)
    if not options.data:
        raise InputError("--data PATH was expected: labels to move")
    out = Path(options.out)
    check_folder(out / "masks")
    if (out / "pairs.csv").exists():
        raise InputError(f"{out} holds moved labels already: name another --out")
    model = load_model(options.model).to(chosen_device(options))
    scenes = find_scenes(options.data, cache=options.cache)
    (out / "masks").mkdir(parents=True, exist_ok=True)
    rows = [row for scene in progress(scenes, desc="aligning") for row in _align(scene, model, out)]
    moved = [row for row in rows if row[2] == "" and row[-1] == "yes"]
    own = [row for row in rows if row[2] != "" and row[-1] == "yes"]
    _write_csv(out / "shifts.csv", COLUMNS, rows)
    pairs = [_pair(scene, out) for scene in scenes]
    _write_csv(out / "pairs.csv", ("image", "mask", "scene", "city", "pixel_size"), pairs)
    print(f"{len(moved)} of {len(scenes)} pictures show where their labels belong, and were moved")
    print(f"{len(own)} of {sum(row[2] != '' for row in rows)} buildings were moved by themselves")
    print(f"{out / 'pairs.csv'}: give it as --data; {out / 'shifts.csv'}: what was found")


def arguments() -> argparse.ArgumentParser:
    p = parser(
        "align",
        "Labels from a map lie off the picture by metres. Move each picture's labels, then each "
        "building, to where they agree best with a model; what shows no evidence stays in place.",
    )
    add_data(p)
    add_model(p)
    p.add_argument("--out", required=True, metavar="PATH", help="the folder for the moved labels")
    add_device(p)
    return p


def _align(scene: Scene, model: Model, out: Path) -> Iterator[Row]:
    """Write a scene's moved label; what was found of the picture, then of each building."""
    with open_raster(scene.image, own=True) as dataset:
        size = scene.pixel_size or ground_pixel_size(dataset) or model.info.pixel_size or 1.0
        label, apart = read_buildings(scene, dataset)
        truth = truth_of(label, apart)
        bands = scene_bands(model, dataset, pixel_size=scene.pixel_size)
        probability = np.concatenate([band.probability for band in bands])
        whole = picture_shift(probability, label, math.ceil(REACH / size))
        step = whole.step if whole.moved else (0, 0)
        seen = _seen_from(probability, step)
        own = building_shifts(seen, truth, math.ceil(OWN_REACH / size))
        steps = [(step[0] + s.step[0], step[1] + s.step[1]) if s.moved else step for s in own]
        moved = moved_label(label, truth, step, steps)
        with write_raster(_mask_of(scene, out), mask_profile(dataset, "uint8")) as file:
            file.write(np.where(moved == 1, 255, 0).astype(np.uint8), 1)
            file.write_mask(moved != 255)
    yield _row(scene, "", whole, size)
    for number, shift in enumerate(own, start=1):
        yield _row(scene, number, shift, size)


def _seen_from(probability: np.ndarray, step: tuple[int, int]) -> np.ndarray:
    """The probability where a label moved by the step lies: p(x + step), 0 beyond the edges."""
    reach = max(abs(step[0]), abs(step[1]))
    height, width = probability.shape
    row, col = reach + step[0], reach + step[1]
    return np.pad(probability, reach)[row : row + height, col : col + width]


def _row(scene: Scene, building: int | str, shift: Shift, size: float) -> Row:
    down, right = (round(step * size, 2) for step in shift.step)
    told = "yes" if shift.moved else "no evidence"
    agreement = round(shift.before, 3), round(shift.after, 3)
    return scene.city, scene.stem, building, right, down, *agreement, told


def _mask_of(scene: Scene, out: Path) -> Path:
    return out / "masks" / f"{scene.city}--{scene.stem}.tif"


def _pair(scene: Scene, out: Path) -> Row:
    image = str(Path(scene.image).resolve()) if isinstance(scene.image, Path) else str(scene.image)
    mask = _mask_of(scene, out).relative_to(out)
    return image, str(mask), scene.scene, scene.city, scene.pixel_size or ""


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Row]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
