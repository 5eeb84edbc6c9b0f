"""Pictures of a training run and of a mask over its photograph."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicnn.files import atomic_write

TINT = (0, 190, 255)  # a colour that roofs, trees and streets do not have
OPACITY = 0.45
PANELS = (("accuracy", "accuracy"), ("iou", "IoU"), ("loss", "loss"))


def curves(history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw accuracy, IoU and loss against epoch, train and validation, into a PNG file.

    Each row of `history` holds `epoch` and `train_NAME`, `val_NAME` for accuracy, iou and loss,
    as numbers or as the text of a CSV file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    epochs = [int(row["epoch"]) for row in history]
    for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for part, label in (("train", "train"), ("val", "validation")):
            values = [float(row[f"{part}_{name}"]) for row in history]
            axes.plot(epochs, values, marker=".", label=label)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if name != "loss":
            axes.set_ylim(0, 1)
        axes.legend()
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def tinted(pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photograph (H, W, 3) with a translucent colour where the mask (H, W) isn't zero."""
    picture = pixels.copy()
    where = mask != 0
    mixed = (1 - OPACITY) * pixels[where] + OPACITY * np.array(TINT)
    picture[where] = np.rint(mixed).astype(np.uint8)
    return picture


def overlay(pixels: NDArray[np.uint8], mask: NDArray[np.uint8], path: str | Path) -> None:
    """Write the tinted photograph as a PNG file of its own size."""
    from matplotlib.image import imsave

    with atomic_write(path) as temporary:
        imsave(temporary, tinted(pixels, mask), format="png")
