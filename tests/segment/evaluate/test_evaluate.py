"""The command's numbers against counts made by hand, and which tiles it takes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio

from segment.data.scenes import find_scenes
from segment.data.splits import Split, make_split
from segment.data.tiles import open_store
from segment.errors import InputError
from segment.evaluate import command as evaluate
from segment.evaluate.command import evaluate_tiles, main
from segment.evaluate.examine import examine
from segment.evaluate.metrics import Confusion, table
from segment.evaluate.objects import truth_of
from segment.geo.separate import Separation
from segment.model import ModelInfo, load_model, save_model
from segment.storage.documents import write_json
from segment.unet import UNet

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


class Redness:
    info = ModelInfo(threshold=0.6)

    def predict(self, pixels):
        return pixels[..., 0].astype(np.float32) / 255


@pytest.fixture
def data(tmp_path):
    """Six scenes of two cities, two tiles each."""
    rng = np.random.default_rng(0)
    profile = {"driver": "GTiff", "height": 256, "width": 512, "dtype": "uint8"}
    for part in ("images", "gt"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for name in ("a1", "a2", "a3", "b1", "b2", "b3"):
        mask = np.zeros((256, 512), np.uint8)
        mask[40:150, 100:350] = 255
        pixels = rng.integers(0, 200, (3, 256, 512), dtype=np.uint8)
        pixels[0, mask > 0] = 250
        with rasterio.open(tmp_path / f"data/images/{name}.tif", "w", count=3, **profile) as out:
            out.write(pixels)
        with rasterio.open(tmp_path / f"data/gt/{name}.tif", "w", count=1, **profile) as out:
            out.write(mask, 1)
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path, data):
    """What a training by city on the data would leave behind."""
    folder = tmp_path / "run"
    folder.mkdir()
    info = ModelInfo(threshold=0.4, trained={"split": "scene", "seed": 3})
    net = UNet(widths=(3, 4), seed=1)
    net.head.params["w"] *= 100
    save_model(folder / "best.safetensors", net, info)
    settings = {"data": [str(data)], "split": "scene", "seed": 3, "pixel_size": None}
    write_json(folder / "config.json", settings)
    store = open_store(find_scenes([data]), cache=tmp_path / "cache")
    make_split(store.tiles, "scene", 3).save(folder / "split.json")
    return folder


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_tiles_are_counted_in_the_order_asked_for(batch_size):
    rng = np.random.default_rng(1)
    store = SimpleNamespace(
        images=rng.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8),
        labels=rng.choice(np.array([0, 1, 255], np.uint8), (9, 16, 16)),
        numbers=np.zeros((9, 16, 16), np.uint32),
        pixel_size=None,
    )
    indices = np.array([7, 0, 3, 8, 5])
    counts = evaluate_tiles(Redness(), store, indices, batch_size).pixels
    for row, index in zip(counts, indices, strict=True):
        predicted = store.images[index, ..., 0] >= 0.6 * 255
        assert Confusion(*row) == Confusion.from_masks(predicted, store.labels[index])


def test_whole_buildings_are_those_of_the_labels(data, tmp_path, capsys):
    """Two houses that touch, one redder than the other: a mask calls them one, numbers two."""
    for name in ("a1", "a2", "a3", "b1", "b2", "b3"):
        with rasterio.open(data / f"gt/{name}.tif", "r+") as file:
            mask = file.read(1)
            mask[:, 200:] //= 5  # 255 and 51: numbers
            file.write(mask, 1)
    store = open_store(find_scenes([data]), cache=tmp_path / "cache")
    objects = evaluate_tiles(Redness(), store, np.arange(len(store))).objects
    assert objects[:, 0].tolist() == [2, 1] * 6 and (store.labels[0][40:150, 100:] == 1).all()
    main(["--data", str(data), "--cache", str(tmp_path / "cache"), "--device", "cpu", "--json"])
    assert json.loads(capsys.readouterr().out)["pooled"]["objects"]["true"] == 18


def counted(run, data, cache, keep):
    """The summary of the tiles that `keep` takes, computed without the module's own code."""
    store = open_store(find_scenes([data]), cache=cache)
    chosen = [i for i, tile in enumerate(store.tiles) if keep(tile)]
    probability = load_model(run).predict(np.asarray(store.images[chosen]))
    labels = store.labels[chosen]
    truths = np.stack([truth_of(label) for label in labels])
    whole = [(slice(0, len(chosen)), probability, labels, truths)]
    return examine(whole, len(chosen), 0.4, None, Separation()).summary(
        [store.tiles[i] for i in chosen]
    )


