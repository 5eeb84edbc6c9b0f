"""Who may come in: bearer tokens with quotas, and a rate per client over all workers."""

import fcntl
import hashlib
import hmac
import os
import re
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from flask import g, request

from api.errors import Problem
from api.settings import Settings

DAY = 86_400
OPEN_PATHS = ("/", "/docs", "/openapi.json", "/healthz", "/readyz")


class Key(NamedTuple):
    """Who has a token of the service, and how many pixels it may send a day."""

    name: str
    quota: int


ANYBODY = Key("anybody", 0)  # with the one token, or of a service without any: no quota


def may_send(settings: Settings, length: int, authorization: str) -> bool:
    """Whether a body is worth waiting for; the answer to the request says why it isn't."""
    return length <= settings.upload_bytes and has_token(settings, authorization)


def has_token(settings: Settings, authorization: str) -> bool:
    return _caller(settings, authorization) is not None


def _caller(settings: Settings, authorization: str) -> Key | None:
    """Whose token this is; a service without tokens is open to ANYBODY."""
    kind, _, given = authorization.partition(" ")
    given = given if kind.lower() == "bearer" else ""
    if settings.token and hmac.compare_digest(given.encode(), settings.token.encode()):
        return ANYBODY
    keys = read_keys(settings.keys)
    # Of the token only the hash is known, so that how long the look takes tells nothing of it.
    found = keys.get(hashlib.sha256(given.encode()).hexdigest())
    return found or (None if settings.token or settings.keys else ANYBODY)


def check_token(settings: Settings) -> None:
    """401 without a bearer token, where there are any; pages, docs and health stay open."""
    path = request.path
    if path in OPEN_PATHS or path.startswith(("/static/", "/docs/")):
        return
    g.caller = _caller(settings, request.headers.get("Authorization", ""))
    if request.method != "OPTIONS" and g.caller is None:
        sentence = "This service wants a token: send the header 'Authorization: Bearer TOKEN'."
        raise Problem(401, sentence, {"WWW-Authenticate": "Bearer"})


@cache
def read_keys(path: Path | None) -> dict[str, Key]:
    """The keys of a file, by hash. Each has a line: its name, the SHA-256 of its token, and how
    many megapixels it may send through the network a day. ValueError names a line that is none."""
    keys: dict[str, Key] = {}
    for line in Path(path).read_text().splitlines() if path else ():
        if not line.strip() or line.startswith("#"):
            continue
        told = re.fullmatch(r"\s*([\w.-]{1,64})\s+([0-9a-f]{64})\s+(\d+(?:\.\d+)?)\s*", line)
        if not told or told[1] in {key.name for key in keys.values()}:
            raise ValueError(f"{path}: NAME SHA256 MEGAPIXELS was expected, each once: {line[:40]}")
        keys[told[2]] = Key(told[1], int(float(told[3]) * 1e6))
    return keys


def charge(settings: Settings, pixels: int) -> None:
    """Count pixels towards what the caller may send a day; 429 where that is spent.

    The day is UTC's. The counts of all workers of a machine are in one file a key and day.
    """
    caller: Key = g.get("caller") or ANYBODY
    if caller is ANYBODY:
        return
    now = time.time()
    with spent(settings, caller, now).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        total = int(file.read() or 0) + pixels
        if total > caller.quota:
            left = (caller.quota - total + pixels) / 1e6
            sentence = f"{caller.name} may send {caller.quota / 1e6:g} megapixels a day: "
            sentence += f"{left:.3g} are left, and this is {pixels / 1e6:.3g}."
            raise Problem(429, sentence, {"Retry-After": str(DAY - int(now % DAY))})
        file.truncate(0)
        file.write(str(total))


def spent(settings: Settings, key: Key, now: float) -> Path:
    """The file that holds how many pixels a key has sent on this day."""
    return settings.folder("quota") / f"{int(now // DAY)}-{key.name}"


def check_rate(settings: Settings) -> None:
    """429 past `rate` requests a minute of one client, counted over all workers.

    Each client has a file per minute that grows by one byte a request: appending is atomic.
    """
    path = request.path
    if not settings.rate or path in OPEN_PATHS or path.startswith(("/static/", "/docs/")):
        return
    now = time.time()
    minute = int(now // 60)
    folder = settings.folder("rate")
    client = hashlib.sha256((request.remote_addr or "").encode()).hexdigest()[:32]
    descriptor = os.open(
        folder / f"{minute}-{client}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    try:
        os.write(descriptor, b".")
        count = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if count == 1:
        for old in folder.iterdir():
            if not old.name.startswith((f"{minute}-", f"{minute - 1}-")):
                with suppress(FileNotFoundError):
                    old.unlink()
    if count > settings.rate:
        sentence = f"More than {settings.rate} requests in a minute; wait for the next one."
        raise Problem(429, sentence, {"Retry-After": str(60 - int(now % 60))})
