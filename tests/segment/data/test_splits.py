"""Splits: shares, no leak, the same file for the same seed, and an error where a part is empty."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segment.data.splits import PARTS, SCENARIOS, Split, make_split
from segment.data.tiles import Tile
from segment.errors import InputError


def tiles_of(scenes):
    """{(city, number): how many tiles} -> tiles; half of a scene's tiles are in a second crop."""
    return [
        Tile(f"{city}{number}", city, f"{city}{number}_{index % 2}", 0, 256 * index)
        for (city, number), count in scenes.items()
        for index in range(count)
    ]


INRIA = {(city, number): 9 for city in ("austin", "chicago", "kitsap", "tyrol-w", "vienna")
         for number in range(1, 37)}  # fmt: skip

scene_tables = st.dictionaries(
    st.tuples(st.sampled_from(["austin", "chicago", "kitsap", "tyrol-w", "x"]), st.integers(1, 9)),
    st.integers(1, 6),
    min_size=1,
)


@given(scene_tables, st.sampled_from(SCENARIOS), st.integers(0, 9))
def test_every_tile_is_in_one_part_and_no_group_is_in_two(scenes, scenario, seed):
    tiles = tiles_of(scenes)
    try:
        split = make_split(tiles, scenario, seed)
    except InputError as error:
        assert "empty" in str(error)
        groups = {"random": tiles, "scene": scenes, "city": {city for city, _ in scenes}}
        in_test = {scene for scene in scenes if scene[1] <= 5}
        possible = (
            in_test and len(scenes) - len(in_test) >= 2
            if scenario == "inria"
            else len(groups[scenario]) >= 3
        )
        assert not possible
        return
    everything = [tile for part in PARTS for tile in split.parts[part]]
    assert sorted(everything) == sorted(tile.id for tile in tiles)
    assert all(split.parts[part] for part in PARTS)
    part_of = {tile: part for part in PARTS for tile in split.parts[part]}
    scene_parts, city_parts = {}, {}
    for tile in tiles:
        scene_parts.setdefault(tile.scene, set()).add(part_of[tile.id])
        city_parts.setdefault(tile.city, set()).add(part_of[tile.id])
        if scenario == "inria":
            number = int(tile.scene.removeprefix(tile.city))
            assert (part_of[tile.id] == "test") == (number <= 5)
    if scenario != "random":
        assert all(len(parts) == 1 for parts in scene_parts.values())
    if scenario == "city":
        assert all(len(parts) == 1 for parts in city_parts.values())


@given(scene_tables.filter(lambda scenes: len({city for city, _ in scenes}) > 2), st.integers(0, 9))
def test_the_order_of_the_tiles_has_no_say(scenes, seed):
    tiles = tiles_of(scenes)
    shuffled = random.Random(seed).sample(tiles, len(tiles))
    for scenario in ("random", "scene", "city"):
        assert make_split(tiles, scenario, seed) == make_split(shuffled, scenario, seed)


@pytest.mark.parametrize(("scenario", "slack"), [("random", 0.001), ("scene", 0.01), ("city", 0.1)])
@pytest.mark.parametrize("seed", range(5))
def test_shares_are_15_percent_then_80_to_20(scenario, slack, seed):
    tiles = tiles_of(INRIA)
    parts = make_split(tiles, scenario, seed).parts
    assert len(parts["test"]) / len(tiles) == pytest.approx(0.15, abs=slack)
    rest = len(tiles) - len(parts["test"])
    assert len(parts["val"]) / rest == pytest.approx(0.2, abs=slack)


def test_inria_tests_on_scenes_1_to_5_of_each_city():
    parts = make_split(tiles_of(INRIA), "inria", 0).parts
    scenes = {tile.split("/")[1].split("_")[0] for tile in parts["test"]}
    assert scenes == {f"{city}{n}" for city, _ in INRIA for n in range(1, 6)}
    assert len(parts["val"]) / len(parts["val"] + parts["train"]) == pytest.approx(0.2, abs=0.01)


def test_seeds_differ_and_every_city_is_held_out_by_some():
    tiles = tiles_of(INRIA)
    tests = [make_split(tiles, "city", seed).parts["test"] for seed in range(40)]
    assert {test[0].split("/")[0] for test in tests} == {city for city, _ in INRIA}
    assert make_split(tiles, "random", 1) != make_split(tiles, "random", 2)


@pytest.mark.parametrize("seed", range(5))
def test_small_groups_do_not_all_go_to_one_part(seed):
    tiles = tiles_of({("a", 1): 2, ("b", 1): 3, ("c", 1): 95})
    for scenario in ("scene", "city"):
        parts = make_split(tiles, scenario, seed).parts
        assert len(parts["train"]) == 95 and {len(parts["val"]), len(parts["test"])} == {2, 3}


