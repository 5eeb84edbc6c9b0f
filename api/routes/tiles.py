"""Map tiles of the masks of stored scenes, for QGIS, Leaflet and MapLibre."""

import hashlib
import io
import math
from typing import Any

from flask import Blueprint, Response, g, request, url_for

from api.errors import Problem
from api.routes.items import missing
from api.routes.responses import json_answer, made, product_etag
from api.routes.spec import DEFAULTS
from api.service import service
from api.store.items import Record
from api.uploads import Look
from api.work.png import write_png
from api.work.tiles import SIDE, tile, zoom

blueprint = Blueprint("tiles", __name__)


@blueprint.get("/items/<item_id>/tilejson.json")
def tilejson(item_id: str) -> Response:
    """Where the tiles are, once there is a mask to make them from."""
    with service().store.pinned(item_id) as record:
        ask, etag = _mask_of_tiles(item_id, record)
        assert record
        item = record.item
        west, south, east, north = item["bbox"]
        with made(record.source, ask, etag) as mask:
            finest = zoom(mask, (south + north) / 2)
    place: dict[str, Any] = {"item_id": item_id, "z": 0, "x": 0, "y": 0}
    href = url_for("tiles.map_tile", _external=True, **{**request.args.to_dict(), **place})
    middle = (west + (east if east >= west else east + 360)) / 2
    body = {
        "tilejson": "3.0.0",
        "name": item["properties"].get("title", item_id),
        "tiles": [href.replace("/tiles/0/0/0.png", "/tiles/{z}/{x}/{y}.png")],
        "minzoom": max(0, finest - int(math.log2(max(item["properties"]["proj:shape"])))),
        "maxzoom": finest,
        "bounds": item["bbox"],
        "center": [(middle + 180) % 360 - 180, (south + north) / 2, max(0, finest - 3)],
    }
    return json_answer(body)


@blueprint.get("/items/<item_id>/tiles/<z>/<x>/<y>.png")
def map_tile(item_id: str, z: str, x: str, y: str) -> Response:
    at = g.ask["z"], g.ask["x"], g.ask["y"]
    if max(at[1:]) >= 2 ** at[0]:
        raise Problem(404, f"There are {2 ** at[0]} x {2 ** at[0]} tiles at zoom {at[0]}.")
    with service().store.pinned(item_id) as record:
        ask, etag = _mask_of_tiles(item_id, record)
        assert record
        answer = Response(content_type="image/png")
        etag_of_tile = hashlib.sha256(f"{etag} {at}".encode()).hexdigest()[:32]
        answer.set_etag(etag_of_tile)
        answer.headers["Cache-Control"] = "max-age=60"
        if request.if_none_match.contains_weak(etag_of_tile):
            answer.status_code = 304
            return answer
        with made(record.source, ask, etag) as mask:
            picture = io.BytesIO()
            write_png(picture, (SIDE, SIDE), [tile(mask, *at)])
    answer.set_data(picture.getvalue())
    return answer


def _mask_of_tiles(item_id: str, record: Record | None) -> tuple[dict[str, Any], str]:
    """What to ask of an item for its tiles, and the ETag of that mask."""
    if record is None:
        raise missing(item_id)
    if not record.item["geometry"]:
        raise Problem(422, f"{item_id} has no georeference, and tiles need one.")
    ask = {**DEFAULTS, **g.ask, "response_type": "file", "look": Look.of(g.ask)}
    return ask, product_etag(record.source, ask)
