"""What each parameter does to each product, and what HTTP asks of the answers."""

import errno
import io
import json
import os
import threading

import geopandas
import numpy as np
import pytest
import rasterio
from flask.testing import FlaskClient
from serving import PLACE, decode, encode, picture, scene

from api import create_app
from api.work.products import KINDS, VECTOR
from segment.geo.footprints import polygons
from segment.predict.scene import predict_scene


@pytest.fixture(scope="module")
def app(model_file, tmp_path_factory):
    before = dict(os.environ)  # it sets some of GDAL's, which are not for the modules after this
    yield create_app({"model": model_file, "store": tmp_path_factory.mktemp("store")})
    os.environ.clear()
    os.environ.update(before)


class Client(FlaskClient):
    """Reads each answer to its end, and closes it."""

    def open(self, *arguments, **options):
        return super().open(*arguments, buffered=True, **options)


@pytest.fixture
def client(app):
    return Client(app)


def ask(client, data=None, **query):
    file = {"file": (io.BytesIO(data or scene()), "scene.tif")}
    return client.post("/buildings_mask/", query_string=query, data=file)


@pytest.fixture(scope="module")
def truth(model, tmp_path_factory):
    """The mask and its outlines, by `segment`."""
    path = tmp_path_factory.mktemp("truth") / "scene.tif"
    path.write_bytes(scene())
    mask, profile = predict_scene(model, path)
    return mask, polygons(mask, profile["transform"], profile["crs"])


def test_every_parameter_is_honoured_or_refused(client):
    values = {"threshold": 0.4, "min_area": 3, "simplify": 1, "right_angles": "true", "size": 20}
    values["separate"] = "true"
    for kind, (media_type, _, takes) in KINDS.items():
        for name, value in values.items():
            answer = ask(client, response_type=kind, **{name: value})
            assert answer.status_code == (200 if name in takes else 422), (kind, name)
            if name in takes and name != "separate":  # this scene may have nothing to part
                assert answer.mimetype == media_type
                plain = ask(client, response_type=kind).data
                assert kind == "json" or answer.data != plain, (kind, name)


def test_small_buildings_are_left_out_of_rasters_too(client, truth):
    mask, found = truth
    least = float(np.median(found.area_m2))
    kept, _ = decode(ask(client, min_area=least).data)
    outlines = found.outlines[found.area_m2 >= least]
    inside = rasterio.features.rasterize(outlines, mask.shape, transform=PLACE["transform"])
    assert 0 < np.count_nonzero(kept) < np.count_nonzero(mask)
    assert np.array_equal(kept > 0, inside > 0)


@pytest.mark.parametrize("kind", VECTOR)
def test_outlines_in_the_formats_of_gis(client, truth, tmp_path, kind):
    answer = ask(client, response_type=kind)
    path = tmp_path / f"found.{kind}"
    path.write_bytes(answer.data)
    read = geopandas.read_parquet if kind == "parquet" else geopandas.read_file
    table = read(path)
    assert np.allclose(sorted(table["area_m2"]), sorted(truth[1].area_m2), atol=0.01)
    assert np.allclose(table.to_crs(32633).area.sum(), np.count_nonzero(truth[0]) * 0.09, rtol=0.01)


def test_a_corrected_pixel_size_gives_one_area(client):
    """Outlines, figures and min_area agree, with and without a georeference."""
    for data in (scene(), encode(picture())):
        figures = ask(client, data, response_type="json", pixel_size=0.6).json
        assert figures["pixel_size"] == 0.6
        if data == scene():
            features = ask(client, data, response_type="geojson", pixel_size=0.6).json["features"]
            areas = [feature["properties"]["area_m2"] for feature in features]
            assert sum(areas) == pytest.approx(figures["built_area_m2"], abs=1)
        pixels = np.count_nonzero(decode(ask(client, data, pixel_size=0.6).data)[0])
        assert figures["built_area_m2"] == pytest.approx(pixels * 0.36, rel=0.01)


def test_deep_pixels_and_other_bands(client):
    """Bands and values as asked for give what the same pixels give as 8-bit RGB."""
    deep = np.zeros((96, 128, 5), np.uint16)
    deep[..., [3, 1, 4]] = picture().astype(np.uint16) * 10
    data = encode(deep, photometric="MINISBLACK", **PLACE)
    refused = ask(client, data, response_type="json")
    assert refused.status_code == 422 and "--" not in refused.json["detail"]
    assert "the parameter 'bands'" in refused.json["detail"]
    deeper = ask(client, data, response_type="json", bands="4,2,5")
    assert deeper.status_code == 422 and "the parameter 'rescale'" in deeper.json["detail"]
    answer = ask(client, data, bands="4,2,5", rescale="0,2550")
    assert np.array_equal(decode(answer.data)[0], decode(ask(client).data)[0])
    assert ask(client, data, bands="4,2,5", rescale="auto").status_code == 200
    unknown = ask(client, data, bands="4,2,6", rescale="0,2550")
    assert unknown.status_code == 422 and "--" not in unknown.json["detail"]
    assert ask(client, data, bands="4,2,5", rescale="9,1").status_code == 422


