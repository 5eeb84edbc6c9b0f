"""/items: scenes kept under an id, as STAC Items with their masks."""

from typing import Any

from flask import Blueprint, Response, g, request, send_file, url_for

from api.errors import Problem
from api.routes.responses import json_answer, one_range, product, product_etag, started
from api.routes.spec import GEOJSON, JSON
from api.routes.validation import json_body, kind_of_answer, wants_job
from api.service import service
from api.store.items import Record
from api.store.search import wanted
from api.store.stac import COLLECTION, describe, linked, now, replaced
from api.uploads import BODIES, Look, Source, checked, received

blueprint = Blueprint("items", __name__)


@blueprint.get("/items")
def page() -> Response:
    store, ids, limit = service().store, service().store.ids(), g.ask["limit"]
    bbox, when = g.ask["bbox"], g.ask["datetime"]
    names, collections = (set((g.ask[k] or "").split(",")) - {""} for k in ("ids", "collections"))
    if collections and COLLECTION not in collections:
        ids = []
    records: list[Record] = []
    for item_id in ids:
        asked = item_id > (g.ask["after"] or "") and (not names or item_id in names)
        record = store.get(item_id) if asked else None
        if record and wanted(record.item, bbox, when):
            records.append(record)
        if len(records) > limit:
            break
    links = [{"rel": "self", "href": request.url, "type": GEOJSON}]
    if len(records) > limit:
        following = {**request.args, "after": records[limit - 1].item["id"]}
        href = url_for(str(request.endpoint), _external=True, **following)
        links.append({"rel": "next", "href": href, "type": GEOJSON})
    features = [linked(record.item, record.media_type) for record in records[:limit]]
    body: dict[str, Any] = {"type": "FeatureCollection", "features": features, "links": links}
    body |= {"timeStamp": now(), "numberReturned": len(features)}
    if not (bbox or when or names):  # else nobody has counted
        body["numberMatched"] = len(ids)
    return json_answer(body, 200, GEOJSON)


@blueprint.put("/items/<item_id>")
def put(item_id: str) -> Response:
    if request.mimetype in JSON:
        return _put_metadata(item_id)
    if request.mimetype not in (*BODIES, "multipart/form-data"):
        raise Problem(415, "Send a GeoTIFF, JPEG or PNG, or a STAC Item as JSON.")
    with received(service().settings) as source:
        record, created = _put_scene(item_id, source)
        if not wants_job():
            return _stored(record, created)
        answer = started(service().predictor.key(source.digest, Look()), source, Look())
        answer.set_etag(record.etag)
        return answer


def _put_scene(item_id: str, source: Source) -> tuple[Record, bool]:
    settings, info = service().settings, service().predictor.model.info
    # looking at a file takes time, too
    with service().gate.seat(), checked(source, settings, info) as found:
        item, media_type = describe(item_id, found.raster), found.media_type

    def change(before: Record | None) -> dict[str, Any]:
        _preconditions(before)
        if before:
            item["properties"]["created"] = before.item["properties"]["created"]
        return {"item": item, "sha256": source.digest, "media_type": media_type}

    return service().store.replace(item_id, change, source)


def _put_metadata(item_id: str) -> Response:
    body = json_body("ItemWrite")
    if body["id"] != item_id:
        raise Problem(400, "The id in the body is another one than the id in the address.")

    def change(before: Record | None) -> dict[str, Any]:
        _preconditions(before)
        if before is None:
            raise missing(item_id, "store its scene first, then its metadata")
        return {"item": replaced(before.item, body)}

    return _stored(*service().store.replace(item_id, change))


def _preconditions(record: Record | None) -> None:
    """412 where If-Match or If-None-Match doesn't hold for the present version (or its absence)."""
    match, none = request.if_match, request.if_none_match
    etag = record.etag if record else None
    if match and not (etag and match.contains(etag)):
        raise Problem(412, "If-Match names another version than the stored one.")
    if none and etag and none.contains_weak(etag):
        raise Problem(412, "If-None-Match rules out what is stored already.")


def _present(item_id: str) -> Record:
    record = service().store.get(item_id)
    if record is None:
        raise missing(item_id)
    return record


def missing(item_id: str, then: str = "") -> Problem:
    return Problem(404, f"There is no item {item_id}{': ' + then if then else ''}.")


def _stored(record: Record, created: bool) -> Response:
    body = linked(record.item, record.media_type)
    answer = json_answer(body, 201 if created else 200)
    answer.headers["Location"] = url_for("items.get", item_id=record.item["id"])
    answer.set_etag(record.etag)
    return answer


@blueprint.get("/items/<item_id>")
def get(item_id: str) -> Any:
    record = _present(item_id)
    answer = json_answer(linked(record.item, record.media_type), 200, GEOJSON)
    answer.set_etag(record.etag)
    return answer.make_conditional(request)


@blueprint.delete("/items/<item_id>")
def delete(item_id: str) -> Response:
    digest = ""

    def check(record: Record | None) -> None:
        nonlocal digest
        _preconditions(record)
        if record is None:
            raise missing(item_id)
        digest = record.source.digest

    service().store.remove(item_id, check)
    service().predictor.forget(digest)
    return Response(status=204)


@blueprint.get("/items/<item_id>/image")
def image(item_id: str) -> Response:
    one_range()
    with service().store.pinned(item_id) as record:
        if record is None:
            raise missing(item_id)
        ending = record.media_type.replace("image/", ".")
        return send_file(
            record.source.path,
            record.media_type,
            as_attachment=True,
            download_name=item_id + ending,
            conditional=True,
            etag=record.source.digest,
            max_age=0,
        )


@blueprint.get("/items/<item_id>/mask")
def mask(item_id: str) -> Response:
    kind = kind_of_answer(g.ask["response_type"])
    ask = {**g.ask, "response_type": kind, "look": Look.of(g.ask)}
    predictor = service().predictor
    with service().store.pinned(item_id) as record:
        if record is None:
            raise missing(item_id)
        source = record.source
        key = predictor.key(source.digest, ask["look"])
        if wants_job() and not predictor.has(key):
            return started(key, source, ask["look"])
        return product(source, ask, product_etag(source, ask))
