"""Buildings made whole over the edges of blocks: against those of the scene in one piece."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from segment.geo import buildings as rooms
from segment.geo.buildings import blocks_of, buildings
from segment.geo.separate import TOGETHER, Separation, numbered

shapely = pytest.importorskip("shapely")


def found_in(mark, block, how, monkeypatch, without=()):
    monkeypatch.setattr(rooms, "BLOCK", block)
    rows = [[place for place in row if place not in without] for row in blocks_of(mark.shape)]
    return list(buildings(lambda r, c: mark[r, c], [row for row in rows if row], mark.shape, how))


def told(parts):
    """Everything about the buildings, in the order of their ids."""
    rows = [
        (int(i), float(c), shapely.to_wkt(o))
        for part in parts
        for i, c, o in zip(part.id, part.confidence, part.outlines, strict=True)
    ]
    return sorted(rows)


def scene(height, width, share, seed):
    """Marks with long slopes, plateaus and ties, `share` of which is building."""
    rng = np.random.default_rng(seed)
    field = rng.random((height, width))
    for _ in range(rng.integers(0, 4)):
        field = (field + np.roll(field, 1, 0) + np.roll(field, 1, 1)) / 3
    order = np.argsort(np.argsort(field.ravel())).reshape(field.shape) / field.size
    mark = 1 + np.rint(254 * order).astype(int) // rng.integers(1, 60)
    return np.where(order >= 1 - share, mark, 0).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    *[st.integers(1, 40)] * 2,
    st.integers(2, 16),
    st.floats(0.05, 1.0),
    st.sampled_from(
        [
            TOGETHER,
            Separation(0.2, 0.0),
            Separation(0.05, 0.7),
            Separation(0.3, 1.2),
            Separation(0.3, 1.2, 0.6),
            Separation(0.3, 1.2, smallest=7),
            Separation(0.3, 1.2, smallest=2, sure=0.6),
        ]
    ),
    st.integers(0, 2**32 - 1),
)
def test_blocks_give_the_buildings_of_the_whole(height, width, block, share, how, seed):
    """To the bit: none cut, doubled or joined by the edges of blocks, ids and confidence alike."""
    mark = scene(height, width, share, seed)
    with pytest.MonkeyPatch.context() as patch:
        whole = told(found_in(mark, 64, how, patch))
        assert told(found_in(mark, block, how, patch)) == whole
    number = numbered(mark, how)
    assert len(whole) == number.max()
    drawn = np.zeros(mark.shape, np.int64)
    for identity, _, outline in whole:
        polygon = shapely.from_wkt(outline)
        assert polygon.is_valid
        here = rasterize([polygon], mark.shape)
        assert not (drawn[here > 0]).any()
        drawn[here > 0] = identity
    pairs = np.unique(np.stack([number, drawn]).reshape(2, -1), axis=1)
    assert pairs.shape[1] == len(np.unique(number)) == len(np.unique(drawn))


def test_an_id_is_where_the_surest_pixel_lies(monkeypatch):
    mark = np.zeros((30, 50), np.uint8)
    mark[3:9, 3:9], mark[20:25, 40:45] = 100, 150
    mark[5, 6], mark[22, 41] = 200, 255
    (one, other) = told(found_in(mark, 10, TOGETHER, monkeypatch))
    assert one[0] == 1 + 5 * 50 + 6
    assert other[0] == 1 + 22 * 50 + 41
    assert shapely.from_wkt(one[2]).area == 36


def test_a_building_over_many_blocks_has_its_corners_only(monkeypatch):
    mark = np.zeros((100, 100), np.uint8)
    mark[5:95, 40:50] = mark[90:95, 5:95] = 255
    (building,) = told(found_in(mark, 10, TOGETHER, monkeypatch))
    polygon = shapely.from_wkt(building[2])
    assert polygon.area == (mark > 0).sum()
    assert len(polygon.exterior.coords) == 9


def test_buildings_are_handed_on_as_soon_as_no_block_can_add_to_them(monkeypatch):
    mark = np.zeros((40, 10), np.uint8)
    mark[2:4, 2:4] = mark[5:10, 5:7] = mark[18:22, 2:4] = mark[30:35, 0:3] = 255
    parts = found_in(mark, 10, TOGETHER, monkeypatch)
    assert [sorted(p.area for p in part.outlines) for part in parts] == [[4], [10], [8], [15]]


def test_a_row_without_blocks_ends_what_reached_it(monkeypatch):
    mark = np.zeros((30, 10), np.uint8)
    mark[5:10, 2:4] = mark[20:25, 2:4] = 255
    parts = found_in(mark, 10, TOGETHER, monkeypatch, without={(10, 0)})
    assert told(parts) == told(found_in(mark, 64, TOGETHER, monkeypatch))


def test_nothing_is_nothing(monkeypatch):
    assert told(found_in(np.zeros((30, 30), np.uint8), 7, TOGETHER, monkeypatch)) == []
    assert list(buildings(lambda r, c: None, [], (0, 0), TOGETHER)) == []
