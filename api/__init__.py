"""The mask service: `gunicorn -c docker/gunicorn.conf.py "api:create_app()"`."""

import os
from collections.abc import Mapping
from typing import Any

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from api import access, errors, hooks, logs, service
from api.routes import features, health, items, jobs, masks, pages, tiles
from api.settings import Settings
from api.uploads import GDAL, Request
from segment.geo.footprints import require_vector


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """The WSGI application. `config` overrides settings (docs/api.md) from the environment."""
    settings = Settings.load(config)
    os.environ.update(GDAL)
    logs.install()
    access.read_keys(settings.keys)  # what is wrong with them is said at the start
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
    for part in (masks, items, tiles, features, jobs, health, pages):
        app.register_blueprint(part.blueprint)
    hooks.install(app, settings)
    return app
