"""What OGC API Features and STAC clients expect, asked by one of them."""

import pytest
from rasterio.transform import Affine
from serving import PLACE, scene

pystac_client = pytest.importorskip("pystac_client")
EAST = {**PLACE, "transform": Affine(0.3, 0, 600_000, 0, -0.3, 5_300_000)}  # 100 km further


@pytest.fixture(scope="module")
def stored(server):
    server.put("/items/f-west", scene())
    server.put("/items/f-east", scene(**EAST))
    body = {"type": "Feature", "id": "f-east", "properties": {"datetime": "2020-06-01T00:00:00Z"}}
    server.put("/items/f-east", None, "application/json", json=body)
    yield server
    for name in ("f-west", "f-east"):
        server.delete(f"/items/{name}")


def test_pystac_client_walks_the_service(stored):
    catalog = pystac_client.Client.open(stored.url)
    collection = catalog.get_collection("scenes")
    items = {item.id: item for item in collection.get_items()}
    assert {"f-west", "f-east"} <= set(items)
    assert items["f-west"].assets["mask"].href.endswith("/items/f-west/mask?response_type=file")
    assert items["f-west"].get_collection().id == "scenes"
    assert collection.get_item("f-east").id == "f-east"
    search = catalog.search(
        method="GET", bbox=[15.5, 47, 17, 48], limit=1, ids=["f-east", "f-west"]
    )
    assert [item.id for item in search.items()] == ["f-east"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"bbox": "14,47,15.5,48"}, {"f-west"}),
        ({"bbox": "15.5,47,17,48"}, {"f-east"}),
        ({"bbox": "170,47,16,48"}, {"f-west"}),  # across 180 degrees
        ({"bbox": "14,47,0,15.5,48,9"}, {"f-west"}),
        ({"bbox": "0,0,1,1"}, set()),
        ({"datetime": "2020-06-01T00:00:00Z"}, {"f-west", "f-east"}),  # one is of any time
        ({"datetime": "2020-01-01T00:00:00Z/2020-12-31T00:00:00+02:00"}, {"f-west", "f-east"}),
        ({"datetime": "../2019-01-01T00:00:00Z"}, {"f-west"}),
        ({"datetime": "2021-01-01T00:00:00Z/.."}, {"f-west"}),
        ({"bbox": "15.5,47,17,48", "datetime": "2021-01-01T00:00:00Z/.."}, set()),
    ],
)
def test_a_box_and_a_time(stored, query, found):
    for path in ("/items", "/collections/scenes/items"):
        page = stored.get(path, params={"limit": 1, **query}).json()
        seen = []
        while True:
            seen += [feature["id"] for feature in page["features"]]
            following = [link["href"] for link in page["links"] if link["rel"] == "next"]
            if not following:
                break
            page = stored.get(following[0].removeprefix(stored.url)).json()
        assert {name for name in seen if name.startswith("f-")} == found


def test_wrong_boxes_and_times_are_refused(stored):
    for query in (
        {"bbox": "1,2,3"},
        {"bbox": "a"},
        {"datetime": "yesterday"},
        {"datetime": "2020"},
    ):
        assert stored.get("/items", params=query).status_code == 422


def test_people_get_the_page_and_programs_the_catalog(stored):
    page = stored.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.text.startswith("<!doctype html>")
    catalog = stored.get("/").json()
    assert catalog["type"] == "Catalog"
    assert catalog["conformsTo"] == stored.get("/conformance").json()["conformsTo"]
    for link in catalog["links"]:
        assert stored.get(link["href"].removeprefix(stored.url)).ok
