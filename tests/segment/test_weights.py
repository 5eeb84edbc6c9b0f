"""The bundled model does what its card says, on places that it was not trained on."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segment.data.scenes import find_scenes
from segment.data.splits import make_split
from segment.data.tiles import open_store
from segment.evaluate.command import evaluate_tiles
from segment.evaluate.metrics import Confusion
from segment.model import BUNDLED, load_model
from segment.synthetic.draw import draw_scene

CARD = (BUNDLED.parent / "README.md").read_text()
SPLIT = Path(__file__).parents[2] / "benchmarks" / "held_out_split.json"
SETS = {  # with the ground resolution of the pictures that don't say theirs
    "inria-crops": 0.3,
    "china-cities": 0.3,
    "china-cities-more": 0.3,
    "banepa-nepal": None,
    "kampala-uganda/images_z19": None,
    "spacenet1-rio": None,
    "us-suburb-512": 0.5,
    "oam-fair-4sites/pairs.csv": None,
    "geneva-switzerland/pairs.csv": None,
    "barnarp-sweden/pairs.csv": None,
}


def pictures(photographs):
    """All scenes of the sets, each with its ground resolution."""
    return [
        replace(scene, pixel_size=scene.pixel_size or size)
        for name, size in SETS.items()
        for scene in find_scenes([photographs / name])
    ]


def test_its_card_is_of_this_file():
    assert hashlib.sha256(BUNDLED.read_bytes()).hexdigest()[:16] in CARD


def test_it_finds_buildings_in_drawn_scenes_too():
    """Though it has seen none: it was trained on photographs alone."""
    model = load_model().at(0.3)
    total = Confusion()
    for city in ("birkdale", "corvo", "dornfeld"):
        image, mask = draw_scene(city, 101, 512)
        predicted = model.predict(image[None])[0] >= model.info.threshold
        total += Confusion.from_masks(predicted, (mask > 0).astype(np.uint8))
    assert total.iou > 0.4  # 0.48 when it was stored
    assert total.accuracy > total.background.accuracy


def test_its_card_names_it_and_its_pixel_size():
    size = re.search(r"([\d.]+) m a pixel", CARD)
    assert BUNDLED.name in CARD and size is not None
    assert load_model().info.pixel_size == pytest.approx(float(size[1]), rel=0.001)


def test_it_is_small_enough_to_ship():
    assert Path(BUNDLED).stat().st_size < 10_000_000


@pytest.mark.slow
def test_its_card_gives_its_scores_in_places_it_was_not_trained_on(tmp_path, photographs):
    """At 0.3 m, as the scores of models before it."""
    model = load_model().at(0.3)
    store = open_store(pictures(photographs), pixel_size=0.3, cache=tmp_path)
    tiles = make_split(store.tiles, str(SPLIT), 0).indices(store.tiles, "test")
    findings = evaluate_tiles(model, store, tiles)
    cities = findings.summary([store.tiles[i] for i in tiles])["cities"]
    rows = re.findall(r"^\| ([\w-]+) \| (\d+) " + r"\| ([\d.]+) " * 6, CARD, re.M)
    assert {name for name, *_ in rows} == set(cities)
    for name, count, *figures in rows:
        scores = cities[name]
        assert int(count) == scores["tiles"]
        expected = [scores["iou"], scores["accuracy"], scores["background"]["accuracy"]]
        expected += [scores["precision"], scores["recall"]]
        *of_pixels, of_buildings = map(float, figures)
        assert of_pixels == pytest.approx(expected, abs=0.0006)
        assert of_buildings == pytest.approx(scores["objects"]["f1"], abs=0.006)
