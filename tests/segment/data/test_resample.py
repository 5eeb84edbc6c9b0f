"""Resampling against sums and interpolation written out, one value after the other."""

import numpy as np
import pytest

from segment.data.resample import averaged, interpolated

SHAPES = [((12, 10), (6, 5)), ((13, 9), (8, 4)), ((5, 6), (9, 12)), ((7, 1), (3, 2))]


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_an_average_is_the_mean_over_a_fine_grid(rng, old, new):
    values = rng.standard_normal((*old, 2))
    fine = values.repeat(new[0], 0).repeat(new[1], 1)
    expected = fine.reshape(new[0], old[0], new[1], old[1], 2).mean((1, 3))
    np.testing.assert_allclose(averaged(values, new), expected, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_interpolation_is_bilinear_between_centres(rng, old, new):
    values = rng.standard_normal(old)
    rows = (np.arange(new[0]) + 0.5) * old[0] / new[0] - 0.5
    cols = (np.arange(new[1]) + 0.5) * old[1] / new[1] - 0.5
    down = np.array([np.interp(rows, np.arange(old[0]), column) for column in values.T])
    expected = np.array([np.interp(cols, np.arange(old[1]), row) for row in down.T])
    np.testing.assert_allclose(interpolated(values, new), expected, atol=1e-6)
