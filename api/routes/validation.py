"""Requests against the contract: parameters, JSON bodies and Accept, checked by the spec itself."""

import math
import re
from typing import Any

from flask import g, json, request
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import best_match
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from api.errors import Problem
from api.routes.spec import DEFAULTS, PATHS, SCHEMAS
from api.store.stac import utc
from api.work.products import KINDS

BODY_BYTES = 1_000_000  # of JSON
formats = FormatChecker(formats=())


@formats.checks("date-time", raises=ValueError)
def _date_time(value: object) -> bool:
    """RFC 3339, with its zone."""
    if isinstance(value, str):
        utc(value)
    return True


def parameters() -> dict[str, Any]:
    """Path and query parameters of this request, read and checked; defaults (or None) filled in."""
    rule = re.sub(r"<(\w+)>", r"{\1}", str(request.url_rule))
    method = "get" if request.method == "HEAD" else request.method.lower()
    known = {p["name"]: p for p in PATHS.get(rule, {}).get(method, {}).get("parameters", [])}
    if rule not in PATHS or method == "options":
        return {}
    names = [name for name, p in known.items() if p["in"] == "query"]
    for name in request.args:
        if name not in names:
            takes = f"this address takes {', '.join(names)}" if names else "none is taken here"
            raise Problem(422, f"There is no parameter {name!r}: {takes}.")
        if len(request.args.getlist(name)) > 1:
            raise Problem(422, f"The parameter {name!r} was given more than once.")
    values = {}
    for name, parameter in known.items():
        schema = parameter["schema"]
        where: dict[str, Any] = {"query": request.args, "header": request.headers}
        where["path"] = request.view_args
        text = where[parameter["in"]].get(name)
        value = schema.get("default") if text is None else _read(name, text, schema)
        if text is not None:
            if not text.isprintable():  # `$` in a pattern lets a line feed through
                raise Problem(422, f"The parameter {name!r} holds unprintable characters.")
            _validate(value, schema, f"The parameter {name!r}")
        values[name] = value
    return values


def _read(name: str, text: str, schema: dict[str, Any]) -> Any:
    kind = schema.get("type")
    if kind == "boolean":
        return {"true": True, "false": False}.get(text, text)
    if kind not in ("number", "integer"):
        return text
    try:
        if not re.fullmatch(r"-?[0-9.eE+-]+", text):
            raise ValueError
        value = int(text) if kind == "integer" else float(text)
        if not math.isfinite(value):
            raise ValueError
    except ValueError:
        article = "a whole number" if kind == "integer" else "a number"
        raise Problem(422, f"The parameter {name!r} must be {article}.") from None
    return value


def _validate(value: Any, schema: dict[str, Any], what: str) -> None:
    error = best_match(Draft202012Validator(schema, format_checker=formats).iter_errors(value))
    if error:
        where = ".".join(str(part) for part in error.path)
        raise Problem(422, f"{what}{' at ' + where if where else ''}: {error.message[:300]}.")


def json_body(schema: str) -> dict[str, Any]:
    """The JSON object that this request brings, valid by a schema of the spec."""
    text = request.stream.read(BODY_BYTES + 1)
    if len(text) > BODY_BYTES:
        raise Problem(413, f"A JSON body may have {BODY_BYTES // 1000} kB.")
    try:
        body = json.loads(text.decode(), parse_constant=_refuse, parse_float=_finite)
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        raise Problem(400, "The body is no JSON in UTF-8.") from None
    _validate(body, SCHEMAS[schema], "The body")
    return body


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)


def kind_of_answer(asked: str | None) -> str:
    """The response_type: as asked for, or what `Accept` likes best; 406 where there is none."""
    kind = asked or _accepted()
    for name in DEFAULTS:
        if g.ask[name] and name not in KINDS[kind].takes:  # generated clients send the defaults
            raise Problem(422, f"The parameter {name!r} means nothing to response_type={kind}.")
    return kind


def _accepted() -> str:
    offers = {KINDS[kind].media_type: kind for kind in ("file", "png", "geojson", "json")}
    header = re.sub(r";\s*(?!q=)[^;,]*", "", request.headers.get("Accept", ""))  # less parameters
    if not header:
        return "file"
    best = parse_accept_header(header, MIMEAccept).best_match(list(offers))
    if best is None:
        raise Problem(406, f"Accept names none of {', '.join(offers)}.")
    return offers[best]


def wants_job() -> bool:
    return "respond-async" in re.split(r"[,;\s]+", request.headers.get("Prefer", "").lower())
