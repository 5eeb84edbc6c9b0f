"""Windows blended into bands: against one pass over the whole image, and in bounded memory."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segment.predict import blending
from segment.predict.blending import (
    blended_bands,
    block_edges,
    resampled_bands,
    source_box,
    tapers,
    window_starts,
)

MULTIPLE = 16
REACH = 19  # pixels that `network` looks away from a pixel


def network(pixels):
    """Like the real one in what matters: zero padding, pooling by 16, a bounded reach."""
    x = pixels.astype(np.float32).mean(axis=3) / 255
    padded = np.pad(x, ((0, 0), (4, 4), (4, 4)))
    rows = sum(padded[:, i : i + x.shape[1]] for i in range(9)) / 9
    blurred = sum(rows[:, :, i : i + x.shape[2]] for i in range(9)) / 9
    N, H, W = blurred.shape
    pooled = blurred.reshape(N, H // 16, 16, W // 16, 16).max(axis=(2, 4))
    coarse = pooled.repeat(16, axis=1).repeat(16, axis=2)
    return np.clip(0.5 * x + 0.5 * (coarse - blurred) * 3, 0, 1).astype(np.float32)


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def reader(pixels, valid=None):
    valid = np.ones(pixels.shape[:2], bool) if valid is None else valid
    return lambda rows, cols: (pixels[rows, cols], valid[rows, cols])


def blend(predict, pixels, overlap, valid=None):
    read = reader(pixels, valid)
    bands = blended_bands(predict, read, pixels.shape[:2], overlap, MULTIPLE, iter)
    return np.concatenate(list(bands))


def whole(predict, pixels):
    height, width = pixels.shape[:2]
    pad = (0, -height % MULTIPLE), (0, -width % MULTIPLE), (0, 0)
    return predict(np.pad(pixels, pad, mode="symmetric")[None])[0][:height, :width]


@given(
    st.integers(1, 200).map(lambda n: n * MULTIPLE),
    st.integers(2, 16).map(lambda n: n * MULTIPLE),
    st.integers(0, 128),
)
def test_windows_cover_an_axis_and_weigh_one_in_all(size, window, overlap):
    overlap = min(overlap, window // 2)
    window = min(window, size)
    starts = window_starts(size, window, overlap, MULTIPLE)
    assert starts[0] == 0 and starts[-1] + window == size
    assert all(start % MULTIPLE == 0 for start in starts)
    steps = np.diff(starts)
    assert (steps > 0).all() and (window - steps >= overlap).all()
    total = np.zeros(size)
    for start, weight in zip(starts, tapers(starts, window, overlap), strict=True):
        total[start : start + window] += weight
        assert (weight >= 0).all()
        if start > 0:
            assert (weight[: overlap // 4] == 0).all()
        if start + window < size:
            assert (weight[window - overlap // 4 :] == 0).all()
    np.testing.assert_allclose(total, 1, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(4 * REACH, 128), st.integers(0, 99))
def test_windows_give_what_the_whole_image_gives(height, width, overlap, seed):
    """Exact up to rounding once a quarter of the overlap covers the receptive field."""
    original, blending.WINDOW = blending.WINDOW, 256
    try:
        pixels = image(height, width, seed)
        found = blend(network, pixels, overlap)
    finally:
        blending.WINDOW = original
    assert found.shape == (height, width) and found.dtype == np.float32
    np.testing.assert_allclose(found, whole(network, pixels), atol=2e-6)


def test_without_enough_overlap_they_differ(monkeypatch):
    """The test above can fail: this network does see the windows' edges."""
    monkeypatch.setattr(blending, "WINDOW", 256)
    pixels = image(600, 600)
    difference = abs(blend(network, pixels, 0) - whole(network, pixels))
    assert difference.max() > 0.05


def test_no_seam_even_where_windows_disagree(monkeypatch):
    """Windows that answer 0 and 1 by turns: from pixel to pixel the blend moves by the taper only.

    A raised cosine over half the overlap has a slope of at most pi / overlap.
    """
    monkeypatch.setattr(blending, "WINDOW", 128)
    calls = iter(range(1000))

    def contrary(windows):
        flags = [next(calls) % 2 for _ in windows]
        return np.ones(windows.shape[:3], np.float32) * np.array(flags)[:, None, None]

    found = blend(contrary, image(500, 450), overlap=48)
    assert found.min() < 0.01 and found.max() > 0.99
    for axis in (0, 1):
        assert abs(np.diff(found, axis=axis)).max() <= np.pi / 48 + 1e-6


def test_windows_come_in_batches_and_void_ones_not_at_all():
    pixels = image(1200, 1500)
    valid = np.zeros(pixels.shape[:2], bool)
    valid[:, 1300:] = True
    seen = []

    def counting(windows):
        seen.append(len(windows))
        return network(windows)

    blend(counting, pixels, 64)
    assert max(seen) == blending.BATCH and sum(seen) == 3 * 4
    seen.clear()
    found = blend(counting, pixels, 64, valid)
    assert sum(seen) == 3
    np.testing.assert_array_equal(found[valid], blend(network, pixels, 64)[valid])


