"""Outlines made whole over the edges of blocks: against those of the mask in one piece."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segment.geo.footprints import pixel_outlines
from segment.merge.seams import seamless

shapely = pytest.importorskip("shapely")


def blocks(mask, size, without=()):
    """Rows of blocks, as `seamless` takes them, `without` those at (row, col)."""
    for row in range(0, mask.shape[0], size):
        yield (
            (row, col, mask[row : row + size, col : col + size])
            for col in range(0, mask.shape[1], size)
            if (row, col) not in without
        )


def bits(outlines):
    return sorted(shapely.to_wkb(outlines))


def joined(mask, size, without=()):
    return np.concatenate(list(seamless(blocks(mask, size, without))))


@settings(max_examples=60)
@given(
    *[st.integers(1, 40)] * 2, st.integers(2, 16), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1)
)
def test_blocks_give_the_outlines_of_the_whole(height, width, size, share, seed):
    """To the bit: no building cut or doubled, none joined by a corner, courtyards in place."""
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8) * 255
    found = joined(mask, size)
    assert shapely.is_valid(found).all()
    assert bits(found) == bits(pixel_outlines(mask))


def test_a_building_over_many_rows_is_one():
    mask = np.zeros((100, 100), np.uint8)
    mask[5:95, 40:50] = mask[90:95, 5:95] = 255
    (building,) = joined(mask, 10)
    assert building.area == (mask > 0).sum()
    assert len(building.exterior.coords) == 9  # eight corners: none is left where blocks meet


def test_corners_that_meet_where_four_blocks_do_stay_two():
    mask = np.zeros((20, 20), np.uint8)
    mask[5:10, 5:10] = mask[10:15, 10:15] = 255
    assert [polygon.area for polygon in joined(mask, 10)] == [25, 25]
    mask[10, 9] = 255
    assert [polygon.area for polygon in joined(mask, 10)] == [51]


def test_buildings_are_handed_on_as_soon_as_no_block_can_add_to_them():
    mask = np.zeros((40, 10), np.uint8)
    mask[2:4, 2:4] = mask[5:10, 5:7] = mask[18:22, 2:4] = mask[30:35, 0:3] = 255
    found = [sorted(p.area for p in part) for part in seamless(blocks(mask, 10))]
    assert found == [[4], [10], [8], [15], []]


def test_a_row_without_blocks_ends_what_reached_it():
    mask = np.zeros((30, 10), np.uint8)
    mask[5:10, 2:4] = mask[20:25, 2:4] = 255
    without = {(10, 0)}
    rows = [row for row in ([*row] for row in blocks(mask, 10, without)) if row]
    assert bits(np.concatenate(list(seamless(rows)))) == bits(pixel_outlines(mask))


def test_nothing_is_nothing():
    assert len(joined(np.zeros((30, 30), np.uint8), 7)) == 0
    assert list(map(len, seamless([]))) == [0]
