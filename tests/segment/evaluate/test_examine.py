"""Outlines, buildings and curves against loops over pixels, flood fills and worked examples."""

from types import SimpleNamespace

import numpy as np
import pytest

from segment.evaluate import examine
from segment.evaluate.metrics import Confusion, histogram
from segment.evaluate.objects import match, object_scores, truth_of


def random_masks(seed, shape=(3, 40, 52), share=0.55):
    """Blobs of all sizes: noise, smoothed by a majority of neighbours."""
    rng = np.random.default_rng(seed)
    noise = rng.random(shape) < share
    return sum(np.roll(noise, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)) > 4


def flooded(mask):
    """Components by flood fill: each a frozenset of pixels."""
    left, found = set(zip(*np.nonzero(mask), strict=True)), set()
    while left:
        todo, piece = [left.pop()], set()
        while todo:
            i, j = todo.pop()
            piece.add((int(i), int(j)))
            for neighbour in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if neighbour in left:
                    left.remove(neighbour)
                    todo.append(neighbour)
        found.add(frozenset(piece))
    return found


def of(mask):
    """Buildings numbered: what touches by a side is one."""
    return truth_of(mask.astype(np.uint8))


def pieces(labels):
    return {
        frozenset((int(i), int(j)) for i, j in np.argwhere(labels == number))
        for number in range(1, labels.max() + 1)
    }


@pytest.mark.parametrize("seed", range(3))
def test_true_buildings_equal_a_flood_fill(seed):
    mask = random_masks(seed)[0]
    mask[3, 3] = not mask[3, 3]  # a hole, or a speck
    labels = truth_of(mask.astype(np.uint8))
    assert (labels > 0).tolist() == mask.tolist()
    assert pieces(labels) == flooded(mask)
    assert not truth_of(np.zeros((4, 5), np.uint8)).any()


@pytest.mark.parametrize("distance", [1, 2, 7])
def test_erosion_equals_a_loop_over_pixels(distance):
    masks = random_masks(0, share=0.8)
    masks[2] = True
    got = examine.eroded(masks, distance)
    padded = np.pad(masks, ((0, 0), (distance, distance), (distance, distance)))
    side = 2 * distance + 1
    for n, i, j in np.ndindex(*masks.shape):
        assert got[n, i, j] == padded[n, i : i + side, j : j + side].all()
    assert got.any() and (got != masks).any()


def test_boundary_counts_equal_a_loop_over_pixels():
    """From the definition: pixels of the mask with a pixel outside of it within the distance."""
    truth, predicted = random_masks(1, share=0.7), random_masks(2, share=0.7)
    predicted[1] = False
    labelled = np.random.default_rng(3).random(truth.shape) < 0.9
    truth, predicted = truth & labelled, predicted & labelled
    distance = round(0.02 * (40**2 + 52**2) ** 0.5)
    assert examine.boundary_distance(40, 52) == distance == 1
    assert examine.boundary_distance(256, 256) == 7

    def rim(mask, i, j):
        near = np.pad(mask, distance)[i : i + 2 * distance + 1, j : j + 2 * distance + 1]
        return mask[i, j] and not near.all()

    got = examine.boundary_counts(predicted, truth, labelled, distance)
    for n in range(3):
        shared = union = 0
        for i, j in np.ndindex(40, 52):
            a, b = rim(truth[n], i, j), rim(predicted[n], i, j)
            shared += (a and b) and labelled[n, i, j]
            union += (a or b) and labelled[n, i, j]
        assert got[n].tolist() == [shared, union]
    assert got[0, 0] > 0 and got[1, 0] == 0


@pytest.mark.parametrize("seed", range(4))
def test_buildings_are_matched_as_sets_of_pixels_are(seed):
    truth = random_masks(seed, (1, 40, 52), 0.45)[0]
    predicted = np.where(np.random.default_rng(seed).random((40, 52)) < 0.08, ~truth, truth)
    both = of(truth), of(predicted)
    counts, hit, sure = match(*both)
    sizes = examine.sizes_of(*both, hit, sure, 10.0)
    a, b = flooded(truth), flooded(predicted)
    pairs = [(x, y) for x in a for y in b if len(x & y) / len(x | y) > 0.5]
    assert counts[:3].tolist() == [len(a), len(b), len(pairs)] and 0 < len(pairs) < len(a)
    expected = np.zeros((6, 6), int)
    inside = set(zip(*map(np.ndarray.tolist, np.nonzero(predicted)), strict=True))
    found, right = {x for x, _ in pairs}, {y for _, y in pairs}

    def kind(piece):
        return sum(len(piece) * 10.0 >= limit for limit in examine.SIZES) - 1

    for x in a:
        expected[kind(x), :4] += [1, x in found, len(x), len(x & inside)]
    for y in b:
        expected[kind(y), 4:] += [1, y in right]
    np.testing.assert_array_equal(sizes, expected)
    assert len(set(map(kind, a))) > 2


