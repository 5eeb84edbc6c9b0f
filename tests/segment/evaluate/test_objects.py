"""What a separation is calibrated on: towns whose gaps are known."""

from dataclasses import replace

import numpy as np
import pytest

from segment.evaluate.objects import calibrate_separation, match, object_scores, spread, truth_of
from segment.geo.separate import Separation, marks, numbered


def row_of_houses(seed, gap):
    """Houses 8 pixels wide with a pixel between them, whose log-odds fall by `gap` there; within a
    roof they waver by half a log-odd."""
    rng = np.random.default_rng(seed)
    odds, label = np.full((40, 60), -5.0), np.zeros((40, 60), np.uint8)
    for row in (3, 15, 27):
        odds[row : row + 9, 3:57] = 4.0
        label[row : row + 9, 3:57] = 1
        odds[row : row + 9, 11:57:9] -= gap
        label[row : row + 9, 11:57:9] = 0
    odds[label == 1] += rng.uniform(-0.25, 0.25, (label == 1).sum())
    return (1 / (1 + np.exp(-odds))).astype(np.float32), label


def sample(city, probability, label, number=None):
    return city, probability, label, truth_of(label, number)


def f1(probability, label, how, threshold=0.4):
    found = numbered(marks(probability, probability >= threshold), how)
    return object_scores(match(truth_of(label), found)[0])["f1"]


def test_the_calibrated_separation_finds_the_houses():
    samples = [sample("town", *row_of_houses(seed, gap=2.5)) for seed in range(4)]
    how = calibrate_separation(samples, 0.4)
    other = row_of_houses(9, gap=2.5)
    assert f1(*other, how) == 1.0
    assert f1(*other, Separation(12.0, 1.0)) < 0.1  # three blobs
    assert f1(*other, Separation(0.1, 0.0)) < 0.5  # crumbs


def with_courts(seed):
    """Houses of probability 0.9 in courts of 0.4, which masks had rather call building."""
    rng = np.random.default_rng(seed)
    probability, label = np.full((48, 48), 0.05, np.float32), np.zeros((48, 48), np.uint8)
    for row in (4, 28):
        for col in (4, 28):
            probability[row : row + 16, col : col + 16] = 0.4
            probability[row + 4 : row + 12, col + 4 : col + 12] = 0.9
            label[row + 4 : row + 12, col + 4 : col + 12] = 1
    return (probability + rng.uniform(-0.03, 0.03, probability.shape)).astype(np.float32), label


def test_outlines_get_a_threshold_of_their_own_where_that_is_better():
    how = calibrate_separation([sample("town", *with_courts(seed)) for seed in range(3)], 0.3)
    assert 0.42 < how.threshold < 0.9
    other = with_courts(9)
    assert f1(*other, how, 0.3) == 1.0
    assert f1(*other, how.obeying(0.3), 0.3) == 0.0  # courts and all
    cut_well = calibrate_separation([sample("town", *row_of_houses(1, gap=2.5))], 0.4)
    assert cut_well.threshold == 0.0  # where nothing is gained, masks and outlines agree


