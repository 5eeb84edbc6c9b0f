"""Scenes in, georeferenced masks out: with a stand-in network whose answer is known per pixel."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from segment.data.rasters import open_raster
from segment.errors import InputError
from segment.model import Model, ModelInfo, load_model
from segment.predict import blending
from segment.predict import command as predict
from segment.predict.command import main
from segment.predict.scene import Band, predict_scene, scene_bands
from segment.unet import UNet

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

UTM = CRS.from_epsg(32645)
PLACE = Affine(0.3, 0, 500_000, 0, -0.3, 3_000_000)
LOCAL = CRS.from_wkt(
    'PROJCRS["site grid",BASEGEOGCRS["WGS 84",DATUM["World Geodetic System 1984",'
    'ELLIPSOID["WGS 84",6378137,298.257223563]]],CONVERSION["c",METHOD["Transverse Mercator"],'
    'PARAMETER["Latitude of natural origin",27.1,ANGLEUNIT["degree",0.0174532925199433]],'
    'PARAMETER["Longitude of natural origin",85.3,ANGLEUNIT["degree",0.0174532925199433]],'
    'PARAMETER["Scale factor at natural origin",1,SCALEUNIT["unity",1]],'
    'PARAMETER["False easting",100,LENGTHUNIT["metre",1]],'
    'PARAMETER["False northing",200,LENGTHUNIT["metre",1]]],CS[Cartesian,2],AXIS["E",east],'
    'AXIS["N",north],LENGTHUNIT["metre",1]]'
)


class Redness:
    """A model whose probability is the pixel's red over 255: any error of place shows."""

    net = SimpleNamespace(multiple=16)
    device = "cpu"

    def __init__(self, **info):
        self.info = ModelInfo(**({"pixel_size": 0.3, "threshold": 0.5} | info))

    def to(self, device):
        return self

    def reads(self, bands, value_range):
        return self

    def predict(self, pixels):
        return pixels[..., 0].astype(np.float32) / 255


