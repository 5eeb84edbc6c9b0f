"""A large scene from file to mask, beside PyTorch with rasterio: what comes on top of the network.

    python -m benchmarks.scene

Both read the same GeoTIFF of 5000 x 5000 pixels at 0.3 m, predict at the model's pixel size in
windows of 512 that overlap by 64, four at a time, bring the probabilities back and write a
Cloud-Optimised GeoTIFF. PyTorch's net is traced, frozen and optimised for inference, the best that
needs no compiler. `network` is the same windows through the net and nothing else.
"""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

from benchmarks.contender import TUNED, Contender, alternate
from benchmarks.report import machine, table, write
from segment.predict.blending import BATCH, WINDOW, window_starts
from segment.predict.scene import OVERLAP
from segment.synthetic.scenes import draw_scene

PIXEL_SIZE = 0.3
DRAWN = 1000  # pixels of the drawn scene that the large one repeats
STEPS = ("scene", "network")


def scene_side(path: str, pixel_size: float) -> int:
    """The side of the square scene at `pixel_size`."""
    with rasterio.open(path) as dataset:
        return round(dataset.width * PIXEL_SIZE / pixel_size)


def batches(side: int, multiple: int) -> list[int]:
    """How many windows each batch of a square scene has, at the model's pixel size."""
    aligned = -(-side // multiple) * multiple
    across = len(window_starts(aligned, min(aligned, WINDOW), OVERLAP, multiple))
    row = [min(BATCH, across - start) for start in range(0, across, BATCH)]
    return row * across


def draw(path: Path, side: int) -> None:
    scene, _ = draw_scene("eastport", 1, DRAWN)
    times = -(-side // DRAWN)
    pixels = np.tile(scene, (times, times, 1))[:side, :side]
    form: dict[str, Any] = {"driver": "GTiff", "compress": "deflate", "tiled": True}
    form |= {"height": side, "width": side, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(
        path, "w", **form, transform=from_origin(4e5, 5.8e6, PIXEL_SIZE, PIXEL_SIZE)
    ) as out:
        out.write(np.moveaxis(pixels, -1, 0))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scene", description=__doc__)
    parser.add_argument("--side", type=int, default=5000, help="of the scene, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        scene = Path(name) / "scene.tif"
        draw(scene, args.side)
        running = [
            stack.enter_context(
                Contender(
                    library,
                    "Scene",
                    str(scene),
                    str(Path(name) / f"{library}.tif"),
                    threads=args.threads,
                    environment=TUNED if library == "torch" else {},
                )
            )
            for library in ("minicnn", "torch")
        ]
        times = {s: alternate(running, s, 0, args.rounds, args.rounds) for s in STEPS}
        agree = _agreement(Path(name) / "minicnn.tif", Path(name) / "torch.tif")
    data: dict[str, Any] = {"machine": machine(), "side": args.side, "agreement": agree}
    data |= {"threads": args.threads, "times": times, "rows": rows(times)}
    write("scene", describe(data), data)
    print(table(data["rows"]))


def _agreement(ours: Path, theirs: Path) -> float:
    """The share of pixels in which the two masks agree: both did the same work."""
    with rasterio.open(ours) as one, rasterio.open(theirs) as two:
        return float((one.read(1) == two.read(1)).mean())


def rows(times: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """A row for each contender, and the ratio of the two in the last column."""
    found = []
    for name in times["scene"]:
        whole, network = times["scene"][name], times["network"][name]
        ours = times["scene"]["minicnn"]
        found.append(
            {
                "": name,
                "from file to mask, s": median(whole),
                "network, s": median(network),
                "whole / network": median(a / b for a, b in zip(whole, network, strict=True)),
                "minicnn / this": median(a / b for a, b in zip(ours, whole, strict=True)),
            }
        )
    return found


def describe(data: dict[str, Any]) -> str:
    text = [
        "# A large scene, from file to mask",
        f"Written by `python -m benchmarks.scene`. {', '.join(data['machine'].values())}. "
        f"{data['threads']} threads; {data['side']} x {data['side']} pixels of 0.3 m, the bundled "
        "model. PyTorch's net has the same weights, its allocator keeps its pages, and the script "
        "around it reads the scene at once, already resampled. Medians of rounds that take turns. "
        f"The two masks agree in {data['agreement']:.2%} of the pixels.",
        table(data["rows"]),
    ]
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    main()