def with_sheds(seed, number=12):
    """Houses of 64 pixels, and as sure of themselves squares of 9 that are no buildings."""
    rng = np.random.default_rng(seed)
    probability, label = np.full((60, 60), 0.05, np.float32), np.zeros((60, 60), np.uint8)
    for row, col in ((4, 4), (4, 30), (30, 4), (30, 30)):
        probability[row : row + 8, col : col + 8] = label[row : row + 8, col : col + 8] = 1
    for place in range(number):
        row, col = 15 + 26 * (place // 6), 2 + 9 * (place % 6)
        probability[row : row + 3, col : col + 3] = 1
    return (0.9 * probability + rng.uniform(0, 0.03, probability.shape)).astype(np.float32), label


def test_what_is_smaller_than_any_building_is_dropped():
    how = calibrate_separation([sample("town", *with_sheds(seed)) for seed in range(3)], 0.5)
    assert 9 < how.smallest <= 64
    assert f1(*with_sheds(9), how, 0.5) == 1.0
    assert f1(*with_sheds(9), replace(how, smallest=0), 0.5) == pytest.approx(2 * 4 / (4 + 16))
    plain = calibrate_separation(
        [sample("town", *with_sheds(seed, number=0)) for seed in range(3)], 0.5
    )
    assert plain.smallest == plain.sure == 0  # where nothing is gained, nothing is dropped


def with_doubts(seed):
    """Houses with a sure core and a faint rim, and as large places that are as faint all over."""
    rng = np.random.default_rng(seed)
    probability, label = np.full((70, 70), 0.05, np.float32), np.zeros((70, 70), np.uint8)
    for row in (5, 40):
        for col, house in ((5, True), (40, False)):
            probability[row : row + 12, col : col + 12] = 0.5
            if house:
                probability[row + 2 : row + 10, col + 2 : col + 10] = 0.9
                label[row : row + 12, col : col + 12] = 1
    return (probability + rng.uniform(-0.01, 0.01, probability.shape)).astype(np.float32), label


def test_what_the_network_is_not_sure_enough_of_is_dropped():
    how = calibrate_separation([sample("town", *with_doubts(seed)) for seed in range(3)], 0.3)
    assert 0.5 < how.sure < 0.68
    assert f1(*with_doubts(9), how, 0.3) == 1.0
    assert f1(*with_doubts(9), how.obeying(0.3), 0.3) == pytest.approx(2 * 2 / (2 + 4))


def test_a_handful_of_buildings_does_not_decide_for_all():
    """A city of four true buildings has less to say than one of two hundred."""
    village = [sample("village", *with_courts(0))]
    label = row_of_houses(0, gap=2.5)[1]
    faint = np.where(label == 1, 0.41, 0.05).astype(np.float32)  # a higher threshold loses them
    town = [sample("town", faint, label)] * 12
    assert calibrate_separation([*village, *town], 0.3).threshold <= 0.4
    assert calibrate_separation(village, 0.3).threshold > 0.42


def terrace(seed):
    """Roofs that touch, 8 pixels wide, whose log-odds fall by 1 along their party walls; a mask,
    and the numbers of the houses."""
    rng = np.random.default_rng(seed)
    odds, number = np.full((40, 60), -5.0), np.zeros((40, 60), np.uint32)
    for row in (3, 22):
        for house in range(6):
            cols = slice(3 + 9 * house, 12 + 9 * house)
            odds[row : row + 9, cols], number[row : row + 9, cols] = 3.0, row * 100 + house
            odds[row : row + 9, cols.start] -= 1.0 * (house > 0)
    odds[number > 0] += rng.uniform(-0.1, 0.1, (number > 0).sum())
    probability = (1 / (1 + np.exp(-odds))).astype(np.float32)
    return probability, (number > 0).astype(np.uint8), number


def test_labels_that_tell_houses_apart_teach_to_part_them():
    """Of the same pixels as a mask, a terrace is one building, and parting it is wrong."""
    told = calibrate_separation([sample("town", *terrace(seed)) for seed in range(3)], 0.4)
    masks = calibrate_separation([sample("town", *terrace(seed)[:2]) for seed in range(3)], 0.4)
    probability, label, number = terrace(9)
    mark = marks(probability, probability >= 0.4)
    assert numbered(mark, told).max() == len(np.unique(number[number > 0])) == 12
    assert numbered(mark, masks).max() == truth_of(label).max() == 2
    assert object_scores(match(truth_of(label, number), numbered(mark, told))[0])["f1"] == 1.0


def test_true_buildings_are_those_that_the_label_tells_apart():
    label = np.array([[1, 1, 1, 0], [1, 1, 0, 255], [0, 0, 0, 1]], np.uint8)
    number = np.array([[7, 7, 4, 4], [7, 4, 0, 4], [0, 9, 0, 0]], np.uint32)
    assert truth_of(label, number).tolist() == [[2, 2, 1, 0], [2, 1, 0, 0], [0, 0, 0, 0]]
    assert truth_of(label, number * 0).tolist() == truth_of(label).tolist()
    assert truth_of(label).max() == 2
    all_over = np.arange(5, 11, dtype=np.uint32).reshape(2, 3)  # no pixel is background
    assert truth_of(np.ones((2, 3), np.uint8), all_over).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_each_city_has_one_voice():
    """Many tiles whose roofs fall apart don't outvote one with narrow gaps, nor the reverse."""
    narrow = [sample("old", *row_of_houses(seed, gap=1.0)) for seed in range(2)]
    wide = [sample("new", *row_of_houses(seed, gap=3.5)) for seed in range(8)]
    how = calibrate_separation([*narrow, *wide], 0.4)
    assert all(f1(*row_of_houses(9, gap), how) > 0.9 for gap in (1.0, 3.5))


def test_without_buildings_the_default_stays():
    nothing = np.zeros((20, 20), np.float32)
    assert (
        calibrate_separation([sample("a", nothing, nothing.astype(np.uint8))], 0.5) == Separation()
    )
    assert calibrate_separation([], 0.5) == Separation()


@pytest.mark.parametrize("most", [1, 7, 100])
def test_tiles_to_calibrate_on_are_of_all_cities(most):
    cities = np.array(["large"] * 50 + ["small"] * 3 + ["middle"] * 20)
    chosen = spread(cities, most)
    assert len(set(chosen)) == min(most, len(cities))
    assert len({cities[i] for i in chosen}) == min(most, 3)
    assert most < 7 or (cities[chosen] == "small").sum() in (2, 3)
