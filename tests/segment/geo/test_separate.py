"""Buildings told apart: against scikit-image's watershed, and peaks counted by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segment.geo.separate import TOGETHER, UNIT, Separation, confidence, marks, numbered, smoothed

THRESHOLD = 0.4


def bumps(seed, shape=(60, 80), count=25):
    """Probabilities of `count` round roofs, many of which run into another."""
    rng = np.random.default_rng(seed)
    rows, cols = np.indices(shape)
    total = np.zeros(shape)
    for _ in range(count):
        row, col, size = *rng.uniform(0, shape), rng.uniform(2, 5)
        total = np.maximum(total, np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / (2 * size**2)))
    return (0.98 * total + rng.uniform(0, 0.01, shape)).astype(np.float32)


def marked(probability):
    return marks(probability, probability >= THRESHOLD)


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_watershed_of_the_h_maxima(seed):
    """Another's flooding from another's markers, on the same levels, parts the same buildings."""
    measure = pytest.importorskip("skimage.measure")
    morphology = pytest.importorskip("skimage.morphology")
    segmentation = pytest.importorskip("skimage.segmentation")
    how, mark = Separation(0.4, 1.5), marked(bumps(seed))
    levels = smoothed(mark, how.smoothing).astype(np.int64)
    maxima = morphology.h_maxima(levels, math.ceil(how.least), morphology.diamond(1))
    peaks = measure.label(maxima, connectivity=1)
    flooded = segmentation.watershed(-levels, peaks, mask=mark > 0, connectivity=1)
    found = numbered(mark, how)
    assert 5 < found.max() == flooded.max()
    _, pixels = np.unique(np.stack([found, flooded])[:, mark > 0], axis=1, return_counts=True)
    together = np.sort(pixels)[-found.max() :].sum()  # of the pairs that are one building
    assert together >= 0.995 * (mark > 0).sum()  # where slopes are equal they may differ


def test_a_building_has_the_peak_that_stands_out():
    """A ridge with peaks of 4 and 3 log-odds and a saddle of 1 between them."""
    odds = np.array([[0, 2, 4, 2, 1, 2, 3, 2, 0]], float)
    mark = marks((1 / (1 + np.exp(-odds))).astype(np.float32), np.ones(odds.shape, bool))
    assert numbered(mark, Separation(2.1, 0)).tolist() == [[1] * 9]
    two = numbered(mark, Separation(1.9, 0))
    assert two.tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 2]] or two[0, 4] == 2
    assert numbered(mark, TOGETHER).max() == 1


@settings(max_examples=40)
@given(*[st.integers(1, 30)] * 2, st.floats(0.1, 0.9), st.integers(0, 2**32 - 1))
def test_together_are_those_that_touch_by_a_side(height, width, share, seed):
    measure = pytest.importorskip("skimage.measure")
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < share
    mark = np.where(mask, rng.integers(1, 256, mask.shape), 0).astype(np.uint8)
    expected, found = measure.label(mask, connectivity=1), numbered(mark, TOGETHER)
    pairs = np.unique(np.stack([expected, found])[:, mask], axis=1)
    assert pairs.shape[1] == expected.max() == found.max()
    assert ((found > 0) == mask).all()


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.45, 0.6, 0.9]))
def test_outlines_have_a_threshold_of_their_own(seed, threshold):
    """What hangs together from that probability up, and no pixel more; give or take a mark."""
    measure = pytest.importorskip("skimage.measure")
    mark, least = marked(bumps(seed)), math.log(threshold / (1 - threshold))
    step = 12 / 254
    odds = (mark.astype(float) - 1) * step - 6
    expected = measure.label((mark > 0) & (odds >= least - step / 2), connectivity=1)
    found = numbered(mark, Separation(math.inf, 0.0, threshold))
    assert found.max() == expected.max()
    np.testing.assert_array_equal(found > 0, expected > 0)
    assert (numbered(mark, Separation(math.inf, 0.0, 0.2)) > 0).sum() == (mark > 0).sum()


def test_what_is_too_small_is_no_building():
    mark = np.zeros((20, 30), np.uint8)
    mark[2:4, 2:5] = mark[8:15, 2:9] = mark[3:6, 10:20] = 200  # 6, 49 and 30 pixels
    whole = numbered(mark, TOGETHER)
    sizes = {least: np.bincount(numbered(mark, of_at_least(least)).ravel())[1:] for least in LEASTS}
    assert {least: sorted(found) for least, found in sizes.items()} == {
        0: [6, 30, 49],
        6: [6, 30, 49],
        7: [30, 49],
        49: [49],
        50: [],
    }
    found = numbered(mark, of_at_least(7))
    assert ((found > 0) == (whole > 0))[:, 5:].all() and not found[2:4, 2:5].any()


LEASTS = (0, 6, 7, 49, 50)


def of_at_least(pixels):
    return Separation(math.inf, 0.0, smallest=pixels)


def test_the_smallest_building_keeps_its_ground_on_other_pixels():
    how = Separation(1.0, 1.0, smallest=50)
    assert how.on(0.2, 0.4).smallest == 200 and how.on(0.4, 0.2).smallest == 12
    assert how.on(None, 0.4).smallest == 50


def test_flat_roofs_have_one_peak():
    mark = np.zeros((20, 20), np.uint8)
    mark[2:9, 2:18] = mark[9:17, 2:6] = 200  # an L of one height
    assert numbered(mark, Separation(0.01, 0)).max() == 1


def test_smoothing_is_a_gaussian_in_whole_numbers():
    mark = np.zeros((41, 41), np.uint8)
    mark[:] = 1
    mark[20, 20] = 255
    rise = smoothed(mark, 2.0).astype(float) / 4096**2 - 1
    rows, cols = np.indices(mark.shape) - 20
    expected = 254 * np.exp(-(rows**2 + cols**2) / 8) / (8 * np.pi)
    inner = np.s_[10:31, 10:31]
    np.testing.assert_allclose(
        rise[inner], expected[inner], rtol=0.02, atol=0.03
    )  # it ends at 3 sigma


def test_marks_keep_the_probability():
    p = np.linspace(0.01, 0.99, 197, dtype=np.float32)[None]
    mark = marks(p, np.ones(p.shape, bool))
    assert mark.min() >= 1
    np.testing.assert_allclose(confidence(mark) / 1e6, p, atol=0.006)
    assert UNIT * 12 < 2**32
    assert smoothed(np.full((9, 9), 255, np.uint8), 1.0).max() == 255 * 4096**2
