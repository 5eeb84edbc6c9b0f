"""POST /buildings_mask/: a photograph in, its buildings out, nothing stored."""

import secrets

from flask import Blueprint, Response, g, request

from api.errors import Problem
from api.routes.responses import product, started
from api.routes.validation import kind_of_answer, wants_job
from api.service import service
from api.uploads import Look, received

blueprint = Blueprint("masks", __name__)


@blueprint.post("/buildings_mask/", strict_slashes=False)
def post() -> Response:
    kind = kind_of_answer(g.ask["response_type"])
    ask = {**g.ask, "response_type": kind, "look": Look.of(g.ask)}
    if request.mimetype != "multipart/form-data":
        raise Problem(415, "Send multipart/form-data, with the scene in the field 'file'.")
    with received(service().settings) as source:
        if wants_job():
            return started(secrets.token_hex(16), source, ask["look"])
        return product(source, ask)
