"""The page for people, the interactive documentation, and the contract itself."""

import json
from pathlib import Path

import flask_swagger_ui
from flask import Blueprint, Response, request, send_from_directory

from api.routes.spec import SPEC

STATIC = Path(__file__).parents[1] / "static"
SWAGGER = Path(flask_swagger_ui.__file__).parent / "dist"

blueprint = Blueprint("pages", __name__)


@blueprint.get("/docs", strict_slashes=False)
def docs() -> Response:
    return send_from_directory(STATIC, "docs.html")


@blueprint.get("/docs/assets/<path:name>")
def docs_assets(name: str) -> Response:
    return send_from_directory(SWAGGER, name, max_age=86400)


@blueprint.get("/openapi.json")
def openapi() -> Response:
    # The server that was asked, behind whatever prefix a proxy gave it.
    document = {**SPEC, "servers": [{"url": request.root_url.rstrip("/")}]}
    return Response(json.dumps(document), content_type="application/json")