def photograph(height, width, seed=0):
    """Rectangles of red over noise in the other bands; zero is a colour like any other."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
    pixels[0] = 0
    for _ in range(12):
        row, col = rng.integers(0, height), rng.integers(0, width)
        pixels[0, row : row + 40, col : col + 60] = rng.integers(100, 256)
    return pixels


def write(path, pixels, mask=None, **profile):
    profile = {"driver": "GTiff", "crs": UTM, "transform": PLACE} | profile
    count, height, width = pixels.shape
    size = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with rasterio.open(path, "w", **size, **profile) as dataset:
        dataset.write(pixels)
        if mask is not None:
            dataset.write_mask(mask)
    return path


@pytest.fixture
def model(monkeypatch):
    model = Redness()
    monkeypatch.setattr(predict, "load_model", lambda path: model)
    return model


@pytest.mark.parametrize("size", [(700, 1100), (30, 45), (1, 1), (512, 513)])
@pytest.mark.parametrize("crs", [UTM, LOCAL, None], ids=["utm", "no-epsg", "none"])
def test_mask_has_the_size_and_place_of_the_scene(tmp_path, model, size, crs):
    transform = Affine(0.3, 0.01, 0.123456789, 0.01, -0.3, 987654.321) if crs else None
    pixels = photograph(*size)
    scene = write(tmp_path / "scene.tif", pixels, crs=crs, transform=transform)
    main([str(scene), "--out", str(tmp_path / "mask.tif")])
    with rasterio.open(scene) as before, rasterio.open(tmp_path / "mask.tif") as after:
        assert (after.crs, after.transform, after.shape) == (before.crs, before.transform, size)
        assert after.dtypes == ("uint8",) and after.nodata is None
        assert after.compression is not None and after.profile["tiled"]
        np.testing.assert_array_equal(after.read(1), np.where(pixels[0] >= 127.5, 255, 0))
        assert (after.dataset_mask() == 255).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.tif", "scene.tif"]


def test_at_the_threshold_is_building():
    probability = np.array([[0.4, 0.5, 0.6, 0.6]], np.float32)
    valid = np.array([[True, True, True, False]])
    band = Band(0, valid, probability)
    assert band.mask(0.5).tolist() == [[0, 255, 255, 0]]


def test_predict_scene_is_what_the_command_writes(tmp_path, model):
    scene = write(tmp_path / "scene.tif", photograph(600, 700))
    main([str(scene), "--out", str(tmp_path / "mask.tif"), "--threshold", "0.8"])
    mask, profile = predict_scene(model, scene, threshold=0.8)
    with rasterio.open(tmp_path / "mask.tif") as written:
        np.testing.assert_array_equal(mask, written.read(1))
        for key in ("crs", "transform", "width", "height", "count", "dtype", "driver"):
            assert profile[key] == written.profile[key]
    assert (predict_scene(model, scene)[0] != mask).any()


def test_void_is_no_building_and_255_is_not_void(tmp_path, model):
    pixels = photograph(300, 400)
    pixels[:, :100, :100] = 255  # white, and the brightest red: a building if it were seen
    pixels[:, 200:, 300:] = 255
    valid = np.full((300, 400), 255, np.uint8)
    valid[200:, 300:] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        scene = write(tmp_path / "scene.tif", pixels, mask=valid)
    for form, top in (("tif", 255), ("probability", 1)):
        main([str(scene), "--out", str(tmp_path / "out.tif"), "--format", form])
        with rasterio.open(tmp_path / "out.tif") as out:
            found = out.read(1)
            assert (found[:100, :100] == top).all() and (found[200:, 300:] == 0).all()
            assert out.nodata is None
            np.testing.assert_array_equal(out.dataset_mask(), valid)
    model.predict = lambda windows: np.ones(windows.shape[:3], np.float32)  # sees them anywhere
    mask, _ = predict_scene(model, scene, threshold=0)
    np.testing.assert_array_equal(mask, valid)
    main([str(scene), "--out", str(tmp_path / "out.tif"), "--format", "probability"])
    with rasterio.open(tmp_path / "out.tif") as out:
        np.testing.assert_array_equal(out.read(1), valid / 255)


def test_probability_is_kept_as_it_is(tmp_path, model):
    pixels = photograph(530, 610)
    scene = write(tmp_path / "scene.tif", pixels)
    main([str(scene), "--out", str(tmp_path / "p.tif"), "--format", "probability"])
    with rasterio.open(tmp_path / "p.tif") as out:
        assert out.dtypes == ("float32",) and out.crs == UTM and out.transform == PLACE
        assert out.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "3"
        np.testing.assert_allclose(out.read(1), pixels[0] / 255, atol=1e-6)


@pytest.mark.parametrize("own", [0.15, 0.6, 0.47])
def test_another_pixel_size_is_resampled_there_and_back(tmp_path, caplog, own):
    """The network is given the model's pixel size; the mask lies where the buildings are."""
    pixels = np.zeros((3, 900, 1200), np.uint8)
    truth = np.zeros((900, 1200), bool)
    for row, col in ((0, 0), (400, 500), (700, 1100), (820, 40), (440, 20)):
        truth[row : row + 80, col : col + 100] = True
    pixels[0, truth] = 255
    transform = Affine(own, 0, 500_000, 0, -own, 3_000_000)
    scene = write(tmp_path / "scene.tif", pixels, transform=transform)
    seen = []

    class Watching(Redness):
        def predict(self, pixels):
            seen.append((pixels[..., 0] > 127).mean() * pixels.size / 3)
            return super().predict(pixels)

    mask, profile = predict_scene(Watching(), scene, overlap=0)
    assert profile["transform"] == transform and mask.shape == truth.shape
    assert f"{own:.2g} m, resampled to the model's 0.3 m" in caplog.text
    wrong = (mask == 255) != truth
    edge = np.zeros_like(truth)  # within a pixel of the model's of an outline
    reach = int(np.ceil(0.3 / own)) + 1
    for down, across in ((1, 0), (0, 1)):
        moved = np.roll(truth, (down, across), (0, 1)) != truth
        for step in range(-reach, reach + 1):
            edge |= np.roll(moved, step * down, 0) | np.roll(moved, step * across, 1)
    assert not (wrong & ~edge).any()
    area = truth.sum() * (own / 0.3) ** 2
    assert sum(seen) >= 0.97 * area  # what the network saw, in its own pixels


