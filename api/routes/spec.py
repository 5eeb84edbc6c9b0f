"""The contract as OpenAPI 3.1. Requests are checked against this document (`validation.py`)."""

import json
from pathlib import Path
from typing import Any

import minicnn
from api.uploads import MEDIA
from api.work.products import KINDS, VECTOR
from api.work.tiles import ZOOMS

ITEM_ID = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
JOB_ID = "^[0-9a-f]{32}$"
REF = "#/components/schemas/"
DATE = {"type": "string", "format": "date-time"}
TEXT = {"type": "string", "maxLength": 10_000}
BINARY = {"type": "string", "format": "binary"}
GEOJSON = "application/geo+json"
JSON = ("application/json", GEOJSON)
LIST = r"^[A-Za-z0-9._,-]{1,2000}$"
NUMBERS = r"-?\d{1,4}(\.\d{1,12})?"

# The metadata that a client may write: STAC's common ones, and any of its own with a prefix.
PROPERTIES: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": TEXT,
        "description": {**TEXT, "minLength": 1},
        "keywords": {"type": "array", "items": TEXT},
        "datetime": {"anyOf": [DATE, {"type": "null"}]},
        "start_datetime": DATE,
        "end_datetime": DATE,
        "created": DATE,
        "updated": DATE,
        "license": {"type": "string", "pattern": r"^[\w.+() -]+$", "maxLength": 200},
        "platform": TEXT,
        "instruments": {"type": "array", "items": TEXT},
        "constellation": TEXT,
        "mission": TEXT,
        "gsd": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6},
    },
    "patternProperties": {"^[a-z0-9_-]+:": {}},
    "additionalProperties": False,
    "dependentRequired": {
        "start_datetime": ["end_datetime"],
        "end_datetime": ["start_datetime"],
    },
}


def _schema(properties: dict[str, Any], *optional: str) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


LINKS = {"type": "array", "items": _schema({"rel": {"type": "string"}, "href": {"type": "string"}})}
NUMBER, COUNT = {"type": "number"}, {"type": "integer", "minimum": 0}
PLACE = {"type": "number", "minimum": -100_000, "maximum": 100_000}
POINT = {"type": "array", "items": PLACE, "minItems": 2, "maxItems": 2}
SCHEMAS: dict[str, Any] = {
    "Problem": _schema(
        {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {"type": "string", "description": "What was wrong, in one sentence."},
            "request_id": {"type": "string"},
        }
    ),
    "Figures": _schema(
        {
            "buildings": {**COUNT, "description": "How many outlines there are."},
            "built_area_m2": {
                "type": ["number", "null"],
                "description": "On the ground; null where the pixel size is unknown.",
            },
            "built_share": {"type": "number", "minimum": 0, "maximum": 1},
            "threshold": NUMBER,
            "width": COUNT,
            "height": COUNT,
            "pixel_size": {"type": ["number", "null"], "description": "Metres on the ground."},
            "corners": {
                "type": ["array", "null"],
                "items": {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2},
                "description": "Longitude, latitude: upper left, then clockwise.",
            },
            "model": _schema({"id": {"type": "string"}, "threshold": NUMBER}),
            "seconds": _schema({"network": NUMBER, "total": NUMBER}),
        }
    ),
    "Footprints": _schema(
        {
            "type": {"const": "FeatureCollection"},
            "features": {"type": "array", "items": {"type": "object"}},
        }
    ),
    "Item": _schema(
        {
            "type": {"const": "Feature"},
            "stac_version": {"const": "1.1.0"},
            "id": {"type": "string", "pattern": ITEM_ID},
            "geometry": {"type": ["object", "null"]},
            "bbox": {"type": "array", "items": NUMBER},
            "properties": {"type": "object"},
            "links": LINKS,
            "assets": {"type": "object"},
        },
        "bbox",
    ),
    "ItemWrite": {
        "type": "object",
        "description": "A STAC Item. Its properties are taken; where the scene lies, links and "
        "assets come from the stored file.",
        "properties": {
            "type": {"const": "Feature"},
            "id": {"type": "string"},
            "stac_extensions": {
                "type": "array",
                "items": {"type": "string", "pattern": r"^https?://[!-~]{1,500}$"},
                "maxItems": 50,
            },
            "properties": PROPERTIES,
        },
        "required": ["type", "id", "properties"],
    },
    "Edits": _schema(
        {
            "remove": {
                "type": "array",
                "items": {"type": "array", "items": COUNT, "minItems": 2, "maxItems": 2},
                "maxItems": 5000,
                "description": "Pixels (x, y) of buildings that are none.",
            },
            "add": {
                "type": "array",
                "items": {"type": "array", "items": POINT, "minItems": 3, "maxItems": 50},
                "maxItems": 400,
                "description": "Corners (x, y) of buildings that are missing, in pixels.",
            },
        }
    ),
    "Items": _schema(
        {
            "type": {"const": "FeatureCollection"},
            "features": {"type": "array", "items": {"$ref": REF + "Item"}},
            "links": LINKS,
        }
    ),
    "Job": _schema(
        {
            "id": {"type": "string", "pattern": JOB_ID},
            "status": {"enum": ["accepted", "running", "successful", "failed"]},
            "progress": {"type": "integer", "minimum": 0, "maximum": 100},
            "message": {"type": "string"},
            "created": DATE,
            "updated": DATE,
            "links": LINKS,
        }
    ),
    "TileJson": _schema(
        {
            "tilejson": {"const": "3.0.0"},
            "name": {"type": "string"},
            "tiles": {"type": "array", "items": {"type": "string"}},
            "minzoom": COUNT,
            "maxzoom": COUNT,
            "bounds": {"type": "array", "items": NUMBER},
            "center": {"type": "array", "items": NUMBER},
        }
    ),
    "Health": _schema({"status": {"type": "string"}}),
    "Any": {"type": "object"},
}


