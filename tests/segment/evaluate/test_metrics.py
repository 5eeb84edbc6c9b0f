"""Scores against loops over pixels, worked examples and a search over every threshold."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from segment.evaluate import metrics
from segment.evaluate.metrics import Confusion


def tile(city, scene):
    return SimpleNamespace(city=city, scene=scene)


def random_tiles(seed, count=6, size=8):
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 255], np.uint8), (count, size, size), p=[0.6, 0.3, 0.1])
    probability = rng.random((count, size, size), dtype=np.float32)
    probability[rng.random(probability.shape) < 0.1] = 0.5  # ties with the threshold
    return probability, labels


def counted_by_loops(probability, label, threshold):
    count = {"tp": 0, "fp": 0, "fn": 0, "tn": 0}
    for p, truth in zip(probability.ravel(), label.ravel(), strict=True):
        if truth == 255:
            continue
        right = (p >= threshold) == (truth == 1)
        count[("t" if right else "f") + ("p" if p >= threshold else "n")] += 1
    return Confusion(**count)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7])
def test_counts_equal_a_loop_over_pixels(seed, threshold):
    probability, labels = random_tiles(seed)
    counts = metrics.count_tiles(probability, labels, threshold)
    assert counts.dtype == np.int64
    for row, each, label in zip(counts, probability, labels, strict=True):
        expected = counted_by_loops(each, label, threshold)
        assert Confusion(*row) == expected
        mask = np.where(each >= threshold, 255, 0).astype(np.uint8)
        assert Confusion.from_masks(mask, label) == expected


def test_scores_of_a_worked_example():
    count = Confusion(tp=6, fp=2, fn=4, tn=88)
    assert count.scores() == {
        "accuracy": 0.94,
        "iou": 0.5,
        "precision": 0.75,
        "recall": 0.6,
        "f1": pytest.approx(2 / 3),
    }
    assert count + Confusion(1, 2, 3, 4) == Confusion(7, 4, 7, 92)
    assert count.background == Confusion(fn=10, tn=90)
    assert count.background.scores() == {
        "accuracy": 0.9,
        "iou": 0,
        "precision": 0,
        "recall": 0,
        "f1": 0,
    }


@pytest.mark.parametrize(
    "count, expected",
    [
        (Confusion(tn=5), (1, 1, 1, 1, 1)),  # nothing there, nothing said
        (Confusion(), (1, 1, 1, 1, 1)),
        (Confusion(fn=2, tn=3), (0.6, 0, 0, 0, 0)),  # nothing said: no precision to speak of
        (Confusion(fp=2, tn=3), (0.6, 0, 0, 0, 0)),  # nothing to find: no recall
    ],
)
def test_divisions_by_zero(count, expected):
    assert tuple(count.scores().values()) == expected


def test_summary_groups_pools_and_takes_medians():
    counts = np.array([[4, 0, 0, 6], [1, 3, 0, 6], [0, 0, 0, 10], [0, 5, 5, 0], [0, 0, 0, 0]])
    tiles = [tile("a", "a1"), tile("a", "a2"), tile("b", "b1"), tile("a", "a1"), tile("c", "c1")]
    found = metrics.summarise(counts, tiles)
    assert found["pooled"]["tiles"] == 4  # the one without a labelled pixel is left out
    assert found["pooled"]["iou"] == 5 / 18
    assert found["pooled"]["accuracy"] == 27 / 40
    assert found["pooled"]["building"] == 10 / 40
    assert found["pooled"]["background"]["accuracy"] == 30 / 40
    assert found["median"]["iou"] == (1 / 4 + 1) / 2  # of 1, 1/4, 1, 0
    assert found["median"]["accuracy"] == (0.7 + 1) / 2  # of 1, 0.7, 1, 0
    assert found["median"]["building"] == (0.1 + 0.4) / 2  # of 0.4, 0.1, 0, 0.5
    assert found["median"]["background"]["iou"] == 0  # of 0, 0, 1, 0
    assert found["median"]["background"]["accuracy"] == (0.6 + 0.9) / 2  # of 0.6, 0.9, 1, 0.5
    assert list(found["cities"]) == ["a", "b"]
    assert found["cities"]["a"]["iou"] == 5 / 18
    assert found["cities"]["b"]["iou"] == 1
    assert {name: row["tiles"] for name, row in found["scenes"].items()} == {
        "a/a1": 2,
        "a/a2": 1,
        "b/b1": 1,
    }
    assert found["scenes"]["a/a1"]["iou"] == 4 / 14


def test_nothing_labelled_is_an_error():
    with pytest.raises(ValueError, match="no labelled pixel"):
        metrics.summarise(np.zeros((2, 4), np.int64), [tile("a", "a1")] * 2)


@pytest.mark.parametrize("seed", range(4))
def test_calibration_finds_the_best_threshold(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 255], np.uint8), (4, 16, 16), p=[0.7, 0.2, 0.1])
    raw = rng.normal(0.35 + 0.2 * (labels == 1), 0.15)
    probability = np.clip(raw, 0, 1).astype(np.float32)
    half = [metrics.histogram(probability[part], labels[part]) for part in (slice(2), slice(2, 4))]
    threshold, iou = metrics.calibrate(half[0] + half[1])
    by_search = [
        sum(
            (counted_by_loops(p, y, k / 256) for p, y in zip(probability, labels, strict=True)),
            Confusion(),
        ).iou
        for k in range(1, 256)
    ]
    assert iou == max(by_search)
    assert by_search[round(threshold * 256) - 1] == iou


def test_calibration_takes_the_middle_of_equals_and_copes_with_no_building():
    probability = np.array([[0.2, 0.2, 0.8, 1.0]], np.float32)
    counts = metrics.histogram(probability, np.array([[0, 0, 1, 1]], np.uint8))
    assert counts.sum(axis=1).tolist() == [2, 2] and counts[1, 255] == 1
    threshold, iou = metrics.calibrate(counts)
    assert iou == 1 and threshold == pytest.approx(0.5, abs=0.005)
    assert metrics.calibrate(metrics.histogram(probability, np.zeros((1, 4), np.uint8))) == (0.5, 0)


def test_table_shows_every_row_with_its_baseline():
    counts = np.array([[4, 0, 0, 6], [1, 3, 0, 6]])
    text = metrics.table(metrics.summarise(counts, [tile("a", "a1"), tile("b", "b1")]))
    head, *lines = text.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "all tiles, pooled",
        "median tile",
        "city a",
        "city b",
        "scene a/a1",
        "scene b/b1",
    ]
    numbers = "2 25.0% 0.625 0.850 0.625 1.000 0.769 | 0.000 0.750"
    assert " ".join(lines[0].split()) == f"all tiles, pooled {numbers}"
    assert len({line.index("|") for line in [head, *lines]}) == 1
    assert len({len(line) for line in [head, *lines]}) == 1
    assert not math.isnan(float(lines[1].split()[-1]))
