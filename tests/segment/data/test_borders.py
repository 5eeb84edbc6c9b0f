"""Border weights against the equation of the paper, worked out for every building and pixel."""

import numpy as np
import pytest

from segment.data.borders import SIGMA, border_weights
from segment.data.labels import IGNORE
from segment.data.tiles import FULL


def drawn(shape, *boxes):
    """A label with a number for each box of (top, bottom, left, right)."""
    number = np.zeros(shape, int)
    for n, (top, bottom, left, right) in enumerate(boxes, start=1):
        number[top:bottom, left:right] = n
    return number


def paper(number, w0):
    """Equation 2 in float64, from the distance of each pixel to each pixel of each building."""
    places = np.argwhere(number >= 0)
    distances = [
        np.hypot(*(places[:, None] - np.argwhere(number == n)[None]).transpose(2, 0, 1)).min(axis=1)
        for n in range(1, number.max() + 1)
    ]
    first, second = np.sort(distances, axis=0)[:2].reshape(2, *number.shape)
    return 1 + w0 * np.exp(-((first + second) ** 2) / (2 * SIGMA**2)) * (number == 0)


@pytest.mark.parametrize(
    "boxes",
    [
        [(4, 20, 3, 10), (4, 20, 11, 20)],  # a gap of one pixel
        [(0, 12, 0, 10), (3, 30, 14, 40), (15, 40, 0, 12)],  # three that meet, at the edges
        [(2, 6, 2, 6), (8, 12, 8, 12), (2, 6, 8, 12), (8, 12, 2, 6), (30, 40, 30, 40)],
    ],
)
def test_weights_are_those_of_the_paper(boxes):
    number = drawn((40, 41), *boxes)
    coverage = np.where(number > 0, FULL, 0).astype(np.uint8)
    # 0.011 of w0 is what lies beyond the reach
    np.testing.assert_allclose(border_weights(coverage, 10.0), paper(number, 10.0), atol=0.11)
    gap = border_weights(coverage, 10.0).max()
    assert gap == pytest.approx(paper(number, 10.0).max(), rel=1e-6) and gap > 5


def test_buildings_themselves_a_courtyard_and_a_lone_building_weigh_one():
    court = drawn((40, 40), (5, 30, 5, 30)) - drawn((40, 40), (12, 15, 12, 15))
    for number in (court, drawn((40, 40), (3, 9, 3, 9), (25, 35, 25, 35)), np.zeros((40, 40), int)):
        coverage = np.where(number > 0, FULL, 0).astype(np.uint8)
        assert (border_weights(coverage, 10.0) == 1).all()


def test_a_building_is_what_is_covered_by_half_and_known(rng):
    number = drawn((40, 40), (4, 20, 3, 10), (4, 20, 12, 20))
    coverage = np.where(number > 0, rng.integers(FULL // 2, FULL + 1, number.shape), 0)
    coverage[25:, 5:9] = FULL // 2 - 1
    coverage[25:, 10:14] = IGNORE
    whole = np.where(number > 0, FULL, 0).astype(np.uint8)
    found = border_weights(coverage.astype(np.uint8), 10.0)
    assert found.tobytes() == border_weights(whole, 10.0).tobytes()
