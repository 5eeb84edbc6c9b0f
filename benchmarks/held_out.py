"""Whole scenes that a model has not seen, and how good masks of them are, for the quality reports.

Without --data, five scenes are drawn from a seed that no training takes by default. With it, say
which scenes were held out: nothing here can know.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segment.data.labels import IGNORE, read_label
from segment.data.rasters import open_raster
from segment.data.reading import read_pixels
from segment.data.scenes import find_scenes
from segment.data.tiles import TILE
from segment.evaluate.examine import boundary_counts, boundary_distance
from segment.evaluate.metrics import Confusion
from segment.evaluate.objects import match, object_scores, truth_of
from segment.model import Model, load_model
from segment.synthetic.scenes import CITIES, write_scenes

SEED = 1000
RIM = boundary_distance(TILE, TILE)  # that of a tile, whatever the size of a scene


@dataclass
class HeldOut:
    """A scene: its file, RGB pixels, label (0, 1, 255) and pixel size in metres."""

    path: Path
    pixels: np.ndarray
    label: np.ndarray
    pixel_size: float


@dataclass
class Score:
    """Adds up masks against labels."""

    pixels: Confusion = field(default_factory=Confusion)
    rims: np.ndarray = field(default_factory=lambda: np.zeros(2, int))
    objects: np.ndarray = field(default_factory=lambda: np.zeros(5, int))

    def add(self, mask: np.ndarray, label: np.ndarray) -> None:
        known, truth = label != IGNORE, label == 1
        mask = mask.astype(bool) & known
        self.pixels += Confusion.from_masks(mask, label)
        self.rims += boundary_counts(mask[None], truth[None], known[None], RIM)[0]
        self.objects += match(truth_of(label), truth_of(mask.astype(np.uint8)))[0]

    def row(self) -> dict[str, Any]:
        scores = object_scores(self.objects)
        return {
            "IoU": f"{self.pixels.iou:.3f}",
            "boundary IoU": f"{self.rims[0] / max(1, self.rims[1]):.3f}",
            "found": f"{scores['found']:.1%}",
            "right": f"{scores['right']:.1%}",
            "object F1": f"{scores['f1']:.3f}",
        }


def arguments(module: str, about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=about)
    parser.add_argument("--model", metavar="RUN|FILE", help="default: the bundled")
    parser.add_argument("--data", nargs="+", metavar="PATH", help="held-out scenes with labels")
    parser.add_argument(
        "--pixel-size", type=float, metavar="M", help="of scenes that don't say; default: model's"
    )
    parser.add_argument("--name", default=module, help="of the report in docs/benchmarks")
    return parser


@contextmanager
def setting(
    options: argparse.Namespace, size: int
) -> Iterator[tuple[Model, list[HeldOut], dict[str, str]]]:
    """The model, the scenes, and both in words; drawn scenes, `size` pixels wide, go again."""
    model = load_model(options.model)
    with tempfile.TemporaryDirectory() as folder:
        if not options.data:
            write_scenes(folder, CITIES, 1, size, SEED)
        scenes = list(_scenes(options.data or [folder], model, options.pixel_size))
        megapixels = sum(scene.label.size for scene in scenes) / 1e6
        data = ", ".join(Path(path).name for path in options.data or []) or "synthetic, held out"
        yield (
            model,
            scenes,
            {
                "model": Path(options.model).name if options.model else "the bundled one",
                "data": f"{len(scenes)} scenes, {megapixels:.1f} megapixels ({data})",
                "threshold": f"{model.info.threshold:.3f}",
                "pixel size": f"{model.info.pixel_size or 0:.3g} m",
            },
        )


def _scenes(
    paths: Sequence[str | Path], model: Model, pixel_size: float | None
) -> Iterator[HeldOut]:
    for scene in find_scenes(paths):
        with open_raster(scene.image) as dataset:
            pixels, valid = read_pixels(dataset, model.info.reading)
            label = np.where(valid, read_label(scene, dataset), IGNORE)
        size = pixel_size or scene.pixel_size or model.info.pixel_size
        yield HeldOut(scene.image, pixels, label.astype(np.uint8), size or 1.0)
