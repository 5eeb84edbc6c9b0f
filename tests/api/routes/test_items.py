"""/items: stored scenes as STAC Items, upserts with preconditions, masks that are kept."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pystac
import pytest
import rasterio
import requests
from pystac.extensions.projection import ProjectionExtension
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from serving import PLACE, decode, encode, picture, problem, scene

from segment.predict.scene import predict_scene


@pytest.fixture
def item(server, request):
    """A stored scene's path, of this test's own."""
    path = f"/items/{request.node.name.replace('[', '_').strip(']')[:60]}"
    answer = server.put(path, scene())
    assert answer.status_code == 201
    yield path
    server.delete(path)


def metadata(server, path, **properties):
    body = {"type": "Feature", "id": path.rsplit("/", 1)[1], "properties": properties}
    return server.put(path, None, "application/geo+json", json=body)


def validate(body):
    """The core schema comes with pystac; the extension's is on the net, and read by hand."""
    validator = JsonSchemaSTACValidator()
    item = pystac.Item.from_dict(body)
    validator.validate_core(body, pystac.STACObjectType.ITEM, "1.1.0")
    return item


def test_upsert_and_what_is_stored(server, item):
    stored = server.get(item)
    assert stored.headers["Content-Type"] == "application/geo+json"
    body = stored.json()
    entry = validate(body)
    assert entry.datetime is None and entry.bbox == pytest.approx([15, 47.85, 15, 47.85], abs=0.01)
    projection = ProjectionExtension.ext(entry)
    assert projection.epsg == 32633 and projection.shape == [96, 128]
    assert projection.transform == list(PLACE["transform"])[:6]
    image = server.get(f"{item}/image")
    assert image.content == scene() and image.headers["Content-Type"] == "image/tiff"
    assert body["links"][0]["href"] == server.url + item

    again = server.put(item, scene(seed=2))
    assert again.status_code == 200 and again.headers["ETag"] != stored.headers["ETag"]
    assert again.json()["properties"]["created"] == body["properties"]["created"]
    assert server.get(f"{item}/image").content == scene(seed=2)
    assert server.delete(item).status_code == 204
    problem(server.get(item), 404)
    problem(server.delete(item), 404)


def test_created_says_where(server):
    answer = server.put("/items/created", encode(picture(), "JPEG"), "image/jpeg")
    assert answer.status_code == 201
    assert answer.headers["Location"] == "/items/created" and answer.headers["ETag"]
    body = answer.json()
    assert body["geometry"] is None and "bbox" not in body
    assert body["assets"]["image"]["type"] == "image/jpeg"
    validate(body)
    form = {"file": ("x.png", encode(picture(), "PNG"))}
    replaced = requests.put(f"{server.url}/items/created", files=form, timeout=30)
    assert replaced.status_code == 200
    assert replaced.json()["assets"]["image"]["type"] == "image/png"
    server.delete("/items/created")


def test_the_time_is_what_the_tiff_says(server, tmp_path):
    path = tmp_path / "dated.tif"
    path.write_bytes(scene())
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2016:05:28 10:11:12")
    body = server.put("/items/dated", path.read_bytes()).json()
    assert body["properties"]["datetime"] == "2016-05-28T10:11:12Z"
    validate(body)
    server.delete("/items/dated")


def test_metadata_replaces_metadata(server, item):
    before = server.get(item).json()
    changed = metadata(server, item, title="Graz", datetime="2020-02-29T12:00:00+01:00", gsd=0.3)
    assert changed.status_code == 200
    body = changed.json()
    validate(body)
    assert body["properties"]["title"] == "Graz" and body["geometry"] == before["geometry"]
    assert body["properties"]["proj:shape"] == [96, 128]
    assert "start_datetime" not in body["properties"]
    assert server.get(f"{item}/image").content == scene()
    body["properties"]["title"] = "What was got may be put"
    assert server.put(item, None, "application/json", json=body).ok
    assert "title" not in metadata(server, item).json()["properties"]


@pytest.mark.parametrize(
    "properties",
    [
        {"datetime": "2023-02-30T00:00:00Z"},
        {"datetime": "yesterday"},
        {"start_datetime": "2020-01-01T00:00:00Z"},
        {"gsd": "0.3"},
        {"bands": [{"name": "red"}]},
        {"keywords": "roof"},
    ],
)
def test_metadata_that_would_be_no_stac_is_refused(server, item, properties):
    problem(metadata(server, item, **properties), 422)