def test_the_pixel_size_can_be_told(tmp_path, model, caplog):
    scene = write(tmp_path / "scene.tif", photograph(100, 100), crs=None, transform=None)
    predict_scene(model, scene)
    assert caplog.text == ""  # unknown: taken as the model's
    shapes = []
    model.predict = lambda pixels: shapes.append(pixels.shape) or pixels[..., 0] / np.float32(255)
    main([str(scene), "--out", str(tmp_path / "mask.tif"), "--pixel-size", "0.6"])
    assert shapes == [(1, 208, 208, 3)] and "0.6 m" in caplog.text  # 200, padded to 16


def test_a_slippy_name_tells_the_pixel_size_to_the_command_and_to_python(tmp_path, monkeypatch):
    """Zoom 20 at 27.6 degrees north: 156543 m / 2^20 x cos 27.6 = 0.132 m."""
    scene = write(tmp_path / "OAM-772750-441350-20.tif", photograph(256, 256), crs=None)
    scene = scene.rename(tmp_path / "OAM-772750-441350-20.png")
    shapes = []

    class Watching(Redness):
        def predict(self, pixels):
            shapes.append(pixels.shape[1:3])
            return super().predict(pixels)

    predict_scene(Watching(), scene)
    monkeypatch.setattr(predict, "load_model", lambda path: Watching())
    main([str(scene), "--out", str(tmp_path / "mask.tif")])
    assert shapes == [(128, 128)] * 2  # 256 x 0.132 / 0.3 = 113, padded to 16


def test_views_are_averaged_window_by_window(tmp_path, model):
    """A model that finds the left halves of its windows; with the mirrored view all is equal."""
    scene = write(tmp_path / "scene.tif", photograph(160, 64))
    model.predict = lambda pixels: np.broadcast_to(
        np.arange(pixels.shape[2], dtype=np.float32)[::-1] / pixels.shape[2], pixels.shape[:3]
    )
    mask, _ = predict_scene(model, scene)
    assert (mask[:, :32] == 255).all() and (mask[:, 33:] == 0).all()
    mean = 63 / 64 / 2
    assert (predict_scene(model, scene, threshold=mean, views=2)[0] == 255).all()
    main([str(scene), "--out", str(tmp_path / "p.tif"), "--format", "probability", "--views", "2"])
    with rasterio.open(tmp_path / "p.tif") as out:
        np.testing.assert_allclose(out.read(1), mean, rtol=1e-6)


def test_the_same_pixel_size_within_rounding_is_left_alone(tmp_path, caplog):
    scene = write(tmp_path / "scene.tif", photograph(50, 60))
    mask, _ = predict_scene(Redness(pixel_size=0.302), scene)
    assert mask.shape == (50, 60) and caplog.text == ""
    predict_scene(Redness(pixel_size=None), scene)
    assert caplog.text == ""


def test_picture_shows_the_mask_over_the_photograph(tmp_path, model):
    pixels = photograph(600, 300)
    scene = write(tmp_path / "scene.tif", pixels)
    main([str(scene), "--out", str(tmp_path / "over.png")])
    with rasterio.open(tmp_path / "over.png") as picture:
        assert picture.driver == "PNG" and picture.shape == (600, 300)
        changed = (picture.read((1, 2, 3)) != pixels).any(axis=0)
    np.testing.assert_array_equal(changed, pixels[0] >= 128)


def test_outlines(tmp_path, model):
    pyogrio = pytest.importorskip("pyogrio")
    pixels = np.zeros((3, 200, 300), np.uint8)
    pixels[0, 10:110, 20:120] = 255  # 900 m2 at 0.3 m
    pixels[0, 150:160, 200:210] = 255  # 9 m2
    scene = write(tmp_path / "scene.tif", pixels)
    main([str(scene), "--out", str(tmp_path / "all.geojson")])
    main([str(scene), "--out", str(tmp_path / "big.gpkg"), "--min-area", "10"])
    features = json.loads((tmp_path / "all.geojson").read_text())["features"]
    areas = sorted(feature["properties"]["area_m2"] for feature in features)
    assert areas == pytest.approx([9, 900], rel=2e-3)  # the grid's own scale is 0.9996
    meta, _, geometry, _ = pyogrio.raw.read(tmp_path / "big.gpkg")
    assert len(geometry) == 1 and meta["crs"] == "EPSG:32645"


