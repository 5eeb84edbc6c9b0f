"""How a product is answered: made under the service's limits, sent from the disk."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any

from flask import Response, request, send_file, url_for

from api import access
from api.files import scratch_path
from api.gate import Connected, Deadline
from api.routes.spec import DEFAULTS
from api.service import service
from api.uploads import Look, Source, checked
from api.work.products import KINDS, make


def product(source: Source, ask: Mapping[str, Any], etag: str | None = None) -> Response:
    """Make what was asked of a scene and answer it; with its `etag`, 304 where that is known."""
    kind = KINDS[ask["response_type"]]
    if etag and request.if_none_match.contains_weak(etag):
        return Response(status=304, headers={"ETag": f'"{etag}"'})
    one_range()
    with made(source, ask, etag) as out:
        # opens the file: its name may go at the end of the block, its bytes when they are sent
        response = send_file(
            out,
            kind.media_type,
            as_attachment=True,
            download_name=PurePath(source.name).stem + kind.ending,
            etag=etag or False,
            conditional=out.parent == service().predictor.folder,
            max_age=0,
        )
    response.headers["Vary"] = "Accept, Prefer"
    return response


@contextmanager
def made(source: Source, ask: Mapping[str, Any], etag: str | None) -> Iterator[Path]:
    """The file of a product. A mask with an `etag` is kept: it is asked for in parts, as tiles."""
    settings, predictor = service().settings, service().predictor
    kept = None
    if etag and ask["response_type"] == "file":
        kept = predictor.mask_file(source.digest, etag)
        if kept.exists():
            with suppress(OSError):  # where it can't be written it isn't evicted either
                os.utime(kept)
            yield kept
            return
    deadline, connected = Deadline(settings.timeout), Connected(request.environ)

    def step(share: float | None) -> None:
        deadline()
        connected()

    info, look = predictor.model.info, ask["look"]
    with service().gate.seat(), scratch_path(settings) as out:
        with checked(source, settings, info, look) as found:
            known = predictor.has(predictor.key(source.digest, look))
            if ask["response_type"] != "photo" and not known:
                access.charge(settings, found.pixels)
            ask = {"edits": None, **ask, "kept": kept}
            make(predictor, source, found.raster, ask, out, step)
        if kept:
            predictor.grown += out.stat().st_size
            os.replace(out, kept)
        yield kept or out


def one_range() -> None:
    """Several ranges, or none of bytes, are answered with the whole (RFC 9110, 14.2)."""
    if not re.fullmatch(r"bytes=(\d+-\d*|-\d+)", request.headers.get("Range", "")):
        request.environ.pop("HTTP_RANGE", None)


def product_etag(source: Source, ask: Mapping[str, Any]) -> str:
    """The same as long as the scene, the model and the question are."""
    key = service().predictor.key(source.digest, ask["look"])
    asked = [ask[name] for name in ("response_type", *DEFAULTS)]
    text = json.dumps([key, source.name, asked])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def started(job_id: str, source: Source, look: Look) -> Response:
    """202 with the job that looks for the buildings of a scene."""
    settings, predictor, jobs = service().settings, service().predictor, service().jobs
    with service().gate.seat(), checked(source, settings, predictor.model.info, look) as found:
        pixels = found.pixels
    before = jobs.get(job_id)
    if not (before and before["status"] != "failed") and not predictor.has(
        predictor.key(source.digest, look)
    ):
        access.charge(settings, pixels)
    state = jobs.add(job_id, source, look)
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