def test_half_is_not_enough_and_nothing_matches_twice():
    truth = np.zeros((4, 9), bool)
    truth[1, 1:7] = True
    halves = truth.copy()
    halves[1, 4] = False  # 3 and 2 of 6 pixels
    assert match(of(truth), of(halves))[0].tolist() == [1, 2, 0, 0, 1]
    halves[1, 4], halves[1, 5] = True, False  # 4 and 1
    assert match(of(truth), of(halves))[0].tolist() == [1, 2, 1, 0, 1]
    nothing = np.zeros((4, 9), bool)
    assert match(of(truth), of(nothing))[0].tolist() == [1, 0, 0, 0, 0]
    assert match(of(nothing), of(nothing))[0].tolist() == [0, 0, 0, 0, 0]
    assert object_scores(np.array([4, 8, 3, 2, 1])) == {
        "true": 4, "predicted": 8, "predicted_per_true": 2, "merged": 2, "split": 1,
        "found": 0.75, "right": 0.375, "f1": 0.5,
    }  # fmt: skip
    assert object_scores(np.zeros(5, int))["f1"] == 1


def test_merged_and_split_are_counted_in_true_buildings():
    """Two roofs and a bit of a third under one blob; a roof in two pieces and a speck."""
    truth, found = np.zeros((2, 20, 60), bool)
    truth[2:8, 2:8] = truth[2:8, 10:16] = truth[2:8, 18:24] = truth[10:20, 30:50] = True
    found[2:8, 2:19] = found[10:20, 30:38] = found[10:20, 39:48] = found[10:11, 49:50] = True
    assert match(of(truth), of(found))[0].tolist() == [4, 4, 0, 2, 1]


def scattered(seed, count=20_000):
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 255], np.uint8), (1, 1, count), p=[0.6, 0.3, 0.1])
    raw = np.clip(rng.normal(0.3 + 0.3 * (labels == 1), 0.2), 0, 0.98)
    return raw.astype(np.float32), labels


def test_precision_and_recall_at_every_threshold():
    probability, labels = scattered(0)
    precision, recall = examine.precision_recall(histogram(probability, labels))
    assert len(precision) == len(recall) == 256
    for k in range(0, 251, 10):
        count = Confusion.from_masks((probability >= k / 256)[0], labels[0])
        assert precision[k] == pytest.approx(count.precision)
        assert recall[k] == pytest.approx(count.recall)
    assert np.isnan(precision[255]) and recall[255] == 0  # nothing is as sure as that


def test_reliability_equals_a_sum_over_pixels():
    probability, labels = scattered(1)
    mean, share, pixels = examine.reliability(histogram(probability, labels))
    keep = labels < 2
    p, y = probability[keep].astype(float), labels[keep]
    error = 0.0
    for k in range(16):
        here = (p >= k / 16) & (p < (k + 1) / 16)
        assert pixels[k] == here.sum()
        assert share[k] == pytest.approx(y[here].mean())
        assert mean[k] == pytest.approx(p[here].mean(), abs=1 / 512)
        error += here.mean() * abs(y[here].mean() - p[here].mean())
    found = examine.calibration_error(histogram(probability, labels))
    assert found == pytest.approx(error, abs=1 / 512) and error > 0.05


def test_an_honest_probability_has_no_calibration_error():
    rng = np.random.default_rng(2)
    probability = rng.random((1, 1, 400_000), dtype=np.float32)
    labels = (rng.random(probability.shape) < probability).astype(np.uint8)
    assert examine.calibration_error(histogram(probability, labels)) < 0.005


def test_one_pass_gathers_all_of_it_tile_by_tile():
    truth = random_masks(5, (6, 40, 52), 0.5)
    rng = np.random.default_rng(6)
    labels = np.where(rng.random(truth.shape) < 0.05, 255, truth).astype(np.uint8)
    probability = np.clip(truth * 0.4 + rng.random(truth.shape) * 0.6, 0, 1).astype(np.float32)
    truths = np.stack([truth_of(label) for label in labels])
    parts = [slice(0, 4), slice(4, 6)]
    batches = ((part, probability[part], labels[part], truths[part]) for part in parts)
    got = examine.examine(batches, 6, 0.5, pixel_size=3.0)
    tiles = [SimpleNamespace(city="ab"[n % 2], scene=f"s{n}") for n in range(6)]
    whole = got.summary(tiles)
    for n in range(6):
        p, t = (probability[n] >= 0.5) & (labels[n] < 2), labels[n] == 1
        assert Confusion(*got.pixels[n]) == Confusion.from_masks(p, labels[n])
        known = labels[n : n + 1] < 2
        rims = examine.boundary_counts(p[None], t[None], known, 1)[0]
        both = of(t), of(p)
        objects, hit, sure = match(*both)
        sizes = examine.sizes_of(*both, hit, sure, 9.0)
        row = whole["scenes"][f"{tiles[n].city}/s{n}"]
        assert row["boundary_iou"] == pytest.approx(rims[0] / rims[1])
        assert row["objects"] == object_scores(objects)
        got.sizes -= sizes
    assert not got.sizes.any()
    np.testing.assert_array_equal(got.histogram, histogram(probability, labels))
    odd = got.boundary[1::2].sum(axis=0)
    assert whole["cities"]["b"]["boundary_iou"] == odd[0] / odd[1]
    assert whole["pooled"]["objects"]["true"] == got.objects[:, 0].sum()
