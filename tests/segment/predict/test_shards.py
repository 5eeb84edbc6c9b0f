"""The work of many processes: planned alike by all, done once, killed at any moment, done again."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from rio_cogeo import cog_validate
from test_blending import network
from test_predict import UTM, photograph, write

from segment.errors import InputError
from segment.merge import command as merge
from segment.model import ModelInfo
from segment.predict import blending, shards
from segment.predict import command as predict
from segment.predict.command import main

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


class Edgy:
    """A model that sees its window's edges: a window elsewhere would give another mask."""

    net = SimpleNamespace(multiple=16)
    device = "cpu"

    def __init__(self, pixel_size=0.3):
        self.info = ModelInfo(pixel_size=pixel_size, threshold=0.3)

    def to(self, device):
        return self

    def reads(self, bands, value_range):
        return self

    def predict(self, pixels):
        return network(pixels)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(blending, "WINDOW", 128)
    model = Edgy()
    monkeypatch.setattr(predict, "load_model", lambda path: model)
    for name in shards.INDEX:
        monkeypatch.delenv(name, raising=False)
    return model


@pytest.fixture
def scene(tmp_path):
    return write(tmp_path / "town1.tif", photograph(500, 700))


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def predict_shards(scenes, out, count, indices, *options):
    for index in indices:
        command = [*map(str, scenes), "--out", str(out), "--shards", str(count)]
        main([*command, "--shard", str(index), *options])


# ---------------------------------------------------------------- the plan


def test_the_plan_is_made_without_an_index_and_holds_all_masks(tmp_path, model, scene, capsys):
    out = tmp_path / "out"
    main([str(scene), "--out", str(out), "--shards", "4"])
    assert capsys.readouterr().out == f"{out}/manifest.json: 4 masks in 4 shards\n"
    assert [path.name for path in out.iterdir()] == ["manifest.json"]
    plan = json.loads((out / "manifest.json").read_text())
    assert plan["request"]["threshold"] == 0.3 and len(plan["request"]["model"]) == 64
    covered = np.zeros((500, 700), int)
    for _, _, row, col, height, width in plan["pieces"]:
        covered[row : row + height, col : col + width] += 1
    assert (covered == 1).all()
    main([str(scene), "--out", str(tmp_path / "again"), "--shards", "4"])
    assert files(tmp_path / "again") == files(out)


def test_a_scene_that_cannot_be_opened_is_named_and_the_others_are_done(
    tmp_path, model, scene, capsys, caplog
):
    whole = scene.read_bytes()
    (tmp_path / "in").mkdir()
    scene.rename(tmp_path / "in/town1.tif")
    (tmp_path / "in/broken2.tif").write_bytes(whole[:100])
    (tmp_path / "in/text3.tif").write_text("no picture")
    out, arguments = tmp_path / "out", [str(tmp_path / "in"), "--shards", "2"]
    with pytest.raises(InputError, match="2 scenes can't be opened, as said above"):
        main([*arguments, "--out", str(out)])
    told = capsys.readouterr()
    assert told.out == f"{out}/manifest.json: 2 masks in 2 shards\n"
    assert "broken2.tif is cut off" in told.err and "text3.tif is empty or no picture" in told.err
    plan = json.loads((out / "manifest.json").read_text())
    assert [Path(scene["image"]).name for scene in plan["scenes"]] == ["town1.tif"]
    assert len(plan["left_out"]) == 2
    for index in "01":  # the plan is there: whoever goes on with it is told what it lacks
        caplog.clear()
        main([*arguments, "--out", str(out), "--shard", index])
        assert "left out of the plan" in caplog.text and "broken2.tif is cut off" in caplog.text
    caplog.clear()
    merge.main([str(out)])
    assert "broken2.tif is cut off" in caplog.text and "text3.tif" in caplog.text
    with rasterio.open(out / "mosaic.vrt") as found:
        assert found.shape == (500, 700)
    alone = tmp_path / "alone"  # a shard that had to make the plan does its share, then complains
    with pytest.raises(InputError, match="2 scenes or masks could not be done"):
        main([*arguments, "--out", str(alone), "--shard", "0"])
    masks = {path.name: path.read_bytes() for path in (alone / "masks").iterdir()}
    assert masks and all(files(out)[name] == content for name, content in masks.items())