def test_right_angles_clean_an_outline(tmp_path, model):
    pytest.importorskip("pyogrio")
    pixels = np.zeros((3, 200, 300), np.uint8)
    pixels[0, 10:110, 20:120] = 255
    pixels[0, 50:60, 118:122] = 0  # a notch of 0.6 m
    pixels[0, 70:80, 118:122] = 255  # and a bump
    scene = write(tmp_path / "scene.tif", pixels)
    corners = {}
    for wish in ([], ["--right-angles"], ["--right-angles", "--simplify", "0.5"]):
        main([str(scene), "--out", str(tmp_path / "a.geojson"), *wish])
        (feature,) = json.loads((tmp_path / "a.geojson").read_text())["features"]
        corners[" ".join(wish)] = len(feature["geometry"]["coordinates"][0]) - 1
    assert corners == {"": 12, "--right-angles": 4, "--right-angles --simplify 0.5": 12}


def test_outlines_need_a_place_and_say_so_before_the_work(tmp_path, model):
    model.predict = lambda pixels: pytest.fail("predicted all the same")
    scene = write(tmp_path / "scene.tif", photograph(20, 20), crs=None, transform=None)
    with pytest.raises(InputError, match=r"scene\.tif has no georeference"):
        main([str(scene), "--out", str(tmp_path / "a.geojson")])
    assert not (tmp_path / "a.geojson").exists()


def test_several_scenes_or_a_folder_give_named_files(tmp_path, model):
    for name in ("a1.tif", "b1.tif"):
        write(tmp_path / name, photograph(20, 20))
    out = tmp_path / "new" / "masks"
    main([str(tmp_path / "a1.tif"), str(tmp_path / "b1.tif"), "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == ["a1.tif", "b1.tif"]
    main([str(tmp_path / "a1.tif"), "--out", str(out), "--format", "png"])
    assert (out / "a1.png").exists()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["a1.tif", "b1.tif", "--out", "x.tif"], "a folder was expected for 2 scenes"),
        (["a1.tif", "sub/a1.tif", "--out", "x"], "another scene is to give"),
        (["a1.tif", "--out", "a1.tif"], "would be overwritten"),
        (["a1.tif", "b1.tif", "--out", "."], "would be overwritten"),
        (["a1.tif", "--out", "text.tif/x.png"], r"text\.tif is a file, where a folder"),
        (["a1.tif", "b1.tif", "--out", "plain"], "plain is a file, where a folder"),
        (["a1.tif", "--out", "x.png", "--format", "gpkg"], r"expected to end in \.gpkg"),
        (["a1.tif", "--out", "x.xyz"], r"expected to end in \.tif"),
        (["a1.tif", "--out", "x.tif", "--overlap", "300"], "overlap must be 0 to 256"),
        (["a1.tif", "--out", "x.tif", "--overlap", "-1"], "overlap must be 0 to 256"),
        (["a1.tif", "--out", "x.tif", "--pixel-size", "10"], r"a1\.tif has pixels of 10 m"),
        (["none.tif", "--out", "x.tif"], r"none\.tif"),
        (["text.tif", "--out", "x.tif"], r"text\.tif"),
    ],
)
def test_bad_requests_are_refused_in_one_sentence(
    tmp_path, monkeypatch, model, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "text.tif").write_text("no picture")
    (tmp_path / "plain").touch()
    for name in ("a1.tif", "b1.tif", "sub/a1.tif"):
        write(tmp_path / name, photograph(20, 20))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=sentence) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("form, name", [("tif", "x.tif"), ("png", "x.png"), ("gpkg", "x.gpkg")])