EXAMPLES = json.loads(Path(__file__).with_name("examples.json").read_bytes())
for _name, _example in EXAMPLES.items():
    SCHEMAS[_name]["examples"] = [_example]


def _query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": text}


def _path(name: str, pattern: str, example: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": pattern}
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


def _header(name: str, text: str, **schema: Any) -> dict[str, Any]:
    kind = {"type": "string", **schema}
    return {"name": name, "in": "header", "schema": kind, "description": text}


KIND = _query(
    "response_type",
    {"type": "string", "enum": list(KINDS)},
    "`file`: the mask as GeoTIFF, 0 and 255; `png`: the photograph with the mask over it; "
    "`geojson`: outlines in WGS 84; `gpkg`, `fgb`, `parquet`: outlines as GeoPackage, FlatGeobuf, "
    "GeoParquet; `json`: figures; `probability`: PNG, level k from "
    "probability k/255 on; `photo`: the scene as the model sees it. Without it, `Accept` decides.",
)
PRODUCT = [
    _query(
        "threshold",
        {"type": "number", "minimum": 0, "maximum": 1},
        "The probability from which a pixel is building; default: the model's own.",
    ),
    _query(
        "min_area",
        {"type": "number", "minimum": 0, "maximum": 1e9, "default": 0},
        "Leave out buildings below so many m²: all but probability and photo.",
    ),
    _query(
        "simplify",
        {"type": "number", "minimum": 0, "maximum": 1000, "default": 0},
        "How far, in metres, an outline may be moved to become simpler: the outlines and json.",
    ),
    _query(
        "right_angles",
        {"type": "boolean", "default": False},
        "Draw outlines with right angles where that fits: the outlines and json.",
    ),
    _query(
        "separate",
        {"type": "boolean", "default": False},
        "Part buildings that touch: the outlines and json.",
    ),
    _query(
        "size",
        {"type": "integer", "minimum": 16, "maximum": 30_000},
        "Reduce probability and photo to so many pixels on the longer side.",
    ),
]
LOOK = [
    _query(
        "pixel_size",
        {"type": "number", "minimum": 0.001, "maximum": 1000},
        "Metres on the ground a pixel, where the file doesn't say or is wrong.",
    ),
    _query(
        "bands",
        {"type": "string", "pattern": r"^[1-9]\d{0,2}(,[1-9]\d{0,2}){2}$"},
        "The bands that are red, green and blue, counted from 1: 4,3,2.",
    ),
    _query(
        "rescale",
        {"type": "string", "pattern": r"^(auto|-?\d{1,9}(\.\d{1,9})?,-?\d{1,9}(\.\d{1,9})?)$"},
        "The values that become black and white, for scenes that aren't 8-bit: 0,3000; or auto.",
    ),
]
DEFAULTS = {parameter["name"]: parameter["schema"].get("default") for parameter in PRODUCT}
PREFER = _header("Prefer", "`respond-async`: answer 202 and a job at once.", maxLength=100)
IF_MATCH = _header("If-Match", "Only if the stored ETag is this one; else 412.", maxLength=200)
IF_NONE = _header("If-None-Match", "`*`: only if nothing is stored; else 412.", maxLength=200)
IF_CHANGED = _header("If-None-Match", "304 if the ETag is still this one.", maxLength=200)
ITEM = _path("item_id", ITEM_ID, EXAMPLES["Item"]["id"])
JOB = _path("job_id", JOB_ID, EXAMPLES["Job"]["id"])

TILE = [
    {"name": name, "in": "path", "required": True, "schema": {"type": "integer", **bounds}}
    for name, bounds in (
        ("z", {"minimum": 0, "maximum": ZOOMS}),
        ("x", {"minimum": 0, "maximum": 2**ZOOMS}),
        ("y", {"minimum": 0, "maximum": 2**ZOOMS}),
    )
]

FILE_FORM = {
    "schema": {
        "type": "object",
        "properties": {"file": {**BINARY, "description": "A GeoTIFF, JPEG or PNG."}},
        "required": ["file"],
    }
}
# Named first for clients that take the bytes as they are, whatever the product.
BYTES = {"application/octet-stream": {"schema": BINARY}}
SCENES = {**BYTES, **{media_type: {"schema": BINARY} for media_type in MEDIA.values()}}
MASKS = {
    **BYTES,
    "image/tiff": {"schema": BINARY},
    "image/png": {"schema": BINARY},
    **{KINDS[kind].media_type: {"schema": BINARY} for kind in VECTOR},
    GEOJSON: {"schema": {"$ref": REF + "Footprints"}},
    "application/json": {"schema": {"$ref": REF + "Figures"}},
}
TITLES = {
    304: "Not changed",
    400: "Malformed, or two ids that differ",
    401: "The token is missing or wrong",
    404: "Not found",
    405: "Method not allowed",
    406: "No such format",
    409: "The job has no result yet",
    412: "A precondition fails",
    413: "Too large",
    415: "No such content type",
    422: "A value or a file that can't be used",
    429: "Too many requests, or pixels",
    500: "A fault of the service",
    503: "Busy; try again after Retry-After",
    507: "The store is full",
}


HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "201": ("Location", {"type": "string"}),
    "202": ("Location", {"type": "string"}),
    "304": ("ETag", {"type": "string"}),
    "401": ("WWW-Authenticate", {"type": "string"}),
    "503": ("Retry-After", {"type": "integer"}),
}
# From an answer with a job to what can be done with it.
FOLLOW = {
    name: {"operationId": name, "parameters": {"job_id": "$response.body#/id"}}
    for name in ("getJob", "getJobResult", "deleteJob")
}


