"""/jobs: how far accepted work is, and what it found."""

import json
import time
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, g, request, stream_with_context

from api.errors import Problem
from api.gate import Connected
from api.routes.responses import job_body, json_answer, product, product_etag
from api.routes.validation import json_body, kind_of_answer
from api.service import service

LISTEN = 60.0  # seconds: a stream holds a thread, and a stop waits for it; clients come again
REPORT = 0.5  # seconds between two looks at a job

blueprint = Blueprint("jobs", __name__)


@blueprint.get("/jobs/<job_id>")
def get(job_id: str) -> Response:
    answer = json_answer(job_body(job_id, _state(job_id)))
    answer.headers["Cache-Control"] = "no-store"
    return answer


@blueprint.get("/jobs/<job_id>/events")
def events(job_id: str) -> Response:
    """Each change of a job's state as a server-sent event, until it is done; for a while."""
    _state(job_id)
    place = service().gate.listener()
    answer = Response(stream_with_context(_events(job_id)), content_type="text/event-stream")
    answer.call_on_close(place.close)
    answer.headers.update({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    return answer


def _events(job_id: str) -> Iterator[str]:
    told, connected, end = "", Connected(request.environ), time.monotonic() + LISTEN
    yield "retry: 1000\n\n"
    while (state := service().jobs.get(job_id)) and time.monotonic() < end:
        body = json.dumps(job_body(job_id, state))
        # A line that says nothing shows proxies, and us, that the other end is still there.
        yield f"data: {body}\n\n" if body != told else ":\n\n"
        if state["status"] in ("successful", "failed"):
            return
        told = body
        time.sleep(REPORT)
        try:
            connected()
        except Problem:
            return
    if not state:
        yield "event: deleted\ndata: {}\n\n"


@blueprint.delete("/jobs/<job_id>")
def delete(job_id: str) -> Response:
    _state(job_id)
    service().jobs.delete(job_id)
    return Response(status=204)


@blueprint.get("/jobs/<job_id>/result")
def result(job_id: str) -> Response:
    return _result(job_id, None)


@blueprint.post("/jobs/<job_id>/result")
def corrected(job_id: str) -> Response:
    """The result as a person corrected it; nothing of that is kept."""
    _state(job_id)
    return _result(job_id, json_body("Edits"))


def _result(job_id: str, edits: dict[str, Any] | None) -> Response:
    state = _state(job_id)
    if state["status"] != "successful":
        waiting = state["status"] != "failed"
        detail = f"The job is {state['status']}: {state['message']}"
        raise Problem(409, detail.rstrip(".") + ".", {"Retry-After": "2"} if waiting else {})
    source, look = service().jobs.source(job_id)
    kind = kind_of_answer(g.ask["response_type"])
    if edits and kind in ("photo", "probability"):
        raise Problem(422, f"Corrections mean nothing to response_type={kind}.")
    ask = {**g.ask, "response_type": kind, "look": look, "edits": edits}
    return product(source, ask, None if edits else product_etag(source, ask))


def _state(job_id: str) -> dict:
    state = service().jobs.get(job_id)
    if state is None:
        raise Problem(404, f"There is no job {job_id}: finished ones are kept for a day or so.")
    return state
