"""The bundled model does what its card says, on scenes that nobody trained on."""

import re
from pathlib import Path

import numpy as np
import pytest

from segment.metrics import Confusion
from segment.model import BUNDLED, load_model
from segment.synthetic import draw_scene


def test_it_finds_buildings_in_scenes_it_has_not_seen():
    model = load_model()
    total = Confusion()
    for city in ("birkdale", "corvo", "dornfeld"):
        image, mask = draw_scene(city, 101, 256)
        predicted = model.predict(image[None])[0] >= model.info.threshold
        total += Confusion.from_masks(predicted, (mask > 0).astype(np.uint8))
    assert total.iou > 0.5
    assert total.accuracy > total.background.accuracy


def test_its_card_names_it_and_its_pixel_size():
    card = (BUNDLED.parent / "README.md").read_text()
    size = re.search(r"([\d.]+) m a pixel", card)
    assert BUNDLED.name in card and size is not None
    assert load_model().info.pixel_size == pytest.approx(float(size[1]), rel=0.001)


def test_it_is_small_enough_to_ship():
    assert Path(BUNDLED).stat().st_size < 10_000_000
