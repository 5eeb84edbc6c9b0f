"""A scene on a web server: read where it lies, window by window."""

import ssl
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import Request, urlopen

from segment.errors import InputError

SCHEMES = ("https", "http")
RETRIES = 6  # then a busy or silent server is given up, after half a minute at most
TIMEOUT = 60  # seconds without an answer
PATIENCE = {  # GDAL's
    "GDAL_HTTP_MAX_RETRY": RETRIES,
    "GDAL_HTTP_RETRY_DELAY": 0.5,
    "GDAL_HTTP_CONNECTTIMEOUT": 10,
    "GDAL_HTTP_TIMEOUT": TIMEOUT,
}
_ANSWERS = {
    401: "the server denies access",
    403: "the server denies access, or the address has expired",
    404: "the server has no such file",
    410: "the server has no such file any more",
}
_RANGES_BEYOND_END = 416


@dataclass(frozen=True, order=True)
class WebPath:
    """A URL that answers the questions that the application asks of the path of a scene."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return PurePosixPath(unquote(urlsplit(self.url).path)).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> "WebPath":
        return WebPath(urljoin(self.url, ".").rstrip("/"))

    def resolve(self) -> "WebPath":
        return self

    def part(self, start: int, count: int) -> bytes:
        """`count` bytes from `start`, fewer at its end; the last ones if `start` is negative."""
        wanted = f"bytes={start}-{start + count - 1}" if start >= 0 else f"bytes=-{count}"
        try:
            with urlopen(Request(self.url, headers={"Range": wanted}), timeout=TIMEOUT) as answer:
                if answer.status == 206:
                    return bytes(answer.read())
        except HTTPError as error:
            if error.code == _RANGES_BEYOND_END:
                return b""
            said = _ANSWERS.get(error.code, "the server can't give it")
            raise InputError(f"{self}: {said} (HTTP {error.code})") from error
        except (URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise InputError(f"{self}: the server can't be reached ({reason})") from error
        raise InputError(
            f"{self}: the server gives whole files only, no parts of them (HTTP ranges): fetch it "
            "first, and name the copy"
        )


def gdal_options(path: WebPath) -> dict[str, Any]:
    """What makes GDAL patient, and trust whom Python trusts; it looks for files beside the path if
    their names can be told."""
    trusted = ssl.get_default_verify_paths().cafile
    return (
        PATIENCE
        | ({"GDAL_CURL_CA_BUNDLE": trusted} if trusted else {})
        | {
            "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR" if urlsplit(path.url).query else "TRUE",
            "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/",  # a scene that was replaced is read anew
        }
    )