def _answer(text: str, content: dict[str, Any] | str | None = None) -> dict[str, Any]:
    if isinstance(content, str):
        content = {"application/json": {"schema": {"$ref": REF + content}}}
    return {"description": text, **({"content": content} if content else {})}


def _operation(
    name: str,
    tag: str,
    summary: str,
    answers: dict[int, dict[str, Any]],
    errors: tuple[int, ...] = (),
    parameters: list[dict[str, Any]] | None = None,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    # The common errors may come from anywhere: 400 from a broken request line, 429 from the rate
    # limit, 500 from a bug.
    problem = {"application/problem+json": {"schema": {"$ref": REF + "Problem"}}}
    responses = {str(code): answer for code, answer in answers.items()}
    for code in sorted({400, 401, 422, 429, 500, *errors}):
        responses[str(code)] = _answer(TITLES[code], problem if code >= 400 else None)
    for told, (header, schema) in HEADERS.items():
        if told in responses:
            responses[told]["headers"] = {header: {"schema": schema}}
    operation: dict[str, Any] = {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "responses": responses,
    }
    operation |= {"parameters": parameters or [], "security": [{}, {"bearer": []}]}
    if body:
        operation["requestBody"] = {"required": True, "content": body}
    return operation


MADE = _answer("The product", MASKS)
STARTED = {**_answer("A job was started: follow it at Location", "Job"), "links": FOLLOW}
WORK = (406, 413, 503, 507)  # what any request that runs the network may meet

FILTER = [
    _query(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
        "How many.",
    ),
    _query("after", {"type": "string", "pattern": ITEM_ID}, "Start behind this id."),
    _query(
        "bbox",
        {"type": "string", "pattern": rf"^{NUMBERS}(,{NUMBERS}){{3}}((,{NUMBERS}){{2}})?$"},
        "Scenes that meet a box: west, south, east, north in degrees.",
    ),
    _query("ids", {"type": "string", "pattern": LIST}, "These scenes, with commas between."),
    _query("collections", {"type": "string", "pattern": LIST}, "Of these collections: scenes."),
    _query(
        "datetime",
        {"type": "string", "pattern": r"^[0-9TtZz:.+/-]{2,80}$"},
        "Scenes of a time of RFC 3339, or of an interval: 2020-01-01T00:00:00Z/..",
    ),
]
PAGE = _answer("A page of STAC Items", {GEOJSON: {"schema": {"$ref": REF + "Items"}}})
ONE = _answer("The item", {GEOJSON: {"schema": {"$ref": REF + "Item"}}})

PATHS: dict[str, Any] = {
    "/buildings_mask/": {
        "post": _operation(
            "findBuildings",
            "masks",
            "Find the buildings in one scene; nothing is stored",
            {200: MADE, 202: STARTED},
            (415, *WORK),
            [KIND, *PRODUCT, *LOOK, PREFER],
            {"multipart/form-data": FILE_FORM},
        )
    },
    "/items": {
        "get": _operation(
            "listItems", "items", "List the stored scenes, by id", {200: PAGE}, (), FILTER
        )
    },
    "/search": {
        "get": _operation("searchItems", "features", "The same as /items", {200: PAGE}, (), FILTER)
    },
    "/collections/scenes/items": {
        "get": _operation(
            "listCollectionItems", "features", "The same as /items", {200: PAGE}, (), FILTER
        )
    },
    "/collections/scenes/items/{item_id}": {
        "get": _operation(
            "getCollectionItem",
            "features",
            "The same as /items/{item_id}",
            {200: ONE},
            (304, 404),
            [ITEM, IF_CHANGED],
        )
    },
    "/collections/scenes": {
        "get": _operation(
            "getCollection", "features", "The collection of all scenes", {200: _answer("It", "Any")}
        )
    },
    "/collections": {
        "get": _operation(
            "listCollections", "features", "The one collection", {200: _answer("They", "Any")}
        )
    },
    "/conformance": {
        "get": _operation(
            "getConformance", "features", "What is conformed to", {200: _answer("It", "Any")}
        )
    },
    "/items/{item_id}": {
        "put": _operation(
            "putItem",
            "items",
            "Store a scene under an id, or replace its metadata",
            {
                200: _answer("Replaced", "Item"),
                201: _answer("Created", "Item"),
                202: {**_answer("Stored, and a job was started", "Job"), "links": FOLLOW},
            },
            (404, 412, 413, 415, 507),
            [ITEM, IF_MATCH, IF_NONE, PREFER],
            {
                **SCENES,
                "multipart/form-data": FILE_FORM,
                **{kind: {"schema": {"$ref": REF + "ItemWrite"}} for kind in JSON},
            },
        ),
        "get": _operation(
            "getItem",
            "items",
            "A stored scene as a STAC Item",
            {200: ONE},
            (304, 404),
            [ITEM, IF_CHANGED],
        ),
        "delete": _operation(
            "deleteItem",
            "items",
            "Remove a scene",
            {204: _answer("Gone")},
            (404, 412),
            [ITEM, IF_MATCH],
        ),
    },
    "/items/{item_id}/image": {
        "get": _operation(
            "getItemImage",
            "items",
            "The scene's file as it was stored; byte ranges are answered",
            {200: _answer("The file", SCENES)},
            (304, 404),
            [ITEM, IF_CHANGED],
        )
    },
    "/items/{item_id}/mask": {
        "get": _operation(
            "getItemMask",
            "items",
            "The buildings in a stored scene; the network runs once a scene",
            {200: MADE, 202: STARTED},
            (304, 404, *WORK),
            [ITEM, KIND, *PRODUCT, *LOOK, IF_CHANGED, PREFER],
        )
    },
    "/items/{item_id}/tilejson.json": {
        "get": _operation(
            "getItemTileJson",
            "items",
            "Where the map tiles of the mask are, as TileJSON 3.0",
            {200: _answer("It", "TileJson")},
            (404, *WORK[1:]),
            [ITEM, *PRODUCT[:2], *LOOK],
        )
    },
    "/items/{item_id}/tiles/{z}/{x}/{y}.png": {
        "get": _operation(
            "getItemTile",
            "items",
            "A map tile of the mask in Web Mercator, as opaque as there are buildings",
            {200: _answer("The tile", {**BYTES, "image/png": {"schema": BINARY}})},
            (304, 404, *WORK[1:]),
            [ITEM, *TILE, *PRODUCT[:2], *LOOK, IF_CHANGED],
        )
    },
    "/jobs/{job_id}": {
        "get": _operation(
            "getJob", "jobs", "How far a job is", {200: _answer("The job", "Job")}, (404,), [JOB]
        ),
        "delete": _operation(
            "deleteJob",
            "jobs",
            "Stop and forget a job, its upload included",
            {204: _answer("Gone")},
            (404,),
            [JOB],
        ),
    },
    "/jobs/{job_id}/events": {
        "get": _operation(
            "getJobEvents",
            "jobs",
            "Each change of a job as a server-sent event, for at most a minute",
            {200: _answer("Events", {"text/event-stream": {"schema": {"type": "string"}}})},
            (404, 503),
            [JOB],
        )
    },
    "/jobs/{job_id}/result": {
        "get": _operation(
            "getJobResult",
            "jobs",
            "What a finished job found, in any format and at any threshold",
            {200: MADE},
            (304, 404, 409, *WORK),
            [JOB, KIND, *PRODUCT, IF_CHANGED],
        ),
        "post": _operation(
            "correctJobResult",
            "jobs",
            "The same as a person corrected it; the corrections are not kept",
            {200: MADE},
            (404, 409, *WORK),
            [JOB, KIND, *PRODUCT],
            {"application/json": {"schema": {"$ref": REF + "Edits"}}},
        ),
    },
    "/healthz": {
        "get": _operation(
            "getHealth", "health", "The service answers", {200: _answer("Alive", "Health")}
        )
    },
    "/readyz": {
        "get": _operation(
            "getReadiness",
            "health",
            "The model is loaded",
            {200: _answer("Ready", "Health")},
            (503,),
        )
    },
    "/metrics": {
        "get": _operation(
            "getMetrics",
            "health",
            "Counts and times over all workers, for Prometheus",
            {200: _answer("Metrics", {"text/plain": {"schema": {"type": "string"}}})},
        )
    },
}

SPEC: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
        "title": "Buildings in aerial photographs",
        "version": minicnn.__version__,
        "description": "Send an aerial photograph, get the mask of its buildings. "
        "Every error is application/problem+json with one sentence on what was wrong.",
        "license": {"name": "MIT", "identifier": "MIT"},
    },
    "paths": PATHS,
    "components": {
        "schemas": SCHEMAS,
        "securitySchemes": {
            "bearer": {
                "type": "http",
                "scheme": "bearer",
                "description": "Only where the service was started with a token.",
            }
        },
    },
}
