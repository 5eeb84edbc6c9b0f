"""What a job will take and cost, before it is submitted: arithmetic on measured rates."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from segment.errors import InputError

# Seconds for a tile of 256 px on two AVX-512 cores: docs/benchmarks/unet.md. EC2 sells such a core
# as two vCPUs.
TRAIN, PREDICT = 0.14, 0.036
MEASURED_ON = 4  # vCPUs
TILE, STEP = 256, 192  # pixels: of a training tile, and between windows of a prediction
PARTS = 0.68, 0.17  # of the tiles are trained on, validated on
ITEMS = ("cpu_vcpu_hour", "gpu_hour", "gpu_train_seconds", "gpu_predict_seconds")


@dataclass(frozen=True)
class Work:
    """`megapixels` to predict or to train on for `epochs`; None: nobody said how much it is."""

    megapixels: float | None = None
    epochs: int = 0  # 0: a prediction

    def hours(self, train: float, predict: float) -> float | None:
        """Of one job doing it all, from seconds a tile; training may stop earlier."""
        if self.megapixels is None:
            return None
        side = TILE if self.epochs else STEP
        tiles = self.megapixels * 1e6 / side**2
        a_tile = self.epochs * (PARTS[0] * train + PARTS[1] * predict) if self.epochs else predict
        return tiles * a_tile / 3600


def read_prices(path: Path) -> dict[str, float]:
    """A price file: CSV with the columns item, value; the items are those of `ITEMS`."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        prices = {row["item"].strip(): float(row["value"]) for row in rows if row["value"]}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{path}: expected the columns item,value, and numbers") from None
    for item, value in prices.items():
        if item not in ITEMS or not 0 <= value < math.inf:
            raise InputError(f"{path}: {item} {value:g}: expected a price from 0 up of {ITEMS}")
    return prices


def estimate(
    work: Work, device: str, vcpus: float, jobs: int, limit: float, prices: Mapping[str, float]
) -> str:
    """What the work should take, and what it takes at most, in hours and, where known, USD.

    `limit` is the most hours of one attempt, `jobs` how many jobs share the work.
    """
    if device == "cpu":
        unit, each, price = "vCPU hours", vcpus, prices.get("cpu_vcpu_hour")
        hours = work.hours(TRAIN, PREDICT)
        about = None if hours is None else hours * MEASURED_ON
    else:
        unit, each, price = "GPU hours", 1.0, prices.get("gpu_hour")
        train, predict = (prices.get(f"gpu_{kind}_seconds") for kind in ("train", "predict"))
        known = predict is not None and (train is not None or not work.epochs)
        about = work.hours(train or 0, predict or 0) if known else None
    start = "the time isn't known" if about is None else f"about {_say(about, unit, price)}"
    return f"{start}; at most {_say(jobs * limit * each, unit, price)} an attempt"


def _say(amount: float, unit: str, price: float | None) -> str:
    cost = "" if price is None else f" = {amount * price:,.2f} USD"
    return f"{amount:,.1f} {unit}{cost}"