def approx(summary):
    return json.loads(json.dumps(summary), parse_float=lambda x: pytest.approx(float(x), abs=1e-4))


def test_a_run_is_scored_on_its_own_test_part(tmp_path, data, run, capsys):
    main(["--model", str(run), "--cache", str(tmp_path / "cache"), "--json", "--device", "cpu"])
    found = json.loads(capsys.readouterr().out)
    test = set(json.loads((run / "split.json").read_text())["parts"]["test"])
    expected = counted(run, data, tmp_path / "cache", lambda tile: tile.id in test)
    assert found.pop("threshold") == found.pop("outline_threshold") == 0.4
    assert found.pop("device") == "cpu"
    assert found.pop("evaluated") == f"the {len(test)} test tiles of the split 'scene'"
    assert (found.pop("model"), found.pop("views")) == ("run", 1)
    assert found == approx(expected)
    assert not capsys.readouterr().err
    assert 0 < found["pooled"]["accuracy"] < 1


def test_the_split_file_decides_not_a_new_draw(tmp_path, data, run, capsys):
    split = json.loads((run / "split.json").read_text())
    parts = split["parts"]
    parts["train"], parts["test"] = sorted(parts["train"] + parts["test"])[1:], ["a/a1/0_0"]
    (run / "split.json").write_text(json.dumps(split))
    main(["--model", str(run), "--cache", str(tmp_path / "cache"), "--json"])
    assert list(json.loads(capsys.readouterr().out)["scenes"]) == ["a/a1"]


def test_other_data_are_scored_whole_or_by_a_split(tmp_path, data, run, capsys):
    given = ["--model", str(run), "--data", str(data), "--cache", str(tmp_path / "cache"), "--json"]
    main(given)
    found = json.loads(capsys.readouterr().out)
    assert found.pop("evaluated") == "all 12 tiles"
    del (
        found["threshold"],
        found["outline_threshold"],
        found["model"],
        found["views"],
        found["device"],
    )
    assert found == approx(counted(run, data, tmp_path / "cache", lambda tile: True))
    main([*given, "--split", "random"])
    out, err = capsys.readouterr()
    store = open_store(find_scenes([data]), cache=tmp_path / "cache")
    test = make_split(store.tiles, "random", 3).parts["test"]
    assert json.loads(out)["pooled"]["tiles"] == len(test)
    learnt = set(test) - set(make_split(store.tiles, "scene", 3).parts["test"])
    assert err == f"{len(learnt)} of these {len(test)} tiles were used in training\n"


def test_without_data_a_model_file_is_scored_on_synthetic_scenes_it_has_not_seen(
    tmp_path, data, run, capsys, monkeypatch
):
    monkeypatch.setattr(evaluate, "default_scenes", lambda cache: [data])
    file = run / "best.safetensors"
    main(["--model", str(file), "--cache", str(tmp_path / "cache")])
    store = open_store(find_scenes([data]), cache=tmp_path / "cache")
    test = set(make_split(store.tiles, "scene", 3).parts["test"])
    head, text = capsys.readouterr().out.split("\n", 1)
    assert head == f"the {len(test)} test tiles of the split 'scene' on cpu, threshold 0.400"
    expected = counted(run, data, tmp_path / "cache", lambda tile: tile.id in test)
    assert text.startswith(table(expected))
    row = expected["pooled"]
    words = f"boundary IoU {row['boundary_iou']:.3f}; of {row['objects']['true']} buildings"
    assert text[len(table(expected)) :].strip().startswith(words)