def test_a_plan_needs_a_scene_that_can_be_opened(tmp_path, model):
    (tmp_path / "text1.tif").write_text("no picture")
    with pytest.raises(InputError, match=r"text1\.tif is empty or no picture"):
        main([str(tmp_path / "text1.tif"), "--out", str(tmp_path / "out"), "--shards", "2"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count, pieces", [(1, 1), (2, 4), (5, 9), (1000, 81)])
def test_blocks_are_as_large_as_there_are_shards_for(tmp_path, model, count, pieces):
    scene = write(tmp_path / "town1.tif", photograph(600, 600))
    main([str(scene), "--out", str(tmp_path / "out"), "--shards", str(count)])
    plan = shards.read_plan(tmp_path / "out")
    assert len(plan.pieces) == pieces
    done = [piece for shard in range(count) for piece in plan.of(shard)]
    assert sorted(piece.name for piece in done) == sorted(piece.name for piece in plan.pieces)


def test_scenes_are_masks_of_their_name(tmp_path, model):
    (tmp_path / "in").mkdir()
    scenes = [write(tmp_path / "in" / f"town{i}.tif", photograph(60, 60)) for i in range(1, 6)]
    predict_shards([tmp_path / "in"], tmp_path / "out", 2, range(2))
    names = sorted(path.name for path in (tmp_path / "out/masks").iterdir())
    assert names == [scene.name for scene in scenes]


@pytest.mark.parametrize("name", shards.INDEX)
def test_the_index_is_that_of_the_array_or_the_rank(tmp_path, model, scene, monkeypatch, name):
    predict_shards([scene], tmp_path / "told", 3, [1])
    monkeypatch.setenv(name, "1")
    main([str(scene), "--out", str(tmp_path / "found"), "--shards", "3"])
    assert files(tmp_path / "found") == files(tmp_path / "told")


# ---------------------------------------------------------------- masks


def test_masks_are_cloud_optimised_and_in_place(tmp_path, model, monkeypatch):
    """By rio-cogeo's reading of the format; overviews of a mask hold 0 and 255 only."""
    monkeypatch.setattr(blending, "WINDOW", 512)
    pixels = photograph(1300, 1400)
    valid = np.full((1300, 1400), 255, np.uint8)
    valid[100:700, 300:900] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        scene = write(tmp_path / "town1.tif", pixels, mask=valid)
    predict_shards([scene], tmp_path / "out", 1, [0])
    (path,) = (tmp_path / "out/masks").iterdir()
    assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(scene) as before, rasterio.open(path) as mask:
        assert (mask.crs, mask.transform, mask.shape) == (UTM, before.transform, before.shape)
        np.testing.assert_array_equal(mask.dataset_mask(), valid)
        assert mask.overviews(1) == [2, 4]
    with rasterio.open(path, overview_level=0) as small:
        assert set(np.unique(small.read(1))) == {0, 255}


def test_what_is_there_is_not_done_again_and_what_is_damaged_is(tmp_path, model, scene, capsys):
    out = tmp_path / "out"
    predict_shards([scene], out, 4, range(4))
    whole = files(out)
    stamps = {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    capsys.readouterr()
    model.predict = lambda pixels: pytest.fail("predicted again")
    predict_shards([scene], out, 4, range(4))
    assert len(capsys.readouterr().out.split()) == 4
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps

    del model.predict
    predict_shards([scene], tmp_path / "other", 4, range(4), "--threshold", "0.9")
    cut, foreign, *_ = sorted(stamps)
    cut.write_bytes(cut.read_bytes()[:-200])
    foreign.write_bytes((tmp_path / "other/masks" / foreign.name).read_bytes())
    assert files(out) != whole
    predict_shards([scene], out, 4, range(4))
    assert files(out) == whole


@pytest.mark.parametrize(
    "change, sentence",
    [
        (["--threshold", "0.4"], r"\(threshold: 0.3, not 0.4\); give another --out"),
        (["--overlap", "32"], r"\(overlap: 64, not 32\)"),
        (["--shards", "3"], r"\(shards: 2, not 3\)"),
        (["other1.tif"], r"\(inputs: \['town1.tif'\], not \['other1.tif', 'town1.tif'\]\)"),
        (["--model", "model"], r"\(model: .*, not .*\)"),
        (["--shard", "2"], "shard 2 of 2: 0 to 1 was expected"),
        (["--format", "gpkg"], "a folder for masks was expected of --shards"),
        (["--out", "mask.tif"], "a folder for masks was expected of --shards"),
        (["--out", "model"], "model is a file, where a folder was expected"),
    ],
)
def test_another_request_is_refused_and_changes_nothing(
    tmp_path, model, scene, monkeypatch, change, sentence
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "other1.tif", photograph(50, 50))
    (tmp_path / "model").write_bytes(b"another")
    predict_shards(["town1.tif"], "out", 2, [0])
    before = files(tmp_path)
    with pytest.raises(InputError, match=sentence):
        main(["--out", "out", "--shards", "2", "--shard", "0", *change, "town1.tif"])
    assert files(tmp_path) == before


def test_a_scene_that_was_replaced_is_noticed(tmp_path, model, scene):
    predict_shards([scene], tmp_path / "out", 2, [0])
    write(scene, photograph(500, 701))
    with pytest.raises(InputError, match=r"town1\.tif is another scene than when"):
        predict_shards([scene], tmp_path / "out", 2, [1])


def test_a_shard_without_their_number_is_refused(scene):
    with pytest.raises(InputError, match="--shard says which of --shards N"):
        main([str(scene), "--out", "out", "--shard", "0"])


def test_two_scenes_of_one_name_are_refused(tmp_path, model):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "roof.tif", photograph(20, 20))
    with pytest.raises(InputError, match=r"roof\.tif: another scene is named roof, too"):
        main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "o"), "--shards=2"])


