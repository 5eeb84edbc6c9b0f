"""Crops: what they show is what the pictures hold there, and no tile of another part."""

import numpy as np
import pytest

from segment.data import crops as crops_module
from segment.data.crops import CROP, Crops
from segment.data.labels import IGNORE
from segment.data.tiles import TILE, Picture, Tile, TileStore


def numbered(height, width):
    """A picture whose first two channels tell where in it a pixel lies, by 4 pixels."""
    rows, cols = np.indices((height, width)) // 4
    pixels = np.stack([rows, cols, np.full((height, width), 7)], axis=-1).astype(np.uint8)
    return Picture(pixels, ((rows + cols) // 2).astype(np.uint8))


@pytest.fixture
def store():
    """A scene of 2 x 3 tiles and a remainder, and one smaller than a crop."""
    pictures = {("a", "a1"): numbered(600, 800), ("b", "b1"): numbered(100, 90)}
    tiles = [Tile("a1", "a", "a1", row, col) for row in (0, 256) for col in (0, 256, 512)]
    return TileStore(pictures, [*tiles, Tile("b1", "b", "b1", 0, 0)], 0.6, None, "")


@pytest.fixture
def unlit(monkeypatch):
    monkeypatch.setattr(crops_module, "lit", lambda pixels, rng: pixels)


def cuts(crops, count=400):
    rng = np.random.default_rng(0)
    for number in range(count):
        yield crops.cut(number % len(crops), rng)


def test_cells_cover_training_tiles_and_the_remainder_and_skip_what_is_unknown(store):
    crops = Crops(store, [0, 1, 6])
    places = {(tile.stem, row, col) for tile, row, col in crops.cells}
    expected = {("a1", row, col) for row in (0, CROP) for col in range(0, 2 * TILE, CROP)}
    expected |= {("a1", 512, col) for col in range(0, 768, CROP)}  # no tile reaches down there
    assert places == expected | {("b1", 0, 0)}  # the rest of b1's tile lies outside the picture
    assert crops.cities.count("b") == 1


def test_pixels_and_coverage_come_from_one_place_all_over_the_scene(store, unlit):
    crops = Crops(store, range(6))
    seen = set()
    for pixels, coverage in cuts(crops):
        assert pixels.shape == (CROP, CROP, 3) and coverage.shape == (CROP, CROP)
        rows, cols = pixels[..., 0].astype(int), pixels[..., 1].astype(int)
        assert np.abs(coverage - (rows + cols) / 2).max() <= 2  # all rounded
        assert (pixels[..., 2] == 7).all()  # nothing from outside
        assert (np.diff(rows, axis=0) >= 0).all() and (np.diff(cols, axis=1) >= 0).all()  # north up
        seen.add((rows[0, 0], cols[0, 0]))
    assert len(seen) > 300
    assert max(row for row, _ in seen) * 4 > 2 * TILE - CROP  # into the remainder too


def test_no_crop_shows_a_tile_of_another_part(store, unlit):
    train, other = [0, 1, 3, 5], [2, 4]
    crops = Crops(store, train)
    held_out = [(store.tiles[i].row, store.tiles[i].col) for i in other]
    for pixels, _ in cuts(crops, 2000):
        rows, cols = pixels[..., 0].astype(int) * 4, pixels[..., 1].astype(int) * 4
        for row, col in held_out:
            inside = (rows >= row + 4) & (rows < row + TILE - 4)
            assert not (inside & (cols >= col + 4) & (cols < col + TILE - 4)).any()


def test_a_picture_smaller_than_a_crop_lies_wholly_in_it(store, unlit):
    crops = Crops(store, [6])
    for pixels, coverage in cuts(crops, 50):
        known = coverage != IGNORE
        assert known.sum() > 0.5 * 100 * 90 / 1.3**2
        assert (pixels[known][:, 2] == 7).all() and not known.all()


def test_the_same_numbers_give_the_same_crop(store):
    crops = Crops(store, range(6))
    one, two, other = (crops.cut(3, np.random.default_rng(s)) for s in (5, 5, 6))
    assert (one[0] == two[0]).all() and (one[1] == two[1]).all() and (one[0] != other[0]).any()
