"""Pictures for the notebooks: each drawn from what the library returned, each with a text.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart, and the maps cividis,
gray and PuOr. Every picture has a text in its place for those who do not see it.
"""

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
PAGE = Path(__file__).with_name("states.html").read_text(encoding="utf-8")
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)

matplotlib.rcParams.update(
    {
        "axes.prop_cycle": matplotlib.cycler(color=CYCLE),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.labelsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "legend.frameon": False,
    }
)


def new(width: float = 7.0, height: float = 2.6) -> Figure:
    """An empty figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def show(figure: Figure, alt: str) -> None:
    """Put a figure into the notebook, with `alt` for those who do not see it."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110, metadata={"Software": None})
    data = {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": alt}
    display(data, raw=True, metadata={"image/png": {"alt": alt}})


def axes_row(count: int, width: float | None = None, height: float = 3.0) -> tuple[Figure, Any]:
    """A figure with `count` axes side by side."""
    figure = new(width or min(9.0, 3.0 * count), height)
    return figure, figure.subplots(1, count, squeeze=False)[0]


def picture(axes: Axes, pixels: np.ndarray, title: str = "", **options: Any) -> None:
    """One image: (H, W, 3) in colour, or (H, W) in grey unless `cmap` says else."""
    axes.imshow(pixels, **{"cmap": "gray", "interpolation": "nearest", **options})
    axes.set(title=title, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def pictures(images: Sequence[np.ndarray], titles: Sequence[str], alt: str, **options: Any) -> None:
    """Images side by side."""
    width = min(3.0, 9.0 / len(images))
    figure, row = axes_row(len(images), width * len(images), width + 0.3)
    for axes, image, title in zip(row, images, titles, strict=True):
        picture(axes, image, title, **options)
    show(figure, alt)


def tinted(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A photograph (H, W, 3) of bytes, blue where the mask isn't 0: it stands out on red roofs."""
    blue = np.array([0, 60, 255])
    return np.where(mask[..., None] != 0, 0.5 * pixels + 0.5 * blue, pixels).astype(np.uint8)


def signed(axes: Axes, values: np.ndarray, title: str = "") -> None:
    """An image (H, W) of numbers about 0: orange below, white at 0, purple above.

    The strongest half percent get the full colour, so that a few pixels do not fade all others.
    """
    limit = float(np.quantile(np.abs(values), 0.995) or np.abs(values).max()) or 1.0
    picture(axes, values, title, cmap="PuOr", vmin=-limit, vmax=limit)


def grid(
    axes: Axes,
    values: np.ndarray,
    title: str = "",
    boxes: Sequence[tuple[int, int, int, int, str]] = (),
    cmap: str = "cividis",
) -> None:
    """A small matrix with its numbers; `boxes` are (row, column, rows, columns, colour)."""
    values = np.asarray(values)
    size = 9 if values.shape[1] < 7 else 7
    axes.imshow(values, cmap=cmap, alpha=0.35, interpolation="nearest")
    for (i, j), value in np.ndenumerate(values):
        text = f"{value + 0:.0f}" if float(value).is_integer() else f"{value:.2f}"
        axes.text(j, i, text, ha="center", va="center", fontsize=size)
    for row, column, rows, columns, colour in boxes:
        frame = (column - 0.46, row - 0.46), columns - 0.08, rows - 0.08
        axes.add_patch(Rectangle(*frame, fill=False, edgecolor=colour, linewidth=2.5))
    axes.set(title=title, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def grids(
    matrices: Sequence[np.ndarray],
    titles: Sequence[str],
    alt: str,
    boxes: Sequence[Sequence[tuple[int, int, int, int, str]]] = (),
) -> None:
    """Small matrices side by side, all cells of one size."""
    show(grids_figure(matrices, titles, boxes), alt)


def grids_figure(
    matrices: Sequence[np.ndarray],
    titles: Sequence[str],
    boxes: Sequence[Sequence[tuple[int, int, int, int, str]]] = (),
) -> Figure:
    """The figure of `grids`."""
    rows = max(len(m) for m in matrices)
    cell = min(0.42, 2.2 / rows)  # inches
    pairs = zip(matrices, titles, strict=True)
    widths = [max(np.shape(m)[1], 0.08 * len(title) / cell) + 0.5 for m, title in pairs]  # cells
    figure = new(min(9.0, sum(widths) * cell + 0.2), rows * cell + 0.4)
    row = figure.subplots(1, len(matrices), squeeze=False, width_ratios=widths)[0]
    frames = boxes or [()] * len(matrices)
    for axes, matrix, title, marks, width in zip(
        row, matrices, titles, frames, widths, strict=True
    ):
        grid(axes, matrix, title, marks)
        middle = (np.shape(matrix)[1] - 1) / 2
        axes.set(xlim=(middle - width / 2, middle + width / 2), ylim=(rows - 0.5, -0.5))
    return figure


def unet(stages: Sequence[tuple[str, Any, tuple[int, ...]]], size: int) -> None:
    """A U-Net as a U, from its `stages` for an image of `size` pixels a side."""
    colours = {"ConvBlock": BLUE, "MaxPool2d": ORANGE, "ConvTranspose2d": GREEN, "Conv2d": PURPLE}
    drawing = new(9.0, 4.4)
    axes = drawing.subplots()
    x, ends = 0.0, {}
    for name, layer, (_, H, _, C) in stages:
        level = int(np.log2(size // H))
        width, height = 0.25 + C / 200, 0.12 + 0.62 * H / size
        kind = type(layer).__name__
        axes.add_patch(Rectangle((x, -level - height / 2), width, height, color=colours[kind]))
        axes.text(x + width / 2, -level - height / 2 - 0.03, C, ha="center", va="top", fontsize=7)
        if name.startswith("encoder") and name.endswith(".1"):
            ends[level] = x + width
        if name.startswith("decoder") and name.endswith(".0"):
            axes.annotate(
                "",
                (x, -level),
                (ends[level], -level),
                arrowprops={"arrowstyle": "-|>", "color": "black", "linestyle": "--"},
            )
        x += width + 0.22
    for level in range(int(np.log2(size // min(H for _, _, (_, H, _, _) in stages))) + 1):
        axes.text(-0.3, -level, f"{size >> level}²", ha="right", va="center", fontsize=8)
    for kind, colour in colours.items():
        axes.plot([], [], "s", color=colour, label=kind)
    axes.plot([], [], "--", color="black", label="skip")
    axes.set(xlim=(-1.2, x), ylim=(-4.9, 0.6))
    axes.legend(loc="lower left", ncols=3)
    axes.set_axis_off()
    show(
        drawing,
        "The U-Net drawn from its layers, in the shape of a U. On the way down "
        "images shrink from 256 to 16 pixels and channels grow from 16 to 256; on the "
        "way up the reverse. Dashed arrows, the skips, lead across at four levels.",
    )


def bars(values: dict[str, float], label: str, alt: str, fmt: str = "{:.3g}") -> None:
    """A bar for each name, its number beside it."""
    figure = new(7.0, 0.5 + 0.32 * len(values))
    axes = figure.subplots()
    drawn = axes.barh(list(values), list(values.values()), color=BLUE)
    axes.bar_label(drawn, [" " + fmt.format(v) for v in values.values()], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(label)
    show(figure, alt)


def your_turn(check: Callable[[Callable[..., Any]], None], solution: Callable[..., Any]) -> None:
    """Run an exercise's check on `solution`; while that is the empty stub, say so kindly."""
    try:
        check(solution)
    except NotImplementedError:
        print("Your turn: fill in the stub above, then run it and this cell again.")
    else:
        print("Right.")


def states(
    draw: Callable[..., tuple[Figure, str]], still: Sequence[Any], **controls: Sequence[Any]
) -> None:
    """Sliders that work without Python: a picture of every state is stored in the page.

    `draw` takes one value of each of `controls` and returns a figure and its text. `still` names
    the state to begin with, which is all that shows where no script may run.
    """
    values = list(product(*controls.values()))
    drawn = [draw(**dict(zip(controls, value, strict=True))) for value in values]
    pictures = [base64.b64encode(few_colours(figure)).decode() for figure, _ in drawn]
    texts = [alt for _, alt in drawn]
    at = values.index(tuple(still))
    stored = {
        "pictures": pictures,
        "texts": texts,
        "values": [[str(v) for v in options] for options in controls.values()],
    }
    name = "states-" + hashlib.sha256(repr((list(controls), texts)).encode()).hexdigest()[:8]
    sliders = [
        f"<label><span>{html.escape(control.replace('_', ' '))}</span><input type='range' min='0'"
        f" max='{len(options) - 1}' value='{list(options).index(start)}'><output></output></label>"
        for (control, options), start in zip(controls.items(), still, strict=True)
    ]
    filled = {
        "BOX": name,
        "ALT": html.escape(texts[at]),
        "STILL": pictures[at],
        "SLIDERS": "\n".join(sliders),
        "STATES": json.dumps(stored),
    }
    page = re.sub("|".join(filled), lambda found: filled[found[0]], PAGE)
    picture = {"image/png": pictures[at], "text/plain": texts[at]}
    display({"text/html": page, **picture}, raw=True, metadata={"image/png": {"alt": texts[at]}})


def few_colours(figure: Figure) -> bytes:
    """A figure as a PNG of at most 64 colours: a page may hold a hundred of them."""
    png, small = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    Image.open(png).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
        small, format="png", optimize=True
    )
    return small.getvalue()
