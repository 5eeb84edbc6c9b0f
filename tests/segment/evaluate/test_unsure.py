"""Tiles to label next: entropies by hand, outlines by another reader."""

import json

import numpy as np
import pytest
from rasterio.warp import transform_bounds

from segment.data.scenes import find_scenes
from segment.errors import InputError
from segment.evaluate import command
from segment.evaluate.unsure import _sums, unsure_tiles
from segment.predict.scene import Band
from tests.segment.pictures import write_picture
from tests.segment.predict.test_predict import PLACE, UTM, Redness, write

shapely = pytest.importorskip("shapely")


def scene(path, reds, **how):
    """A picture of 256-pixel squares, each of one red."""
    pixels = np.zeros((3, *np.shape(reds)), np.uint8)
    pixels[0] = reds
    return write(path, np.kron(pixels, np.ones((1, 256, 256), np.uint8)), **how)


def entropy(p):
    return -p * np.log2(p) - (1 - p) * np.log2(1 - p)


def test_the_least_sure_come_first_with_their_outlines(tmp_path):
    image = scene(tmp_path / "town1.tif", [[255, 128, 60], [0, 230, 250]])
    found = unsure_tiles(Redness(), find_scenes([image], labelled=False))
    told = [feature["properties"] for feature in found]
    assert [t["rank"] for t in told] == [1, 2, 3, 4, 5, 6]
    places = [(t["row"], t["col"]) for t in told]
    assert places[:4] == [(0, 256), (0, 512), (256, 256), (256, 512)]
    for t, red in zip(told, (128, 60, 230, 250), strict=False):
        assert t["unsure"] == pytest.approx(entropy(red / 255), abs=0.02)  # windows blend a little
    assert told[4]["unsure"] < 0.02 and (told[0]["height"], told[0]["width"]) == (256, 256)
    for feature, (row, col) in zip(found, places, strict=True):
        west, north = PLACE @ (col, row)
        east, south = PLACE @ (col + 256, row + 256)
        expected = transform_bounds(UTM, "EPSG:4326", west, south, east, north)
        assert shapely.geometry.shape(feature["geometry"]).bounds == pytest.approx(
            expected, abs=2e-6
        )


def test_what_is_not_valid_does_not_count():
    p = np.full((4, 6), 0.5, np.float32)
    valid = np.ones((4, 6), bool)
    valid[:, :3] = False
    p[:2, 3:], p[2:, 3:] = 0.5, 0.9
    bands = [Band(r, valid[r : r + 2], p[r : r + 2]) for r in (0, 2)]
    total, count = _sums(bands, np.array([0, 3, 4]), np.array([0, 3, 6]))
    assert count.tolist() == [[0, 9], [0, 3]]
    assert total[:, 1] == pytest.approx([6 + 3 * entropy(0.9), 3 * entropy(0.9)])


def test_tiles_cover_the_ground_of_those_of_training(tmp_path):
    """At 0.3 m a scene of 512 pixels of 0.15 m is one tile."""
    image = scene(tmp_path / "fine1.tif", [[9, 9], [9, 9]], transform=PLACE @ PLACE.scale(0.5))
    (feature,) = unsure_tiles(Redness(), find_scenes([image], labelled=False))
    assert feature["properties"]["height"] == 512


def test_without_a_place_rows_and_columns_are_told_and_it_is_said(
    tmp_path, monkeypatch, capsys, caplog
):
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[..., 0] = np.repeat([200, 128], 256)
    write_picture(tmp_path / "in/nowhere.png", pixels, "PNG")
    scene(tmp_path / "in/town1.tif", [[100]])
    monkeypatch.setattr(command, "load_model", lambda path: Redness())
    out = tmp_path / "new/next.geojson"
    command.main(["--data", str(tmp_path / "in"), "--unsure", str(out), "--device", "cpu"])
    document = json.loads(out.read_text())
    assert document["type"] == "FeatureCollection"
    placed = {f["properties"]["image"][-11:]: f["geometry"] for f in document["features"]}
    assert placed["nowhere.png"] is None and placed["n/town1.tif"]["type"] == "Polygon"
    assert "1 of 2 scenes have no place on the Earth" in caplog.text
    printed = capsys.readouterr().out
    assert "nowhere.png, row 0, column 256" in printed.splitlines()[0]
    assert "3 tiles, the least sure first" in printed


def test_one_model_and_data_are_wanted(tmp_path):
    with pytest.raises(InputError, match="--data to look at"):
        command.main(["--unsure", str(tmp_path / "a.geojson")])
    with pytest.raises(InputError, match="one --model"):
        command.main(["--unsure", "a.geojson", "--data", str(tmp_path), "--model", "a", "b"])
