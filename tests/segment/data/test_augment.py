"""Augmentation: light by a table, zoom against interpolation written out, and no turning."""

import numpy as np
import pytest

from segment.data.augment import ZOOM, light_tables, lit, zoomed, zoomed_size
from segment.data.labels import IGNORE


def interpolated(values, size):
    """Bilinear with pixel centres at i + 1/2, one value after the other."""
    old = len(values)
    out = np.empty((size, size, *values.shape[2:]))
    for i in range(size):
        for j in range(size):
            y, x = (i + 0.5) * old / size - 0.5, (j + 0.5) * old / size - 0.5
            y, x = min(max(y, 0), old - 1), min(max(x, 0), old - 1)
            top, left = min(int(y), old - 2), min(int(x), old - 2)
            dy, dx = y - top, x - left
            out[i, j] = (
                values[top, left] * (1 - dy) * (1 - dx)
                + values[top, left + 1] * (1 - dy) * dx
                + values[top + 1, left] * dy * (1 - dx)
                + values[top + 1, left + 1] * dy * dx
            )
    return out


@pytest.mark.parametrize("old", [9, 16, 21])
def test_zoom_is_bilinear_and_takes_the_coverage_along(rng, old):
    pixels = rng.integers(0, 256, (old, old, 3), dtype=np.uint8)
    coverage = rng.integers(0, 255, (old, old), dtype=np.uint8)
    seen, covered = zoomed(pixels, coverage, 16)
    assert seen.dtype == covered.dtype == np.uint8
    assert np.abs(seen - interpolated(pixels.astype(float), 16)).max() <= 0.51
    assert np.abs(covered - interpolated(coverage.astype(float), 16)).max() <= 0.51


def test_what_touches_ignored_ground_is_ignored(rng):
    coverage = np.full((10, 10), 200, np.uint8)
    coverage[4, 4] = IGNORE
    _, covered = zoomed(np.zeros((10, 10, 3), np.uint8), coverage, 16)
    unknown = np.zeros((10, 10))
    unknown[4, 4] = 1
    assert ((covered == IGNORE) == (interpolated(unknown, 16) > 1 / 510)).all()
    assert (covered[covered != IGNORE] == 200).all()


def test_zoom_is_as_often_in_as_out():
    rng = np.random.default_rng(0)
    sizes = np.array([zoomed_size(128, rng) for _ in range(4000)])
    assert sizes.min() == round(128 / ZOOM) and sizes.max() == round(128 * ZOOM)
    assert abs(np.log(sizes / 128).mean()) < 0.01


def test_light_is_one_rising_table_a_channel_and_moves_nothing(rng):
    pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    before = pixels.copy()
    seen = lit(pixels, np.random.default_rng(1))
    assert (pixels == before).all() and seen.shape == pixels.shape
    for channel in range(3):
        values = pixels[..., channel]
        table = [np.unique(seen[..., channel][values == value]) for value in np.unique(values)]
        assert all(len(found) == 1 for found in table)
        assert (np.diff(np.concatenate(table).astype(int)) >= 0).all()
    assert (seen[..., 0] != seen[..., 1]).any()


def test_light_is_mild_and_centred():
    tables = light_tables(4000, np.random.default_rng(0)).astype(int)
    assert tables.shape == (4000, 3, 256)
    assert (np.diff(tables, axis=-1) >= 0).all()
    middle = tables[:, :, 127:129].mean()
    assert abs(middle - 127.5) < 2  # no drift of the mean over many draws
    assert np.std(tables[:, 0, 127]) > 10
    assert np.std(tables[:, 0] - tables[:, 2], axis=0)[200] > 5  # colour: channels differ
    assert abs(tables[:, :, 127] - 127).max() < 60
