"""Who may come in: the bearer token, and a rate per client over all workers."""

import hashlib
import hmac
import os
import time
from contextlib import suppress

from flask import request

from api.errors import Problem
from api.settings import Settings

OPEN_PATHS = ("/", "/docs", "/openapi.json", "/healthz", "/readyz")


def may_send(settings: Settings, length: int, authorization: str) -> bool:
    """Whether a body is worth waiting for; the answer to the request says why it isn't."""
    return length <= settings.upload_bytes and has_token(settings, authorization)


def has_token(settings: Settings, authorization: str) -> bool:
    given, wanted = authorization.encode(), f"Bearer {settings.token}".encode()
    return not settings.token or hmac.compare_digest(given, wanted)


def check_token(settings: Settings) -> None:
    """401 without the bearer token, where one is set; pages, docs and health stay open."""
    path = request.path
    if not settings.token or path in OPEN_PATHS or path.startswith(("/static/", "/docs/")):
        return
    if request.method != "OPTIONS" and not has_token(
        settings, request.headers.get("Authorization", "")
    ):
        sentence = "This service wants a token: send the header 'Authorization: Bearer TOKEN'."
        raise Problem(401, sentence, {"WWW-Authenticate": "Bearer"})


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