def test_progress_sees_every_batch():
    jobs = []

    def progress(items):
        jobs.append(len(items))
        return items

    pixels = image(1200, 3000)
    list(blended_bands(network, reader(pixels), (1200, 3000), 64, MULTIPLE, progress))
    assert jobs == [3 * 2]  # 3 rows of 7 windows, by fours


@settings(max_examples=40)
@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.integers(0, 64),
    st.integers(1, 700),
    st.integers(1, 700),
    st.data(),
)
def test_a_box_has_the_bits_of_the_whole(height, width, overlap, to_height, to_width, data):
    """The network sees the windows' edges: another window anywhere would show."""
    shape, to = (height, width), (to_height, to_width)
    box = tuple(data.draw(spans(size)) for size in to)
    original, blending.WINDOW = blending.WINDOW, 128
    try:
        pixels = image(*shape)
        seen = []

        def bands(part):
            read = reader(pixels)
            yield from blended_bands(counted, read, shape, overlap, MULTIPLE, iter, part)

        def counted(windows):
            seen.append(len(windows))
            return network(windows)

        whole = np.concatenate(list(resampled_bands(bands(None), shape, to)))
        in_whole = sum(seen)
        part = resampled_bands(bands(source_box(shape, to, box)), shape, to, box)
        np.testing.assert_array_equal(np.concatenate(list(part)), whole[box])
        assert sum(seen) - in_whole <= in_whole
    finally:
        blending.WINDOW = original


@st.composite
def spans(draw, size):
    start = draw(st.integers(0, size - 1))
    return slice(start, draw(st.integers(start + 1, size)))


@given(st.integers(1, 9000), st.integers(0, 256), st.integers(1, 9))
def test_a_block_costs_one_window_more_than_it_has(size, overlap, count):
    edges = block_edges(size, overlap, MULTIPLE, count)
    assert edges[0] == 0 and edges[-1] == size and (np.diff(edges) > 0).all()
    aligned = -(-size // MULTIPLE) * MULTIPLE
    window = min(aligned, blending.WINDOW)
    starts = window_starts(aligned, window, overlap, MULTIPLE)
    assert len(edges) - 1 <= -(-len(starts) // count)
    for low, high in pairwise(edges):
        weights = zip(starts, tapers(starts, window, overlap), strict=True)
        needed = [w for at, w in weights if at < high and w[max(low - at, 0) : high - at].any()]
        assert len(needed) <= count + 1


def test_memory_does_not_grow_with_the_height():
    def peak(height):
        rows = np.random.default_rng(0).integers(0, 256, (512, 1024, 3), dtype=np.uint8)
        valid = np.ones((512, 1024), bool)
        shape, to = (height, 1024), (height * 3 // 2, 1536)
        bands = blended_bands(
            lambda windows: np.ones(windows.shape[:3], np.float32),
            lambda down, across: (
                rows[: down.stop - down.start, across],
                valid[: down.stop - down.start, across],
            ),
            shape,
            64,
            MULTIPLE,
            iter,
        )
        tracemalloc.start()
        total = sum(len(band) for band in resampled_bands(bands, shape, to))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == to[0]
        return top

    low, high = peak(2048), peak(16384)
    assert high < 1.1 * low  # some tables have an entry a row
    assert low < 1536 * 512 * 40  # bytes a pixel of a band


@settings(max_examples=60, deadline=None)
@given(*[st.integers(1, 30)] * 4, st.integers(1, 40), st.integers(0, 9))
def test_bands_are_resized_as_a_whole_image_is(height, width, to_height, to_width, step, seed):
    values = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    bands = (values[row : row + step] for row in range(0, height, step))
    found = np.concatenate(list(resampled_bands(bands, (height, width), (to_height, to_width))))
    expected = np.empty((to_height, to_width))
    for row in range(to_height):
        for col in range(to_width):
            expected[row, col] = bilinear(
                values, (row + 0.5) * height / to_height - 0.5, (col + 0.5) * width / to_width - 0.5
            )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def bilinear(values, y, x):
    """The value at (y, x), pixel centres being whole numbers; beyond the last centre it stays."""
    total = 0.0
    for row in range(values.shape[0]):
        near_row = max(0.0, 1 - abs(np.clip(y, 0, values.shape[0] - 1) - row))
        if near_row == 0:
            continue
        for col in range(values.shape[1]):
            near_col = max(0.0, 1 - abs(np.clip(x, 0, values.shape[1] - 1) - col))
            total += near_row * near_col * float(values[row, col])
    return total


@pytest.mark.parametrize("size", [(1, 1), (17, 3), (256, 256), (512, 15)])
def test_an_image_smaller_than_a_window_is_one_pass(size):
    pixels = image(*size)
    np.testing.assert_array_equal(blend(network, pixels, 64), whole(network, pixels))
