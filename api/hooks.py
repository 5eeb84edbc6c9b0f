"""Around each request: its id, who may come in, the headers of every answer, log and metrics."""

import logging
import re
import secrets
import time

from flask import Flask, Response, g, request
from werkzeug.exceptions import RequestEntityTooLarge

from api import access
from api.routes import health, validation
from api.settings import Settings

# data: and blob: are the pictures that the page and Swagger UI draw themselves
POLICY = (
    "default-src 'self'; img-src 'self' data: blob: {tiles}; style-src 'self' 'unsafe-inline'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

log = logging.getLogger("api")


def install(app: Flask, settings: Settings) -> None:
    tiles = re.match(r"https?://[^/{}\s;,']+", settings.basemap.replace("{s}", "*"))
    policy = POLICY.format(tiles=tiles[0] if tiles else "")

    @app.before_request
    def arrive() -> None:
        g.start = time.perf_counter()
        given = request.headers.get("X-Request-ID", "")
        g.request_id = given if re.fullmatch(r"[\w.-]{1,64}", given) else secrets.token_hex(8)
        health.UNDER_WAY.inc()
        g.counted = True
        if (request.content_length or 0) > settings.upload_bytes:
            raise RequestEntityTooLarge
        access.check_token(settings)
        access.check_rate(settings)
        g.ask = validation.parameters()

    @app.after_request
    def leave(response: Response) -> Response:
        for name, value in {**HEADERS, "Content-Security-Policy": policy}.items():
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
