"""/jobs: how far accepted work is, and what it found."""

from flask import Blueprint, Response, g

from api.errors import Problem
from api.routes.responses import job_body, json_answer, product, product_etag
from api.routes.validation import kind_of_answer
from api.service import service

blueprint = Blueprint("jobs", __name__)


@blueprint.get("/jobs/<job_id>")
def get(job_id: str) -> Response:
    answer = json_answer(job_body(job_id, _state(job_id)))
    answer.headers["Cache-Control"] = "no-store"
    return answer


@blueprint.delete("/jobs/<job_id>")
def delete(job_id: str) -> Response:
    _state(job_id)
    service().jobs.delete(job_id)
    return Response(status=204)


@blueprint.get("/jobs/<job_id>/result")
def result(job_id: str) -> Response:
    state = _state(job_id)
    if state["status"] != "successful":
        waiting = state["status"] != "failed"
        detail = f"The job is {state['status']}: {state['message']}"
        raise Problem(409, detail.rstrip(".") + ".", {"Retry-After": "2"} if waiting else {})
    source, look = service().jobs.source(job_id)
    kind = kind_of_answer(g.ask["response_type"])
    ask = {**g.ask, "response_type": kind, "look": look}
    return product(source, ask, product_etag(source, ask))


def _state(job_id: str) -> dict:
    state = service().jobs.get(job_id)
    if state is None:
        raise Problem(404, f"There is no job {job_id}: finished ones are kept for a day or so.")
    return state