# ---------------------------------------------------------------- kill -9

KILLED = textwrap.dedent("""
    import os, signal, sys
    sys.path.insert(0, sys.argv[1])
    from test_shards import Edgy
    import rasterio.shutil
    from segment.predict import blending
    from segment.predict import command as predict
    blending.WINDOW = 128
    model, moment = Edgy(), sys.argv[2]

    def end(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def half_a_copy(source, target, **form):
        with open(target, "wb") as file:
            file.write(open(source, "rb").read()[:3000])
        end()

    windows = iter(range(1000))
    network = model.predict
    if moment == "predicting":
        model.predict = lambda pixels: end() if next(windows) == 9 else network(pixels)
    elif moment == "copying":
        rasterio.shutil.copy = half_a_copy
    elif moment == "naming":
        rename = os.rename
        os.replace = lambda old, new: end() if "masks" in str(new) else rename(old, new)
    predict.load_model = lambda path: model
    predict.main(sys.argv[3:])
""")


@pytest.mark.parametrize("moment", ["predicting", "copying", "naming"])
def test_a_killed_shard_publishes_nothing_by_halves_and_is_done_again(
    tmp_path, model, scene, moment
):
    predict_shards([scene], tmp_path / "expected", 2, [0, 1])
    out = tmp_path / "out"
    command = [str(scene), "--out", str(out), "--shards", "2", "--shard"]
    code = [sys.executable, "-c", KILLED, str(Path(__file__).parent), moment, *command, "0"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:4]))
    }
    killed = subprocess.run(code, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    plan = shards.read_plan(out)
    expected = files(tmp_path / "expected")
    published = {name: data for name, data in files(out).items() if not name.startswith(".")}
    assert set(published) < set(expected)
    assert all(expected[name] == data for name, data in published.items())
    predict_shards([scene], out, 2, [1, 0])
    assert not shards.missing(out, plan)
    published = {name: data for name, data in files(out).items() if not name.startswith(".")}
    assert published == expected