def test_bodies_that_are_wrong(server, item):
    wrong = {"type": "Feature", "id": "another", "properties": {}}
    assert "id" in problem(server.put(item, None, "application/json", json=wrong), 400)
    problem(server.put(item, b"{not json", "application/json"), 400)
    problem(server.put(item, b"[" * 100_000, "application/json"), 400)
    problem(server.put(item, b" " * 1_000_001, "application/json"), 413)
    problem(server.put(item, b"a,b", "text/csv"), 415)
    problem(server.put(item, b"no picture"), 422)
    problem(metadata(server, "/items/absent"), 404)


@pytest.mark.parametrize("item_id", ["-a", ".a", "a b", "a" * 65, "ä", "a%0A", "a%00"])
def test_ids_are_strict(server, item_id):
    assert server.put(f"/items/{item_id}", scene()).status_code == 422
    for path in ("%2e%2e", "%2e%2e%2fjobs", "..%5c"):
        assert server.put(f"/items/{path}", scene()).status_code in (404, 405, 422)


def test_preconditions(server, item):
    etag = server.get(item).headers["ETag"]
    assert server.get(item, headers={"If-None-Match": etag}).status_code == 304
    for headers in ({"If-None-Match": "*"}, {"If-Match": '"other"'}, {"If-None-Match": etag}):
        problem(server.put(item, scene(seed=3), headers=headers), 412)
    problem(server.delete(item, headers={"If-Match": '"other"'}), 412)
    problem(server.put("/items/absent", scene(), headers={"If-Match": "*"}), 412)
    assert server.get(item).headers["ETag"] == etag
    assert server.put(item, scene(seed=3), headers={"If-Match": etag}).status_code == 200
    problem(server.put(item, scene(seed=4), headers={"If-Match": etag}), 412)


def test_masks_of_items(server, item, model, tmp_path):
    path = tmp_path / "scene.tif"
    path.write_bytes(scene())
    answer = server.get(f"{item}/mask", params={"threshold": 0.4})
    assert np.array_equal(decode(answer.content)[0], predict_scene(model, path, 0.4)[0])
    etag = answer.headers["ETag"]
    same = server.get(f"{item}/mask", params={"threshold": 0.4}, headers={"If-None-Match": etag})
    assert same.status_code == 304 and not same.content
    other = server.get(f"{item}/mask", params={"threshold": 0.5}, headers={"If-None-Match": etag})
    assert other.status_code == 200
    png = server.get(f"{item}/mask", headers={"Accept": "image/png"})
    assert decode(png.content)[0].shape == (96, 128, 3)
    collection = server.get(f"{item}/mask", headers={"Accept": "application/geo+json"})
    assert collection.json()["type"] == "FeatureCollection"
    server.put(item, scene(seed=7))
    new = server.get(f"{item}/mask", params={"threshold": 0.4}, headers={"If-None-Match": etag})
    assert new.status_code == 200 and new.content != answer.content


def test_byte_ranges_of_an_image(server, item):
    part = server.get(f"{item}/image", headers={"Range": "bytes=4-7"})
    assert part.status_code == 206 and part.content == scene()[4:8]


def test_pages(server):
    ids = [f"page{n:02}" for n in range(7)]
    for item_id in ids:
        server.put(f"/items/{item_id}", scene(32, 32))
    found, path = [], "/items?limit=3"
    while path:
        body = server.get(path).json()
        assert body["numberReturned"] == len(body["features"]) <= 3
        found += [feature["id"] for feature in body["features"]]
        following = [link["href"] for link in body["links"] if link["rel"] == "next"]
        path = following[0].removeprefix(server.url) if following else None
    assert [item_id for item_id in found if item_id.startswith("page")] == ids
    assert found == sorted(found)
    for item_id in ids:
        server.delete(f"/items/{item_id}")


def both_put(server, path, **options):
    """Two clients at once, with scenes 1 and 2: their answers."""
    with ThreadPoolExecutor(2) as pool:
        asked = {s: pool.submit(server.put, path, scene(seed=s), **options) for s in (1, 2)}
    return {seed: future.result() for seed, future in asked.items()}


def test_two_clients_put_one_id(server):
    """Whatever the order: both get a valid answer, one was first, one version is left, whole."""
    for attempt in range(5):
        path = f"/items/race{attempt}"
        answers = both_put(server, path)
        assert sorted(answer.status_code for answer in answers.values()) == [200, 201]
        stored = server.get(path)
        (winner,) = [s for s, a in answers.items() if a.headers["ETag"] == stored.headers["ETag"]]
        assert answers[winner].status_code == 200
        assert server.get(f"{path}/image").content == scene(seed=winner)
        path = f"/items/new{attempt}"
        answers = both_put(server, path, headers={"If-None-Match": "*"})
        assert sorted(answer.status_code for answer in answers.values()) == [201, 412]
        server.delete(path)
        server.delete(f"/items/race{attempt}")
    assert len(list((server.store / "scenes").iterdir())) == len(
        list((server.store / "items").iterdir())
    )
