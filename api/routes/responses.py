"""How a product is answered: made under the service's limits, sent from the disk."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from flask import Response, request, send_file, url_for

from api.files import scratch_path
from api.gate import Connected, Deadline
from api.service import service
from api.uploads import Look, Source, check
from api.work.products import KINDS, make


def product(source: Source, ask: Mapping[str, Any], etag: str | None = None) -> Response:
    """Make what was asked of a scene and answer it; with its `etag`, 304 where that is known."""
    kind = KINDS[ask["response_type"]]
    if etag and request.if_none_match.contains_weak(etag):
        return Response(status=304, headers={"ETag": f'"{etag}"'})
    settings, predictor = service().settings, service().predictor
    deadline, connected = Deadline(settings.timeout), Connected(request.environ)

    def step(share: float | None) -> None:
        deadline()
        connected()

    with service().gate.seat(), scratch_path(settings) as out:
        check(source, settings, predictor.model.info, ask["look"])
        make(predictor, source, ask, out, step)
        # opens the file: its name goes at the end of the block, its bytes when they are sent
        response = send_file(
            out,
            kind.media_type,
            as_attachment=True,
            download_name=PurePath(source.name).stem + kind.ending,
            etag=False,
            max_age=0,
        )
    response.headers["Vary"] = "Accept, Prefer"
    if etag:
        response.set_etag(etag)
    return response


def product_etag(source: Source, ask: Mapping[str, Any]) -> str:
    """The same as long as the scene, the model and the question are."""
    names = (
        "response_type",
        "threshold",
        "min_area",
        "simplify",
        "right_angles",
        "separate",
        "size",
    )
    key = service().predictor.key(source.digest, ask["look"])
    text = json.dumps([key, source.name, [ask[name] for name in names]])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def started(job_id: str, source: Source, look: Look) -> Response:
    """202 with the job that looks for the buildings of a scene."""
    with service().gate.seat():
        check(source, service().settings, service().predictor.model.info, look)
    state = service().jobs.add(job_id, source, look)
    response = json_answer(job_body(job_id, state), 202)
    response.headers["Location"] = url_for("jobs.get", job_id=job_id)
    response.headers["Preference-Applied"] = "respond-async"
    return response


def job_body(job_id: str, state: Mapping[str, Any]) -> dict[str, Any]:
    shown = ("status", "progress", "message", "created", "updated")
    links = [{"rel": "self", "href": url_for("jobs.get", job_id=job_id)}]
    if state["status"] == "successful":
        links.append({"rel": "results", "href": url_for("jobs.result", job_id=job_id)})
    return {"id": job_id, **{name: state[name] for name in shown}, "links": links}


def json_answer(
    body: Mapping[str, Any], status: int = 200, media_type: str = "application/json"
) -> Response:
    return Response(json.dumps(body), status, content_type=media_type)
