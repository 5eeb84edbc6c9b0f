"""POST /buildings_mask/: what it answers is what `segment` finds, in every format."""

import json
import subprocess

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from serving import PLACE, decode, encode, picture, problem, scene, unplaced_is_fine

from segment.data.rasters import open_raster
from segment.geo import footprints
from segment.geo.separate import marks
from segment.plots import tinted
from segment.predict.command import main as predict
from segment.predict.scene import predict_scene, scene_bands


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "scene.tif"
    path.write_bytes(scene())
    return path


def test_the_published_call_word_for_word(server, model, tmp_path, program):
    """The curl line of the documentation, with nothing changed but host and folder."""
    path = tmp_path / "austin8_up_right.tif"
    path.write_bytes(scene(300, 280))
    line = [
        program("curl"),
        "-s",
        "-S",
        "-f",
        "-o",
        str(tmp_path / "out.tif"),
        "-D",
        str(tmp_path / "head"),
    ]
    line += ["-X", "POST", f"{server.url}/buildings_mask/?response_type=file"]
    line += ["-H", "accept: application/json", "-H", "Content-Type: multipart/form-data"]
    line += ["-F", f"file=@{path};type=image/tiff"]
    subprocess.run(line, check=True, timeout=60)
    head = (tmp_path / "head").read_text().lower()
    assert "content-type: image/tiff" in head
    assert "filename=austin8_up_right_mask.tif" in head
    mask, profile = decode((tmp_path / "out.tif").read_bytes())
    expected, _ = predict_scene(model, path)
    assert np.array_equal(mask, expected) and 0 < expected.mean() < 255
    assert profile["crs"] == PLACE["crs"] and profile["transform"] == PLACE["transform"]
    assert profile["tiled"] and profile["compress"] == "deflate" and profile["nodata"] is None


def test_the_mask_is_the_command_lines_file(server, model_file, tmp_path):
    """Larger than a window, with a hole in it: pixels, validity and profile are the command's, but
    for the blocks: the command writes a COG, which is laid out anew at its end."""
    path, out = tmp_path / "scene.tif", tmp_path / "mask.tif"
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", height=600, width=700, count=3, dtype="uint8", **PLACE
        ) as dataset,
    ):
        dataset.write(np.moveaxis(picture(600, 700), -1, 0))
        hole = np.full((600, 700), 255, np.uint8)
        hole[100:200, 300:650] = 0
        dataset.write_mask(hole)
    predict([str(path), "--model", str(model_file), "--out", str(out), "--device", "cpu"])
    answer = server.mask(path.read_bytes())
    with rasterio.open(out) as expected, rasterio.MemoryFile(answer.content).open() as got:
        blocks = {"blockxsize": 0, "blockysize": 0}
        assert got.profile | blocks == expected.profile | blocks
        assert got.read().tobytes() == expected.read().tobytes()
        assert got.dataset_mask().tobytes() == expected.dataset_mask().tobytes()
        assert not got.dataset_mask()[100:200, 300:650].any()


@pytest.mark.parametrize("driver", ["JPEG", "PNG"])
def test_photographs_without_a_place(server, model, tmp_path, driver):
    path = tmp_path / "photo"
    path.write_bytes(encode(picture(70, 90), driver))
    answer = server.mask(path.read_bytes(), "photo.bin")  # the name says nothing
    mask, profile = decode(answer.content)
    assert np.array_equal(mask, predict_scene(model, path)[0])
    assert profile["crs"] is None
    assert "no georeference" in problem(
        server.mask(path.read_bytes(), query={"response_type": "geojson"}), 422
    )


@pytest.mark.parametrize("threshold", [0, 77 / 255, 0.5, 128 / 255, 1])
def test_levels_compare_like_probabilities(server, model, file, threshold):
    """What the page relies on: level >= k is the service's own mask at threshold k / 255."""
    levels, _ = decode(
        server.mask(file.read_bytes(), query={"response_type": "probability"}).content
    )
    mask, _ = predict_scene(model, file, threshold)
    if round(threshold * 255) == pytest.approx(threshold * 255):
        assert np.array_equal(levels >= round(threshold * 255), mask > 0)
    got, _ = decode(server.mask(file.read_bytes(), query={"threshold": threshold}).content)
    assert np.array_equal(got, mask)


def test_overlay_and_photo(server, model, file):
    pixels, _ = decode(file.read_bytes())
    mask, _ = predict_scene(model, file)
    overlay, _ = decode(server.mask(file.read_bytes(), query={"response_type": "png"}).content)
    assert np.array_equal(overlay, tinted(pixels, mask))
    photo, _ = decode(server.mask(file.read_bytes(), query={"response_type": "photo"}).content)
    assert np.array_equal(photo, pixels)


