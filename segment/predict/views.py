"""Test-time augmentation: a photograph from above has no up, so its turned views may vote."""

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

# How many views -> their quarter-turns, and whether each is mirrored beforehand
VIEWS = {
    1: [(0, False)],
    2: [(0, False), (0, True)],
    4: [(turn, False) for turn in range(4)],
    8: [(turn, mirrored) for mirrored in (False, True) for turn in range(4)],
}

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def averaged(predict: Predict, views: int) -> Predict:
    """A `predict` that averages the probabilities of so many views, at that many times the cost.

    1: the images as they are; 2: also mirrored left to right; 4: their quarter-turns; 8: all
    symmetries of the square. `predict` maps (N, H, W, 3) to (N, H, W), and takes H and W swapped.
    """
    if views == 1:
        return predict

    def mean(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        total = np.zeros(images.shape[:3], np.float32)
        for turn, mirrored in VIEWS[views]:
            view = np.rot90(images[:, :, ::-1] if mirrored else images, turn, axes=(1, 2))
            found = np.rot90(predict(np.ascontiguousarray(view)), -turn, axes=(1, 2))
            total += found[:, :, ::-1] if mirrored else found
        return total / np.float32(views)

    return mean


def add_views(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--views",
        type=int,
        choices=tuple(VIEWS),
        default=1,
        help="average so many turned and mirrored views of each window (test-time augmentation), "
        "at that many times the cost; default: 1",
    )