def test_several_models_are_scored_one_after_the_other(tmp_path, data, run, capsys):
    cache = ["--cache", str(tmp_path / "cache"), "--json"]
    main(["--model", str(run), str(run / "best.safetensors"), "--data", str(data), *cache])
    first, second = json.loads(capsys.readouterr().out)
    assert (first.pop("model"), second.pop("model")) == ("run", "best.safetensors")
    assert first == second and first["pooled"]["tiles"] == 12


def test_views_are_averaged_before_the_threshold(tmp_path, data, run, capsys):
    main(["--model", str(run), "--views", "2", "--cache", str(tmp_path / "cache"), "--json"])
    found = json.loads(capsys.readouterr().out)
    store, test = (
        open_store(find_scenes([data]), cache=tmp_path / "cache"),
        Split.load(run / "split.json"),
    )
    images = np.asarray(store.images[test.indices(store.tiles, "test")])
    labels = store.labels[test.indices(store.tiles, "test")]
    predict = load_model(run).predict
    mean = (predict(images) + predict(images[:, :, ::-1].copy())[:, :, ::-1]) / 2
    total = sum(map(Confusion.from_masks, mean >= 0.4, labels), Confusion())
    assert found["views"] == 2
    assert found["pooled"]["iou"] == pytest.approx(total.iou, abs=1e-4)


def test_a_pixel_size_that_the_files_do_not_say_is_told(tmp_path, data, run, capsys):
    """At 0.6 m a model of 0.3 m is shown twice as many pixels along each side."""
    model = load_model(run)
    save_model(run / "best.safetensors", model.net, replace(model.info, pixel_size=0.3))
    (data / "one.csv").write_text("image,mask\nimages/a1.tif,gt/a1.tif\n")
    given = ["--model", str(run), "--data", str(data / "one.csv"), "--json"]
    given += ["--cache", str(tmp_path / "cache")]
    tiles = {}
    for size in ([], ["--pixel-size", "0.3"], ["--pixel-size", "0.6"]):
        main([*given, *size])
        tiles[size[-1] if size else ""] = json.loads(capsys.readouterr().out)["pooled"]["tiles"]
    assert tiles == {"": 2, "0.3": 2, "0.6": 8}


def test_the_smallest_building_is_as_large_on_tiles_of_another_size(tmp_path, data):
    """Of 0.6 m pixels a roof has 4,290 and 2,585 in two tiles; of their own four times that."""
    model = Redness()
    model.info = ModelInfo(threshold=0.9, pixel_size=0.6, separation=Separation(smallest=3000))
    scenes = [replace(scene, pixel_size=0.3) for scene in find_scenes([data])]
    store = open_store(scenes, pixel_size=0.3, cache=tmp_path / "cache")
    found = evaluate_tiles(model, store, np.arange(2)).summary(store.tiles[:2])["pooled"]["objects"]
    assert (found["true"], found["predicted"], found["merged"]) == (2, 1, 0)


def test_the_report_goes_into_the_run_or_where_it_is_told(tmp_path, data, run, capsys):
    cache = ["--cache", str(tmp_path / "cache")]
    main(["--model", str(run), *cache, "--report"])
    assert capsys.readouterr().out.endswith(f"\n{run / 'report.html'}\n")
    page = (run / "report.html").read_text()
    assert page.count("data:image/jpeg") == 3 * 2 * 3  # best, median, worst; of the two test tiles
    main(["--model", str(run), *cache, "--report", str(tmp_path / "new/x.html"), "--json"])
    json.loads(capsys.readouterr().out)
    assert (tmp_path / "new/x.html").read_text() == page
    with pytest.raises(InputError, match="--report FILE was expected"):
        main(["--model", str(run / "best.safetensors"), *cache, "--report"])


def test_a_damaged_run_is_named(tmp_path, run):
    (run / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json"):
        main(["--model", str(run), "--cache", str(tmp_path / "cache")])