def test_reduced_pictures_have_the_mean_of_what_they_show(server, file):
    query = {"response_type": "probability"}
    full, _ = decode(server.mask(file.read_bytes(), query=query).content)
    half, _ = decode(server.mask(file.read_bytes(), query={**query, "size": 64}).content)
    assert half.shape == (48, 64)
    blocks = full.reshape(48, 2, 64, 2).mean((1, 3))
    assert np.abs(half - blocks).max() <= 1  # levels are rounded down before and after
    photo, _ = decode(
        server.mask(file.read_bytes(), query={"response_type": "photo", "size": 50}).content
    )
    assert photo.shape == (38, 50, 3)


def test_outlines_and_figures_are_those_of_footprints(server, model, file):
    query = {"response_type": "geojson", "min_area": 0.2, "simplify": 0.4}
    answer = server.mask(file.read_bytes(), query=query)
    assert answer.headers["Content-Type"] == "application/geo+json"
    mask, profile = predict_scene(model, file)
    with open_raster(file) as dataset:
        bands = list(scene_bands(model, dataset))
    mark = np.concatenate([marks(band.probability, band.mask(0.5) > 0) for band in bands])
    found = footprints.polygons(mark, profile["transform"], profile["crs"], 0.2, 0.4)
    assert answer.json() == json.loads(json.dumps(footprints.feature_collection(found)))
    figures = server.mask(file.read_bytes(), query={**query, "response_type": "json"}).json()
    assert figures["buildings"] == len(found.outlines) > 3
    assert figures["built_area_m2"] == pytest.approx(found.area_m2.sum(), abs=0.01)
    assert figures["built_share"] == pytest.approx((mask > 0).mean(), abs=1e-6)
    assert figures["pixel_size"] == pytest.approx(0.3, rel=1e-3)
    assert figures["corners"][0] == pytest.approx([15, 47.85], abs=0.01)


def test_figures_of_a_photograph_need_a_pixel_size_for_areas(server, model, tmp_path):
    data = encode(picture(64, 64), "PNG")
    figures = server.mask(data, query={"response_type": "json"}).json()
    assert figures["built_area_m2"] is None and figures["corners"] is None
    told = server.mask(data, query={"response_type": "json", "pixel_size": 0.3}).json()
    assert told["buildings"] == figures["buildings"] > 0
    assert told["built_area_m2"] == pytest.approx(told["built_share"] * 64 * 64 * 0.09, rel=1e-3)
    query = {"response_type": "json", "min_area": 3}
    assert "pixel_size" in problem(server.mask(data, query=query), 422)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "image/tiff"),
        ("*/*", "image/tiff"),
        ("image/png", "image/png"),
        ("application/geo+json", "application/geo+json"),
        ("application/json", "application/json"),
        ("text/html, application/json;q=0.5, image/png;q=0.4", "application/json"),
    ],
)
def test_accept_negotiates(server, accept, kind):
    answer = server.mask(scene(), headers={"Accept": accept})
    assert answer.ok and answer.headers["Content-Type"] == kind
    assert "Accept" in answer.headers["Vary"]


def test_nothing_acceptable(server):
    problem(server.mask(scene(), headers={"Accept": "text/html"}), 406)


@pytest.mark.parametrize(
    "query",
    [
        *("threshold=2", "threshold=nan", "threshold=", "threshold=0.5&threshold=0.6"),
        *("treshold=0.5", "min_area=-1", "size=3", "size=1e3", "pixel_size=0", "simplify=inf"),
        "response_type=tiff",
    ],
)
def test_parameters_are_checked(server, query):
    name = query.split("=")[0]
    assert repr(name) in problem(server.mask(scene(), query=query), 422)


def test_rotated_and_degree_scenes_keep_their_place(server):
    turned = Affine.translation(16.3, 48.2) @ Affine.rotation(20) @ Affine.scale(3e-6, -2.7e-6)
    data = scene(crs="EPSG:4326", transform=turned)
    _, profile = decode(server.mask(data).content)
    assert profile["transform"].almost_equals(turned, 1e-12) and profile["crs"] == "EPSG:4326"
    figures = server.mask(data, query={"response_type": "json"}).json()
    assert figures["corners"][0] == pytest.approx([16.3, 48.2], abs=1e-6)


def test_a_declared_giant_is_refused_unread(server, tmp_path):
    """60,000 x 60,000 x 3 in a few kB: 10.8 GB if anyone tried."""
    path = tmp_path / "giant.tif"
    size = {"height": 60_000, "width": 60_000, "count": 3, "dtype": "uint8"}
    form = {"tiled": True, "blockxsize": 4096, "blockysize": 4096, "sparse_ok": True}
    with unplaced_is_fine(), rasterio.open(path, "w", driver="GTiff", **size, **form):
        pass
    assert path.stat().st_size < 1e6
    sentence = problem(server.mask(path.read_bytes(), "giant.tif"), 413)
    assert sentence.startswith("giant.tif is 60000 x 60000 pixels")


def test_a_scene_that_would_grow_is_refused(server):
    answer = server.mask(scene(3000, 3000, compress="deflate"), query={"pixel_size": 2})
    assert "resampled" in problem(answer, 413)