def test_accept_with_parameters(client):
    for header, media_type in (
        ("image/tiff; application=geotiff", "image/tiff"),
        ("application/geo+json; charset=utf-8, */*;q=0.1", "application/geo+json"),
        ("image/png;q=0.4, application/json;q=0.9", "application/json"),
    ):
        file = {"file": (io.BytesIO(scene()), "scene.tif")}
        answer = client.post("/buildings_mask/", data=file, headers={"Accept": header})
        assert answer.mimetype == media_type
    file = {"file": (io.BytesIO(scene()), "scene.tif")}
    nothing = client.post("/buildings_mask/", data=file, headers={"Accept": "text/csv; a=b"})
    assert nothing.status_code == 406


def test_ranges_as_http_wants_them(client):
    client.put("/items/ranges", data=scene(), content_type="image/tiff")
    for header, status in (
        ("bytes=0-9", 206),
        ("bytes=-5", 206),
        ("bytes=0-1,4-5", 200),
        ("items=0-9", 200),
        ("bytes=99999999-", 416),
    ):
        answer = client.get("/items/ranges/image", headers={"Range": header})
        assert answer.status_code == status, header


def test_numbers_and_texts_that_json_cannot_hold(client):
    client.put("/items/odd", data=scene(), content_type="image/tiff")
    for value in ("1e400", "-1e999", "NaN", r'"\ud800"'):
        body = f'{{"type": "Feature", "id": "odd", "properties": {{"my:value": {value}}}}}'
        answer = client.put("/items/odd", data=body, content_type="application/json")
        assert answer.status_code == 400
    json.loads(client.get("/items").data, parse_constant=pytest.fail)


def test_the_file_tells_where_it_lies(client):
    client.put("/items/place", data=scene(), content_type="image/tiff")
    before = client.get("/items/place").json["properties"]
    extension = "https://stac-extensions.github.io/eo/v1.1.0/schema.json"
    body = {"type": "Feature", "id": "place", "stac_extensions": [extension]}
    body["properties"] = {"proj:code": "EPSG:4326", "proj:bbox": [0, 0, 1, 1], "eo:cloud_cover": 3}
    item = client.put("/items/place", json=body).json
    told = {k: v for k, v in item["properties"].items() if k.startswith("proj:")}
    assert told == {k: v for k, v in before.items() if k.startswith("proj:")}
    assert extension in item["stac_extensions"] and len(item["stac_extensions"]) == 2
    body.pop("stac_extensions")
    assert extension in client.put("/items/place", json=body).json["stac_extensions"]


def test_deleted_items_leave_no_prediction(app, client):
    cache = app.extensions["minicnn"].predictor.folder
    data = scene(seed=77)
    before = set(cache.iterdir())
    client.put("/items/gone", data=data, content_type="image/tiff")
    for query in ({}, {"pixel_size": 0.5}):
        assert client.get("/items/gone/mask", query_string=query).status_code == 200
    assert len(set(cache.iterdir()) - before) == 4  # a prediction and a mask for each
    client.delete("/items/gone")
    assert set(cache.iterdir()) == before


def test_reading_goes_on_where_nothing_can_be_written(app, client, monkeypatch):
    client.put("/items/kept", data=scene(), content_type="image/tiff")

    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    assert client.get("/items").status_code == 200
    assert client.get("/items/kept/image").data == scene()
    ready = client.get("/readyz")
    assert ready.status_code == 503 and "written" in ready.json["detail"]


def test_jobs_count_towards_the_store(model_file, tmp_path):
    app = create_app({"model": model_file, "store": tmp_path, "store_mb": 0.06})
    codes = []
    for seed in range(3):
        file = {"file": (io.BytesIO(scene(seed=seed)), "scene.tif")}
        headers = {"Prefer": "respond-async"}
        codes.append(Client(app).post("/buildings_mask/", data=file, headers=headers))
    assert [answer.status_code for answer in codes] == [202, 507, 507]


def test_a_narrow_scene_counts_as_wide_as_its_windows(model_file, tmp_path):
    app = create_app({"model": model_file, "store": tmp_path, "megapixels": 0.5})
    wide = encode(np.zeros((2, 15_000, 3), np.uint8), "PNG")
    assert ask(Client(app), wide).status_code == 413


def test_a_full_cache_is_looked_at_seldom(app, client, monkeypatch):
    looked = []
    monkeypatch.setattr("api.work.predictor.evict", lambda *_: looked.append(1))
    for seed in range(5):
        ask(client, scene(seed=seed + 50))
        ask(client, scene(seed=seed + 50), threshold=0.3)
    assert len(looked) <= 1


def test_a_request_opens_its_scene_once(client, monkeypatch):
    """What is examined is what is worked on; the network reads it in a thread of its own."""
    opened, original = [], rasterio.open

    def counting(path, *mode, **options):
        own = threading.current_thread() is threading.main_thread()
        upload = "scratch" in str(path) and not mode and "driver" in options
        if own and upload:  # no product that is written, or read back
            opened.append(path)
        return original(path, *mode, **options)

    monkeypatch.setattr(rasterio, "open", counting)
    for kind in ("file", "png", "json", "photo"):
        assert ask(client, response_type=kind).status_code == 200
    assert client.put("/items/once", data=scene(), content_type="image/tiff").status_code == 201
    assert len(opened) == 5, opened