def test_a_scene_that_breaks_off_leaves_nothing(tmp_path, model, form, name):
    scene = write(tmp_path / "scene.tif", photograph(1500, 700), compress="deflate")
    whole = scene.read_bytes()
    scene.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"scene\.tif"):
        main([str(scene), "--out", str(tmp_path / name), "--format", form])
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threshold", "1.5"],
        ["--pixel-size", "0"],
        ["--format", "jpg"],
        ["--device", "tpu"],
        ["--views", "3"],
    ],
)
def test_bad_options_exit_with_2(tmp_path, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["a.tif", "--out", "b.tif", *arguments])
    assert caught.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_a_real_network_shows_no_seam(tmp_path, monkeypatch):
    """A narrow U-Net: tiled and whole agree where a quarter of the overlap is its reach."""
    monkeypatch.setattr(blending, "WINDOW", 192)
    net = UNet(widths=(3, 4), kernel=4, seed=1)  # looks less than 24 pixels away
    net.head.params["w"] *= 100  # more than the cautious start has of an opinion
    model = Model(net, ModelInfo())
    pixels = photograph(241, 431)
    scene = write(tmp_path / "scene.tif", pixels)
    with open_raster(scene) as dataset:
        bands = list(scene_bands(model, dataset, overlap=96))
        rough = list(scene_bands(model, dataset, overlap=0))
    found, seamed = (np.concatenate([b.probability for b in run]) for run in (bands, rough))
    padded = np.pad(pixels.transpose(1, 2, 0), ((0, 1), (0, 1), (0, 0)), mode="symmetric")
    whole = model.predict(padded[None])[0][:241, :431]
    assert len(bands) == 2 and whole.std() > 0.05
    np.testing.assert_allclose(found, whole, atol=2e-5)
    assert abs(seamed - whole).max() > 0.01


def test_a_real_network_gives_a_box_the_bits_of_the_whole(tmp_path, monkeypatch):
    """Its windows come in other batches, which must not change a bit of them."""
    monkeypatch.setattr(blending, "WINDOW", 128)
    model = load_model()
    scene = write(tmp_path / "scene.tif", photograph(200, 420))
    with open_raster(scene) as dataset:

        def probabilities(box=None):
            bands = scene_bands(model, dataset, box=box)
            return np.concatenate([band.probability for band in bands])

        whole = probabilities()
        for box in np.s_[0:100, 0:420], np.s_[50:200, 200:420], np.s_[0:200, 170:171]:
            np.testing.assert_array_equal(probabilities(box), whole[box])


def test_memory_does_not_grow_with_the_scene(tmp_path):
    """Eight times as many rows, in a process of its own, whose peak the system tells."""
    code = textwrap.dedent("""
        import resource, sys
        sys.path[:0] = sys.argv[3:]
        from test_predict import Redness
        from segment.predict import blending
        from segment.predict import command as predict
        predict.load_model = lambda path: Redness()
        predict.main([sys.argv[1], "--out", sys.argv[2]])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """)

    def peak(height):
        scene, out = tmp_path / f"{height}.tif", tmp_path / f"{height}-mask.tif"
        profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True}
        rows = photograph(1024, 1024)
        with rasterio.open(scene, "w", width=1024, height=height, **profile) as dataset:
            for row in range(0, height, 1024):
                dataset.write(rows, window=rasterio.windows.Window(0, row, 1024, 1024))
        command = [sys.executable, "-c", code, scene, out, *Path(__file__).parents[:2]]
        # GDAL keeps blocks in a cache of its own, at most so large
        environment = os.environ | {"GDAL_CACHEMAX": "16MB"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1]) / 1024

    low, high = peak(2048), peak(16384)
    assert high < low + 25, f"{low:.0f} MB, then {high:.0f} MB"  # the photograph has 42 MB more


def test_a_real_scene_keeps_its_place(tmp_path, model, photographs):
    banepa = photographs / "banepa-nepal/mosaic/banepa1.tif"
    main([str(banepa), "--out", str(tmp_path / "mask.tif")])
    with rasterio.open(banepa) as before, rasterio.open(tmp_path / "mask.tif") as after:
        assert (after.crs, after.transform, after.shape) == (
            before.crs,
            before.transform,
            before.shape,
        )
        assert set(np.unique(after.read(1))) == {0, 255}
