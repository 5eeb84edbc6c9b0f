"""The stored scenes for OGC API Features and STAC: landing page, conformance, a collection."""

from typing import Any

from flask import Blueprint, Response, request, url_for
from markupsafe import escape

import minicnn
from api.routes import items
from api.routes.pages import STATIC
from api.routes.responses import json_answer
from api.service import service
from api.store.stac import COLLECTION, FIRST_AERIAL_PHOTOGRAPH

CONFORMS = [
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/core",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/geojson",
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/collections",
    "https://api.stacspec.org/v1.0.0/ogcapi-features",
    "https://api.stacspec.org/v1.0.0/item-search",
]

blueprint = Blueprint("features", __name__)


def _link(rel: str, view: str, media_type: str = "application/json") -> dict[str, str]:
    return {"rel": rel, "href": url_for(view, _external=True), "type": media_type}


@blueprint.get("/")
def landing() -> Response:
    """The page for people who ask for HTML, as browsers do; else the landing page of the API."""
    if "text/html" in request.headers.get("Accept", ""):
        page = (STATIC / "index.html").read_text()
        about = escape(service().settings.basemap)
        answer = Response(page.replace("{{ basemap }}", about), content_type="text/html")
    else:
        answer = json_answer(_catalog())
    answer.vary.add("Accept")
    return answer


def _catalog() -> dict[str, Any]:
    links = [
        _link("self", "features.landing"),
        _link("root", "features.landing"),
        _link("service-desc", "pages.openapi", "application/vnd.oai.openapi+json;version=3.1"),
        _link("service-doc", "pages.docs", "text/html"),
        _link("conformance", "features.conformance"),
        _link("data", "features.collections"),
        _link("child", "features.collection"),
        {**_link("search", "features.search", "application/geo+json"), "method": "GET"},
    ]
    return {
        "type": "Catalog",
        "stac_version": "1.1.0",
        "id": "minicnn",
        "title": "Buildings in aerial photographs",
        "description": f"Stored scenes and the masks of their buildings (minicnn "
        f"{minicnn.__version__}).",
        "conformsTo": CONFORMS,
        "links": links,
    }


@blueprint.get("/conformance")
def conformance() -> Response:
    return json_answer({"conformsTo": CONFORMS})


@blueprint.get("/collections")
def collections() -> Response:
    links = [_link("self", "features.collections"), _link("root", "features.landing")]
    return json_answer({"collections": [_collection()], "links": links})


@blueprint.get(f"/collections/{COLLECTION}")
def collection() -> Response:
    return json_answer(_collection())


def _collection() -> dict[str, Any]:
    return {
        "type": "Collection",
        "stac_version": "1.1.0",
        "id": COLLECTION,
        "title": "Scenes",
        "description": "The scenes that clients have stored.",
        "license": "other",
        "extent": {
            "spatial": {"bbox": [[-180, -90, 180, 90]]},
            "temporal": {"interval": [[FIRST_AERIAL_PHOTOGRAPH, None]]},
        },
        "links": [
            _link("self", "features.collection"),
            _link("root", "features.landing"),
            _link("parent", "features.landing"),
            _link("items", "features.collection_items", "application/geo+json"),
        ],
    }


@blueprint.get("/search", endpoint="search")
@blueprint.get(f"/collections/{COLLECTION}/items")
def collection_items() -> Response:
    return items.page()


@blueprint.get(f"/collections/{COLLECTION}/items/<item_id>")
def collection_item(item_id: str) -> Response:
    return items.get(item_id)
