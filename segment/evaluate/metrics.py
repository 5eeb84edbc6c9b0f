"""How good a mask is: one count of right and wrong pixels, and every score derived from it.

A pixel is called building where its probability is at or above the threshold; pixels labelled
neither 0 nor 1 (255: unknown) count nowhere. Scores stand beside those of calling everything
background, because where few pixels are buildings an accuracy of 0.9 may mean that none was found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minicnn.backend import Array, array_module

if TYPE_CHECKING:  # scores need NumPy alone
    from segment.data.tiles import Tile

BINS = 256

Scores = dict[str, float]


@dataclass(frozen=True)
class Confusion:
    """Pixels counted by truth and prediction, buildings being the positives.

    accuracy = (tp + tn) / all, IoU = tp / (tp + fp + fn), precision = tp / (tp + fp),
    recall = tp / (tp + fn), F1 = 2 tp / (2 tp + fp + fn). Where there is no building and none is
    predicted the prediction is perfect: all five are 1. Any other 0 / 0 (precision when nothing
    is predicted, recall when there is nothing to find) is 0, so that silence earns nothing.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    @classmethod
    def from_masks(cls, predicted: NDArray[Any], label: NDArray[np.uint8]) -> "Confusion":
        """Compare a mask (non-zero: building) with a label (0, 1; others ignored) of its shape."""
        return cls(*map(int, _count(predicted[None] != 0, label[None])[0]))

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn
        )

    @property
    def pixels(self) -> int:
        return self.tp + self.fp + self.fn + self.tn

    @property
    def accuracy(self) -> float:
        return self._ratio(self.tp + self.tn, self.pixels)

    @property
    def iou(self) -> float:
        return self._ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        return self._ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        return self._ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        return self._ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def background(self) -> "Confusion":
        """The count that calling every one of these pixels background would have got."""
        return Confusion(fn=self.tp + self.fn, tn=self.fp + self.tn)

    def scores(self) -> Scores:
        names = ("accuracy", "iou", "precision", "recall", "f1")
        return {name: getattr(self, name) for name in names}

    def _ratio(self, part: int, whole: int) -> float:
        if whole == 0:
            return float(self.tp + self.fp + self.fn == 0)
        return part / whole


def count_tiles(
    probability: NDArray[np.float32], labels: NDArray[np.uint8], threshold: float
) -> NDArray[np.int64]:
    """Confusion counts of N tiles: two (N, H, W) arrays -> (N, 4) of tp, fp, fn, tn."""
    return _count(probability >= threshold, labels)


def _count(predicted: NDArray[np.bool_], labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    building, background = labels == 1, labels == 0
    pairs = (predicted & building, predicted & background, ~predicted & building)
    tp, fp, fn = (pair.sum(axis=(1, 2), dtype=np.int64) for pair in pairs)
    tn = background.sum(axis=(1, 2), dtype=np.int64) - fp
    return np.stack([tp, fp, fn, tn], axis=1)


def summarise(counts: NDArray[np.int64], tiles: "Sequence[Tile]") -> dict[str, Any]:
    """Score T tiles from their (T, 4) counts, every way the results are read.

    Returns rows under "pooled" (all pixels in one count), "median" (of the tiles' scores: the
    published table's form), "cities" and "scenes" (name -> pooled row). A row holds "tiles", the
    share of "building" pixels, the scores, and those of the all-"background" prediction.
    Tiles whose every pixel is ignored are left out.
    """
    counted = counts.sum(axis=1) > 0
    counts = counts[counted]
    tiles = [tile for tile, keep in zip(tiles, counted, strict=True) if keep]
    if not tiles:
        raise ValueError("there is no labelled pixel to score")
    return {
        "pooled": _pooled(counts),
        "median": _median(counts),
        "cities": _grouped(counts, [tile.city for tile in tiles]),
        "scenes": _grouped(counts, [f"{tile.city}/{tile.scene}" for tile in tiles]),
    }


def _pooled(counts: NDArray[np.int64]) -> dict[str, Any]:
    return {"tiles": len(counts), **_row(Confusion(*map(int, counts.sum(axis=0))))}


def _median(counts: NDArray[np.int64]) -> dict[str, Any]:
    rows = [_row(Confusion(*map(int, row))) for row in counts]
    background = _medians([row.pop("background") for row in rows])
    return {"tiles": len(counts), **_medians(rows), "background": background}


def _row(count: Confusion) -> dict[str, Any]:
    share = (count.tp + count.fn) / count.pixels
    return {"building": share, **count.scores(), "background": count.background.scores()}


def _medians(scores: list[Scores]) -> Scores:
    return {name: float(np.median([each[name] for each in scores])) for name in scores[0]}


def _grouped(counts: NDArray[np.int64], names: list[str]) -> dict[str, Any]:
    labels = np.array(names)
    return {str(name): _pooled(counts[labels == name]) for name in np.unique(labels)}


def histogram(probability: Array, labels: Array) -> Array:
    """Count pixels by class and probability: (2, 256), row 1 the buildings; sums over batches.

    Bin k holds k/256 <= p < (k + 1)/256 (the last one p = 1 as well), so "p >= k/256" is exactly
    "bin k or above".
    """
    xp = array_module(probability)
    bins = xp.minimum(probability * BINS, BINS - 1).astype(np.intp)
    cell = xp.where(labels < 2, labels.astype(np.intp) * BINS + bins, 2 * BINS)
    return xp.bincount(cell.reshape(-1), minlength=2 * BINS)[: 2 * BINS].reshape(2, BINS)


def calibrate(counts: NDArray[np.int64]) -> tuple[float, float]:
    """The threshold k/256 with the highest pooled IoU on a `histogram`, and that IoU.

    Of several that are equally good the middle one is taken: furthest from where it gets worse.
    Without a building there is nothing to calibrate on, and the threshold is 0.5.
    """
    background, building = counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # pixels at or above bin k
    if building[0] == 0:
        return 0.5, 0.0
    iou = building / (building[0] + background)  # tp / (tp + fn + fp)
    best = 1 + np.flatnonzero(iou[1:] == iou[1:].max())  # threshold 0 would call all building
    k = int(best[(len(best) - 1) // 2])
    return k / BINS, float(iou[k])


def table(summary: dict[str, Any]) -> str:
    """A `summarise` result as text: the model's scores, then the all-background ones."""
    rows = [("all tiles, pooled", summary["pooled"]), ("median tile", summary["median"])]
    rows += [(f"city {name}", row) for name, row in summary["cities"].items()]
    rows += [(f"scene {name}", row) for name, row in summary["scenes"].items()]
    width = max(len(name) for name, _ in rows)
    head = f"{'':{width}}  tiles  built    IoU  accuracy  precision  recall     F1"
    known = any("objects" in row for _, row in rows)
    lines = [f"{head} | all background: IoU  accuracy" + " | buildings' F1" * known]
    for name, row in rows:
        none = row["background"]
        whole = f" | {row['objects']['f1']:13.3f}" if "objects" in row else " " * 16 * known
        lines.append(
            f"{name:{width}} {row['tiles']:6d} {row['building']:6.1%} {row['iou']:6.3f} "
            f"{row['accuracy']:9.3f} {row['precision']:10.3f} {row['recall']:7.3f} "
            f"{row['f1']:6.3f} | {none['iou']:19.3f} {none['accuracy']:9.3f}{whole}"
        )
    return "\n".join(lines)
