"""Pictures of a training run, of an evaluation, and of a mask over its photograph."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicnn.files import atomic_write

TINT = (255, 0, 200)  # a colour that roofs, trees, streets and pools do not have
MISSED, FALSE = (0, 110, 255), (255, 220, 0)  # told apart by those who see no red or no green, too
OPACITY = 0.45
PANELS = (("accuracy", "accuracy"), ("iou", "IoU"), ("loss", "loss"))


def curves(history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw accuracy, IoU and loss against epoch, train and validation, into a PNG file.

    Each row of `history` holds `epoch` and `train_NAME`, `val_NAME` for accuracy, iou and loss,
    as numbers or as the text of a CSV file.
    """
    from matplotlib.figure import Figure  # by itself it needs no display
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    epochs = [int(row["epoch"]) for row in history]
    for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for part, label in (("train", "train"), ("val", "validation")):
            values = [float(row[f"{part}_{name}"]) for row in history]
            axes.plot(epochs, values, marker=".", label=label)
        axes.set(title=title, xlabel="epoch")
        axes.set_xlim(0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if name != "loss":
            axes.set_ylim(0, 1)
        axes.legend(loc="upper right" if name == "loss" else "lower right")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def tinted(
    pixels: NDArray[np.uint8], mask: NDArray[Any], colour: tuple[int, int, int] = TINT
) -> NDArray[np.uint8]:
    """The photograph (H, W, 3) with a translucent colour where the mask (H, W) isn't zero."""
    picture = pixels.copy()
    where = mask != 0
    mixed = (1 - OPACITY) * pixels[where] + OPACITY * np.array(colour)
    picture[where] = np.rint(mixed).astype(np.uint8)
    return picture


def judged(example: "Example") -> NDArray[np.uint8]:
    """The photograph with three colours: buildings that were found, missed, and false alarms."""
    truth, predicted = example.truth != 0, example.predicted != 0
    picture = tinted(example.pixels, truth & predicted)
    picture = tinted(picture, truth & ~predicted, MISSED)
    return tinted(picture, predicted & ~truth, FALSE)


def as_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """A picture (H, W, 3) as a JPEG file: a photograph takes a fifth of what PNG would."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, pixels, format="jpeg", pil_kwargs={"quality": 88})
    return file.getvalue()


@dataclass(frozen=True)
class Example:
    """A photograph (H, W, 3) with its true and its predicted mask (H, W), non-zero building."""

    name: str
    pixels: NDArray[np.uint8]
    truth: NDArray[Any]
    predicted: NDArray[Any]


def examples(rows: Sequence[Example], path: str | Path) -> None:
    """Draw photograph, truth and prediction side by side, a row for each example, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for axes, title in zip(grid[0], ("photograph", "truth", "prediction"), strict=True):
        axes.set_title(title)
    for line, row in zip(grid, rows, strict=True):
        pictures = row.pixels, tinted(row.pixels, row.truth), tinted(row.pixels, row.predicted)
        for axes, picture in zip(line, pictures, strict=True):
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(row.name)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def precision_recall(
    precision: NDArray[np.float64], recall: NDArray[np.float64], threshold: float
) -> bytes:
    """Draw precision against recall at the thresholds k/256, one of them marked, as an SVG file."""
    chosen = min(len(recall) - 1, round(threshold * len(recall)))

    def draw(axes: Any) -> None:
        axes.plot(recall, precision)
        label = f"threshold {threshold:.2f}"
        axes.plot(recall[chosen], precision[chosen], "o", color="black", label=label)
        axes.set(xlabel="recall", ylabel="precision", title="Precision and recall of pixels")
        axes.legend(loc="lower left")

    return _square(draw)


def reliability(
    mean: NDArray[np.float64], share: NDArray[np.float64], pixels: NDArray[np.int64]
) -> bytes:
    """Draw the share of buildings against the probability given, as an SVG file.

    Below, how many pixels have such a probability. On the diagonal a probability is what it says.
    """

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
        axes.bar(mean, pixels / max(1, pixels.sum()), 0.04, color="lightgrey", label="pixels")
        axes.plot(mean, share, marker="o", label="buildings among them")
        axes.set(xlabel="probability given", ylabel="share", title="Is a probability what it says?")
        axes.legend(loc="upper left")

    return _square(draw)


def _square(draw: Callable[[Any], None]) -> bytes:
    """An SVG file with one pair of axes, both from 0 to 1."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "minicnn"}):  # equal figures, equal bytes
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def overlay(pixels: NDArray[np.uint8], mask: NDArray[np.uint8], path: str | Path) -> None:
    """Write the tinted photograph as a PNG file of its own size."""
    from matplotlib.image import imsave

    with atomic_write(path) as temporary:
        imsave(temporary, tinted(pixels, mask), format="png")
