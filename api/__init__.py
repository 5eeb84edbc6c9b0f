"""The mask service: `gunicorn -c docker/gunicorn.conf.py "api:create_app()"`."""

import logging
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flask_swagger_ui
from flask import Flask, Response, g, json, request, send_from_directory
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.middleware.proxy_fix import ProxyFix

from api import checks, errors, followups, health, items, limits, logs, masks, service
from api.settings import Settings
from api.spec import SPEC
from api.uploads import CHUNK, GDAL, Request
from segment.footprints import require_vector

SWAGGER = Path(flask_swagger_ui.__file__).parent / "dist"
STATIC = Path(__file__).parent / "static"
HEADERS = {
    # data: and blob: are the pictures that the page and Swagger UI draw themselves
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

log = logging.getLogger("api")


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """The WSGI application. `config` overrides settings (docs/api.md) from the environment."""
    settings = Settings.load(config)
    os.environ.update(GDAL)
    logs.install()
    require_vector()  # now, not at the first request: it also takes seconds to import
    app = Flask(__name__, static_folder="static")
    app.request_class = Request
    app.config.update(MAX_CONTENT_LENGTH=settings.upload_bytes, TRAP_HTTP_EXCEPTIONS=False)
    app.extensions["minicnn"] = service.build(settings)
    if settings.proxies:
        near = settings.proxies
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=near, x_proto=near, x_host=near, x_prefix=near
        )
    errors.install(app)
    for part in (masks, items, followups, health):
        app.register_blueprint(part.blueprint)
    _pages(app)
    _around_requests(app, settings)
    return app


def _pages(app: Flask) -> None:
    document = json.dumps(SPEC)

    @app.get("/")
    def page() -> Response:
        return send_from_directory(STATIC, "index.html")

    @app.get("/docs", strict_slashes=False)
    def docs() -> Response:
        return send_from_directory(STATIC, "docs.html")

    @app.get("/docs/assets/<path:name>")
    def docs_assets(name: str) -> Response:
        return send_from_directory(SWAGGER, name, max_age=86400)

    @app.get("/openapi.json")
    def openapi() -> Response:
        return Response(document, content_type="application/json")


def _around_requests(app: Flask, settings: Settings) -> None:
    @app.before_request
    def arrive() -> None:
        g.start = time.perf_counter()
        given = request.headers.get("X-Request-ID", "")
        g.request_id = given if re.fullmatch(r"[\w.-]{1,64}", given) else secrets.token_hex(8)
        health.UNDER_WAY.inc()
        g.counted = True
        if (request.content_length or 0) > settings.upload_bytes:
            _swallow(settings)
            raise RequestEntityTooLarge
        limits.check_token(settings)
        limits.check_rate(settings)
        g.ask = checks.parameters()

    @app.after_request
    def leave(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers["X-Request-ID"] = g.get("request_id", "")
        _allow_origin(response, settings)
        seconds = time.perf_counter() - g.get("start", time.perf_counter())
        health.count(response.status_code, seconds)
        about = {"method": request.method, "path": request.path, "status": response.status_code}
        about |= {"ms": round(1000 * seconds, 1), "client": request.remote_addr or ""}
        log.info("request", extra={"about": about})
        return response

    @app.teardown_request
    def gone(error: BaseException | None) -> None:
        if g.pop("counted", False):
            health.UNDER_WAY.dec()


def _swallow(settings: Settings) -> None:
    """Read on for a while where an upload is refused: clients that still send miss the answer."""
    left = min(request.content_length or 0, 4 * settings.upload_bytes)
    stream = request.environ["wsgi.input"]
    while left > 0 and (chunk := stream.read(min(CHUNK, left))):
        left -= len(chunk)


def _allow_origin(response: Response, settings: Settings) -> None:
    """Cross-origin requests, for the origins in the settings only."""
    origin, allowed = request.headers.get("Origin"), settings.cors.split()
    if not origin or not ({origin, "*"} & set(allowed)):
        return
    response.headers["Access-Control-Allow-Origin"] = "*" if "*" in allowed else origin
    response.headers["Access-Control-Expose-Headers"] = "ETag, Location, Retry-After, X-Request-ID"
    response.vary.add("Origin")
    if request.method == "OPTIONS":
        response.headers["Access-Control-Allow-Methods"] = "GET, POST, PUT, DELETE"
        response.headers["Access-Control-Allow-Headers"] = (
            "Authorization, Content-Type, If-Match, If-None-Match, Prefer"
        )
