"""Masks as map tiles and as a Cloud-Optimised GeoTIFF that is read in place."""

import io
import math

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from rasterio.warp import transform
from serving import PLACE, decode, encode, problem, scene

from segment.predict.scene import predict_scene


@pytest.fixture(scope="module")
def stored(server):
    server.put("/items/tiled", scene(600, 700, compress="deflate"))
    yield "/items/tiled"
    server.delete("/items/tiled")


@pytest.fixture(scope="module")
def truth(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("truth") / "scene.tif"
    path.write_bytes(scene(600, 700, compress="deflate"))
    return predict_scene(model, path)[0]


def address(lon, lat, z):
    """The tile and the pixel in it at a place (the formula of the Slippy Map)."""
    x = (lon + 180) / 360 * 2**z
    y = (1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2 * 2**z
    return int(x), int(y), int(x % 1 * 256), int(y % 1 * 256)


def opaque(server, item, z, x, y):
    answer = server.get(f"{item}/tiles/{z}/{x}/{y}.png")
    assert answer.headers["Content-Type"] == "image/png"
    pixels, _ = decode(answer.content)
    assert pixels.shape == (256, 256, 4)
    return pixels[..., 3]


def test_each_pixel_of_a_tile_shows_the_mask_at_its_place(server, stored, truth):
    """Places on the ground, found through longitude and latitude, not by the tile's own sums."""
    told = server.get(f"{stored}/tilejson.json").json()
    z = told["maxzoom"] + 2  # finer than the mask: no averages
    tiles, agree = {}, []
    rng = np.random.default_rng(1)
    for row, col in zip(rng.integers(5, 595, 150), rng.integers(5, 695, 150), strict=True):
        if np.ptp(truth[row - 1 : row + 2, col - 1 : col + 2]):
            continue  # at an edge half a pixel matters
        at = PLACE["transform"] @ (col + 0.5, row + 0.5)
        (lon,), (lat,) = transform(PLACE["crs"], "EPSG:4326", [at[0]], [at[1]])
        x, y, i, j = address(lon, lat, z)
        if (x, y) not in tiles:
            tiles[x, y] = opaque(server, stored, z, x, y)
        agree.append(tiles[x, y][j, i] == truth[row, col])
    assert len(agree) > 20 and all(agree)


@pytest.mark.parametrize("out", [0, 2, 5])
def test_what_is_built_over_stays_so_at_every_zoom(server, stored, truth, out):
    """The area under the opacity of the tiles is that of the mask."""
    told = server.get(f"{stored}/tilejson.json").json()
    z = told["maxzoom"] - out
    west, south, east, north = told["bounds"]
    first, last = address(west, north, z), address(east, south, z)
    total = sum(
        opaque(server, stored, z, x, y).sum(dtype=float) / 255
        for x in range(first[0], last[0] + 1)
        for y in range(first[1], last[1] + 1)
    )
    latitude = math.radians((south + north) / 2)
    metres = 2 * math.pi * 6_378_137 * math.cos(latitude) / 256 / 2**z
    expected = np.count_nonzero(truth) * 0.09
    assert total * metres**2 == pytest.approx(expected, rel=0.03 if out < 5 else 0.1)


def test_tilejson(server, stored):
    told = server.get(f"{stored}/tilejson.json", params={"threshold": 0.4}).json()
    assert told["tilejson"] == "3.0.0" and told["bounds"] == server.get(stored).json()["bbox"]
    # 0.3 m at 48 degrees: 156,543 * cos(48°) / 2**z <= 0.3
    assert told["maxzoom"] == math.ceil(
        math.log2(156_543.034 * math.cos(math.radians(47.85)) / 0.3)
    )
    (template,) = told["tiles"]
    assert template == f"{server.url}{stored}/tiles/{{z}}/{{x}}/{{y}}.png?threshold=0.4"
    assert told["minzoom"] == told["maxzoom"] - 9  # 700 pixels are one there, and a bit
    body = {"type": "Feature", "id": "tiled", "properties": {"gsd": 500}}  # a client's own saying
    assert server.put(stored, None, "application/json", json=body).ok
    again = server.get(f"{stored}/tilejson.json", params={"threshold": 0.4}).json()
    assert again["maxzoom"] == told["maxzoom"]
    links = {link["rel"]: link["href"] for link in server.get(stored).json()["links"]}
    assert links["tilejson"] == f"{server.url}{stored}/tilejson.json"


def test_a_tile_far_away_is_empty_and_one_that_is_none_is_refused(server, stored):
    assert not opaque(server, stored, 10, 0, 0).any()
    for place in ("3/8/0", "3/0/8"):
        problem(server.get(f"{stored}/tiles/{place}.png"), 404)
    for place in ("25/0/0", "1/a/0", "1/-1/0"):
        problem(server.get(f"{stored}/tiles/{place}.png"), 422)


def test_tiles_are_told_apart_by_their_etag(server, stored):
    tile = f"{stored}/tiles/5/17/11.png"
    etag = server.get(tile).headers["ETag"]
    assert server.get(tile, headers={"If-None-Match": etag}).status_code == 304
    other = server.get(tile, params={"threshold": 0.2}, headers={"If-None-Match": etag})
    assert other.status_code == 200


def test_a_scene_without_a_place_has_no_tiles(server):
    server.put("/items/placeless", encode(decode(scene())[0], "PNG"), "image/png")
    for path in ("tilejson.json", "tiles/3/1/1.png"):
        assert "georeference" in problem(server.get(f"/items/placeless/{path}"), 422)
    server.delete("/items/placeless")


def test_across_180_degrees(server):
    """Half of the mask lies in the tiles at either end of the world."""
    place = {"crs": "EPSG:32601"}
    (x,), (y,) = transform("EPSG:4326", "EPSG:32601", [-180], [47.85])
    place["transform"] = Affine(0.3, 0, x - 30, 0, -0.3, y + 15)
    server.put("/items/antimeridian", scene(100, 200, **place))
    z = 18
    box = server.get("/items/antimeridian").json()["bbox"]
    assert box[0] > box[2]
    _, y, *_ = address(0, box[1], z)
    for column in (0, 2**z - 1):
        shown = [opaque(server, "/items/antimeridian", z, column, y + n).any() for n in (-1, 0)]
        assert any(shown)
    server.delete("/items/antimeridian")


def test_the_kept_mask_is_a_cog_that_is_read_in_place(server, stored, truth):
    address = f"/vsicurl/{server.url}{stored}/mask?response_type=file"
    env = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "CPL_VSIL_CURL_ALLOWED_FILENAME": address}
    with rasterio.Env(**env), rasterio.open(address) as mask:
        assert mask.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and mask.overviews(1)
        assert np.array_equal(mask.read(1), truth)
    whole = server.get(f"{stored}/mask", params={"response_type": "file"})
    part = server.get(
        f"{stored}/mask", params={"response_type": "file"}, headers={"Range": "bytes=8-15"}
    )
    assert part.status_code == 206 and part.content == whole.content[8:16]
    assert rasterio.open(io.BytesIO(whole.content)).crs == PLACE["crs"]
    before = {path.name for path in (server.store / "cache").iterdir()}
    server.put("/items/brief", scene(seed=12))
    server.get("/items/brief/mask", params={"response_type": "file"})
    server.delete("/items/brief")  # and what was kept of it
    assert {path.name for path in (server.store / "cache").iterdir()} == before
