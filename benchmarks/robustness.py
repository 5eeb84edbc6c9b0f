"""The same scenes finer, coarser, darker, hazier, packed hard and turned: what a model stands.

python -m benchmarks.robustness --model RUN --data FOLDER --name robustness-real
"""

import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.held_out import RIM, HeldOut, Score, arguments, setting
from benchmarks.report import table, write
from segment.data.labels import IGNORE
from segment.data.rasters import open_raster, write_raster
from segment.data.reading import Reading, read_pixels
from segment.model import Model
from segment.predict.blending import WINDOW
from segment.predict.scene import predict_scene

BLACK, HAZE = (0, 0, 0), (205, 212, 220)  # what the air adds is a bright, bluish grey
QUALITY = 25  # of the JPEG file: what some map services send

Change = Callable[[Model, HeldOut], HeldOut]


def as_it_is(model: Model, scene: HeldOut) -> HeldOut:
    return scene


def resized(model: Model, scene: HeldOut, factor: float) -> HeldOut:
    """Pixels that are `factor` times as long: averaged, or drawn out without new detail."""
    height, width = (max(1, round(size / factor)) for size in scene.label.shape)
    with open_raster(scene.path) as dataset:
        pixels, _ = read_pixels(dataset, model.info.reading, shape=(height, width))
    return replace(scene, pixels=pixels, pixel_size=scene.pixel_size * factor)


def mixed(model: Model, scene: HeldOut, share: float, colour: tuple[int, int, int]) -> HeldOut:
    """A share of one colour over all of it: with black it is darker, with haze hazier."""
    pixels = (1 - share) * scene.pixels + share * np.array(colour)
    return replace(scene, pixels=np.rint(pixels).astype(np.uint8))


def compressed(model: Model, scene: HeldOut) -> HeldOut:
    file = io.BytesIO()
    Image.fromarray(scene.pixels).save(file, "JPEG", quality=QUALITY)
    return replace(scene, pixels=np.asarray(Image.open(file)))


def turned(model: Model, scene: HeldOut, degrees: float) -> HeldOut:
    """About its centre; corners that come from outside are black, and count nowhere."""
    pixels = Image.fromarray(scene.pixels).rotate(degrees, Image.Resampling.BILINEAR)
    label = Image.fromarray(scene.label).rotate(degrees, fillcolor=IGNORE)
    return replace(scene, pixels=np.asarray(pixels), label=np.asarray(label))


CHANGES: dict[str, Change] = {
    "as it is": as_it_is,
    "half the pixel size (0.15 m for 0.3 m)": partial(resized, factor=0.5),
    "twice the pixel size (0.6 m for 0.3 m)": partial(resized, factor=2),
    "darker: half the light": partial(mixed, share=0.5, colour=BLACK),
    "hazier: 40 % haze": partial(mixed, share=0.4, colour=HAZE),
    f"JPEG of quality {QUALITY}": compressed,
    "turned by a quarter": partial(turned, degrees=90),
    "turned by 30°": partial(turned, degrees=30),
}
UNTOLD = {
    f"{name}, which nobody says": CHANGES[name] for name in list(CHANGES) if "pixel size" in name
}


def row(name: str, change: Change, model: Model, scenes: list[HeldOut], told: bool) -> dict:
    """Scores on the scenes as they are after the change, in the pixels of their labels."""
    score = Score()
    for scene in scenes:
        changed = change(model, scene)
        size = changed.pixel_size if told else scene.pixel_size
        score.add(fitted(masked(model, changed.pixels, size), changed.label.shape), changed.label)
    return {"scenes": name, **score.row()}


def masked(model: Model, pixels: np.ndarray, pixel_size: float) -> np.ndarray:
    """What `segment.predict_scene` finds in a file with these pixels and no georeference."""
    model = replace(model, info=replace(model.info, reading=Reading()))  # they are 8-bit RGB
    height, width, count = pixels.shape
    profile = {"count": count, "height": height, "width": width, "dtype": "uint8"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        with write_raster(path, profile) as out:
            out.write(np.moveaxis(pixels, 2, 0))
        return predict_scene(model, path, pixel_size=pixel_size)[0]


def fitted(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The mask in other pixels: each takes what is found under its centre."""
    rows, cols = (
        ((np.arange(to) + 0.5) * size / to).astype(int)
        for size, to in zip(mask.shape, shape, strict=True)
    )
    return mask[rows][:, cols]


def main() -> None:
    options = arguments("robustness", __doc__).parse_args()
    rows: list[dict[str, Any]] = []
    with setting(options, WINDOW) as (model, scenes, about):
        for told, changes in ((True, CHANGES), (False, UNTOLD)):
            for name, change in changes.items():
                rows.append(row(name, change, model, scenes, told))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    data = {"about": about, "rows": rows}
    write(options.name, describe(data), data)


def describe(data: dict[str, Any]) -> str:
    about = ", ".join(f"{name}: {value}" for name, value in data["about"].items())
    text = [
        "# What a model stands",
        f"Written by `python -m benchmarks.robustness`. {about}. Every scene is changed, predicted "
        f"as a whole, and scored in the pixels of its label; boundary IoU compares rims {RIM} of "
        "them wide, `found` and `right` are of whole buildings, at an IoU above 0.5.",
        table(data["rows"]),
        "Finer scenes are drawn out from these, so they hold no more detail; coarser ones are "
        "averages. Where the pixel size is told (by a georeference or with `--pixel-size`) scenes "
        "are resampled to the model's; the last two rows show what happens where nobody says it, "
        "and the model takes the pixels for its own size.",
    ]
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    main()