def test_scenes_of_one_name_in_two_cities_are_two():
    tiles = [Tile("1", city, "1", 0, col) for city in "abcdef" for col in range(4)]
    parts = make_split(tiles, "scene", 0).parts
    assert all(len({tile[0] for tile in parts[part]}) * 4 == len(parts[part]) for part in PARTS)


@pytest.mark.parametrize(("scenario", "scenes", "words"), [
    ("random", {("a", 1): 2}, "at least 3.*data has 2"),
    ("scene", {("a", 1): 90, ("b", 1): 9}, "at least 3.*data has 2.*scene by scene"),
    ("city", {("a", n): 9 for n in range(1, 9)}, "at least 3.*data has 1.*city by city"),
    ("inria", {("a", 7): 9, ("b", 8): 9, ("b", 9): 3}, "no scene is numbered 1 to 5"),
    ("inria", {("a", 1): 9, ("b", 8): 9}, "at least 2 beside"),
    ("random", {}, "data has 0"),
])  # fmt: skip
def test_an_empty_part_is_an_error(scenario, scenes, words):
    with pytest.raises(InputError, match=rf"split {scenario}.*{words}"):
        make_split(tiles_of(scenes), scenario, 0)


def test_numbers_in_other_names_are_no_inria_scenes():
    tiles = [Tile(f"OAM-1-2-{n}", "kampala", f"OAM-1-2-{n}", 0, 0) for n in range(1, 9)]
    tiles += [Tile(str(n), "12", str(n), 0, 0) for n in range(1, 9)]
    with pytest.raises(InputError, match="no scene is numbered"):
        make_split(tiles, "inria", 0)


def test_an_unknown_scenario_is_refused():
    with pytest.raises(InputError, match="random, scene, city, inria"):
        make_split(tiles_of(INRIA), "country", 0)


def test_a_split_is_a_file_of_equal_bytes(tmp_path):
    tiles = tiles_of(INRIA)
    for name, order in (("a", tiles), ("b", tiles[::-1])):
        make_split(order, "scene", 3).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    split = Split.load(tmp_path / "a")
    assert split == make_split(tiles, "scene", 3)
    for part in PARTS:
        indices = split.indices(tiles, part)
        assert [tiles[index].id for index in sorted(indices)] == [tiles[i].id for i in indices]
        assert sorted(tiles[index].id for index in indices) == split.parts[part]
        assert np.issubdtype(indices.dtype, np.integer)


def test_a_split_of_other_data_or_a_damaged_file_is_refused(tmp_path):
    tiles = tiles_of(INRIA)
    split, path = make_split(tiles, "scene", 0), tmp_path / "split.json"
    with pytest.raises(InputError, match="not in the data"):
        split.indices(tiles[:100], "train")
    split.save(path)
    whole = json.loads(path.read_text())
    other = json.dumps({**whole, "parts": {"train": []}})
    for text in ("", "[]", "{}", path.read_text()[:90], other):
        path.write_text(text)
        with pytest.raises(InputError, match=r"split\.json"):
            Split.load(path)


def test_a_file_places_what_it_names_and_the_narrowest_name_counts(tmp_path):
    tiles = tiles_of({("a", 1): 4, ("a", 2): 2, ("b", 1): 2, ("c", 1): 3})
    parts = {"train": ["a", "c/c1_1"], "val": ["a/a2"], "test": ["b/b1", "a/a1_0/0_0"]}
    file = tmp_path / "split.json"
    Split("held out", 3, parts).save(file)
    split = make_split(tiles, str(file), seed=0)
    assert split.parts["test"] == ["a/a1_0/0_0", "b/b1_0/0_0", "b/b1_1/0_256"]
    assert split.parts["val"] == ["a/a2_0/0_0", "a/a2_1/0_256"]
    assert split.parts["train"] == ["a/a1_0/0_512", "a/a1_1/0_256", "a/a1_1/0_768", "c/c1_1/0_256"]
    assert (split.scenario, split.seed) == ("held out", 3)
    assert Split.of(file, tiles[:-3]).parts["train"] == split.parts["train"][:3]  # c isn't there
    with pytest.raises(InputError, match=r"split\.json names no tile of the data for val"):
        make_split(tiles[:4] + tiles[6:], str(file), seed=0)


def test_neither_a_scenario_nor_a_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="or a file was expected"):
        make_split(tiles_of({("a", 1): 4}), str(tmp_path / "none.json"), seed=0)
