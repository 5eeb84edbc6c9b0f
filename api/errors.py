"""Every error the service answers with: problem+json (RFC 9457), one clear sentence, no more."""

import errno
import json
import logging
import re
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, g, request
from gunicorn.http.errors import (
    NoMoreData,
    ParseException,
)
from werkzeug.exceptions import HTTPException

from segment.errors import DiskFull, InputError
from segment.storage.s3 import StorageError

log = logging.getLogger("api")

SENTENCES = {
    400: "The request is malformed.",
    404: "There is nothing at this address.",
    405: "This address doesn't take this method; the Allow header lists those it takes.",
    408: "The request didn't arrive in time.",
    413: "The upload is larger than this service takes.",
    431: "The headers are too long.",
    500: "Something went wrong here; the log holds the details under the request id.",
    503: "The service is busy; try again in a few seconds.",
    507: "The disk of this service is full.",
}
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


class Problem(Exception):
    """Raise it anywhere in a request: the client gets this status and sentence."""

    def __init__(
        self, status: int, detail: str, headers: dict[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.headers, self.members = headers or {}, members


def problem(
    status: int, detail: str, headers: dict[str, str] | None = None, **members: Any
) -> Response:
    body = problem_body(status, detail, request_id=g.get("request_id", ""), **members)
    response = Response(body, status, content_type="application/problem+json")
    response.headers.update(headers or {})
    return response


def problem_body(status: int, detail: str, **members: Any) -> str:
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    return json.dumps({**body, "detail": detail, **members})


def sentence(status: int) -> str:
    return SENTENCES.get(status, HTTPStatus(status).phrase + ".")


def disk_is_full(error: BaseException) -> bool:
    """Whether this, or what it came from, is that there is no room on a disk."""
    while error.__cause__ and not isinstance(error, DiskFull):
        error = error.__cause__
    return isinstance(error, DiskFull) or getattr(error, "errno", None) in DISK_FULL


def install(app: Flask) -> None:
    @app.errorhandler(Problem)
    def raised(error: Problem) -> Response:
        return problem(error.status, error.detail, error.headers, **error.members)

    @app.errorhandler(StorageError)
    def bucket(error: StorageError) -> Response:
        log.exception("the store")
        return problem(503, "The store can't be reached; try again later.", {"Retry-After": "30"})

    @app.errorhandler(InputError)
    def own_file(error: InputError) -> Response:
        """A sentence about a file of the service itself: uploads get theirs in `uploads.py`."""
        log.exception("a file of the service")
        if disk_is_full(error):
            return problem(507, sentence(507))
        return problem(500, SENTENCES[500])

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        status = error.code or 500
        if error.response is not None or status < 400:  # a redirection is no problem
            return error.get_response()  # type: ignore[return-value]
        kept = ("Allow", "Retry-After", "WWW-Authenticate", "Content-Range")
        headers = {k: v for k, v in error.get_headers(request.environ) if k in kept}
        return problem(status, sentence(status), headers)

    @app.errorhandler(ParseException)
    @app.errorhandler(NoMoreData)
    def broken_body(error: Exception) -> Response:
        return problem(400, sentence(400))

    @app.errorhandler(TimeoutError)
    def stalled(error: TimeoutError) -> Response:
        return problem(408, sentence(408))

    @app.errorhandler(Exception)
    def unforeseen(error: Exception) -> Response:
        if disk_is_full(error):
            return problem(507, sentence(507))
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            return problem(507, "The store of this service can't be written.")
        log.exception("unforeseen error")
        return problem(500, SENTENCES[500])


# What `segment` advises to whoever types commands, for whoever sends requests.
PARAMETERS = {
    "--bands": "the parameter 'bands' says which three to read",
    "--value-range": "the parameter 'rescale' says which values are black and white",
}


def plain(error: InputError, path: str, name: str) -> str:
    """What `segment` says, for someone who sees no files and no commands of the server."""
    said = re.sub(r"^--[^:]*: ", "", error.problem.replace(path, name))
    # Advice to whoever types a command may stand in a clause of its own.
    said = re.split(r"[;:,] (?=[^;:,]*--[a-z])", said)[0].rstrip(".")
    advice = [ours for option, ours in PARAMETERS.items() if option in error.advice]
    return ": ".join([said, *advice]) + "."
