"""Objects in a bucket, named as paths are: what there is, reading, writing, transfers of any size.

boto3 does the transfers: in parallel, in parts, each with a checksum, with retries. Endpoint,
region, profile and credentials are those of the usual AWS variables and files.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from minicnn.files import atomic_write, digest
from segment.errors import InputError, needed
from segment.storage.web import PATIENCE, RETRIES, TIMEOUT

ABSENT = "*"  # as the version to be replaced: none; the write is to be the first
FILES_AT_ONCE = 16


class StorageError(InputError):
    """A bucket, or what it holds, can't be used."""


class Changed(StorageError):
    """A conditional write came too late: another writer was faster."""


class Missing(StorageError):
    """There is no such object, or no such bucket."""


@dataclass(frozen=True, order=True)
class S3Path:
    """An object in a bucket, or all those whose keys begin with it and a slash: a folder.

    Each method asks the server; what `iterdir` yields knows its size and version already.
    """

    bucket: str
    key: str
    etag: str = field(default="", compare=False)  # of the version that was listed
    size: int = field(default=0, compare=False)
    modified: float = field(default=0, compare=False)  # seconds since 1970

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def __truediv__(self, name: str) -> "S3Path":
        return S3Path(self.bucket, f"{self.key}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name or self.bucket

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "S3Path":
        return S3Path(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> "S3Path":
        return self.parent / name

    def resolve(self) -> "S3Path":
        return self

    # ------------------------------------------------------------ what there is

    def is_file(self) -> bool:
        return bool(self.etag or self.listed())

    def is_dir(self) -> bool:
        return not self.etag and bool(self._list(f"{self.key}/".lstrip("/"), MaxKeys=1)["KeyCount"])

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def listed(self) -> "S3Path | None":
        """This object with its size and version; None where there is none."""
        found = self._list(self.key, MaxKeys=1).get("Contents", [])  # the shortest key comes first
        return next((self._file(it) for it in found if self.key and it["Key"] == self.key), None)

    def iterdir(self) -> Iterator["S3Path"]:
        """The files of this folder, then its folders, each sorted."""
        folders: list[S3Path] = []
        more: dict[str, Any] = {}
        while True:
            page = self._list(f"{self.key}/".lstrip("/"), Delimiter="/", **more)
            files = (self._file(it) for it in page.get("Contents", []))
            yield from (file for file in files if not file.key.endswith("/"))  # a folder's marker
            for it in page.get("CommonPrefixes", []):
                folders.append(S3Path(self.bucket, it["Prefix"].rstrip("/")))
            if not page["IsTruncated"]:
                break
            more = {"ContinuationToken": page["NextContinuationToken"]}
        yield from folders

    def glob(self, pattern: str) -> Iterator["S3Path"]:
        """As of a `Path`, without `**`."""
        first, _, rest = pattern.partition("/")
        for child in self.iterdir():
            if fnmatchcase(child.name, first) and not (rest and child.etag):
                yield from child.glob(rest) if rest else [child]

    def beside(self) -> list["S3Path"]:
        """The other objects whose names begin with this one's stem and a dot."""
        found = self._list(f"{self.parent.key}/{self.stem}.".lstrip("/")).get("Contents", [])
        return [self._file(it) for it in found if it["Key"] != self.key]

    def _list(self, prefix: str, **how: Any) -> Any:
        with _in_plain_words(self):
            return _client().list_objects_v2(Bucket=self.bucket, Prefix=prefix, **how)

    def _file(self, entry: Any) -> "S3Path":
        when = entry["LastModified"].timestamp()
        return S3Path(self.bucket, entry["Key"], entry["ETag"], entry["Size"], when)

    # ------------------------------------------------------------ small objects, whole

    def read(self) -> tuple[bytes, str]:
        """The bytes of an object, and their version (ETag); Missing where there is none."""
        with _in_plain_words(self):
            return _got(Bucket=self.bucket, Key=self.key)

    def read_bytes(self) -> bytes:
        return self.read()[0]

    def part(self, start: int, count: int) -> bytes:
        """`count` bytes from `start`, fewer at its end; the last ones if `start` is negative."""
        wanted = f"bytes={start}-{start + count - 1}" if start >= 0 else f"bytes=-{count}"
        with _in_plain_words(self):
            try:
                return _got(Bucket=self.bucket, Key=self.key, Range=wanted)[0]
            except _client().exceptions.ClientError as error:
                if error.response["Error"]["Code"] != "InvalidRange":  # of an empty file
                    raise
                return b""

    def write(self, data: bytes, replaces: str | None = None) -> str:
        """Put an object in one request, whole or not at all; returns its version.

        `replaces` is the version it may replace (ABSENT: none); Changed if another one is there.
        An answer that got lost is no conflict: what the retry finds is then its own.
        """
        condition = {None: {}, ABSENT: {"IfNoneMatch": "*"}}.get(replaces, {"IfMatch": replaces})
        about = {"sha256": hashlib.sha256(data).hexdigest()}
        what = {"Body": data, "Metadata": about, "ChecksumAlgorithm": "SHA256"}
        try:
            with _in_plain_words(self):
                answer = _client().put_object(Bucket=self.bucket, Key=self.key, **what, **condition)
                return answer["ETag"]
        except Changed:
            with suppress(Missing):
                there = self._head()
                if there["Metadata"] == about:
                    return there["ETag"]
            raise
        except Missing as error:
            if replaces in (None, ABSENT):
                raise
            raise Changed(str(error)) from error

    def delete(self, version: str | None = None) -> None:
        """Remove an object; Changed if it is not `version` any more."""
        condition = {"IfMatch": version} if version else {}
        with _in_plain_words(self):
            _client().delete_object(Bucket=self.bucket, Key=self.key, **condition)

    def _head(self) -> Any:
        with _in_plain_words(self):
            return _client().head_object(Bucket=self.bucket, Key=self.key)

    # ------------------------------------------------------------ files of any size

    def upload(self, file: Path) -> None:
        """Put a file, in parts where it is large; it appears whole or not at all."""
        about = {"Metadata": {"sha256": digest(file)}, "ChecksumAlgorithm": "SHA256"}
        with _in_plain_words(self):
            _transfers().upload(str(file), self.bucket, self.key, about).result()

    def download(self, file: Path) -> str:
        """Fetch an object into a file, in parts of one version, which is returned.

        The file appears whole or not at all; InputError where its bytes are not those that
        `upload` or `write` put there.
        """
        head = self._head()
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as temporary, _in_plain_words(self):
            pinned = [_Pinned(head["ContentLength"], head["ETag"])]
            transfers = _transfers()
            transfers.download(self.bucket, self.key, str(temporary), None, pinned).result()
            if head["Metadata"].get("sha256", found := digest(temporary)) != found:
                raise StorageError(f"{self}: it arrived damaged, its checksum does not match")
        return head["ETag"]


class _Pinned:
    """Tells s3transfer which version to fetch, so that no two are ever mixed."""

    def __init__(self, size: int, etag: str) -> None:
        self.size, self.etag = size, etag

    def on_queued(self, future: Any, **_: Any) -> None:
        future.meta.provide_transfer_size(self.size)
        future.meta.provide_object_etag(self.etag)

    def on_progress(self, **_: Any) -> None:
        pass

    on_done = on_progress


# ---------------------------------------------------------------- the connection


def _client() -> Any:
    return _connection(os.getpid())[0]  # a fork must not share its parent's connections


def _transfers() -> Any:
    return _connection(os.getpid())[1]


@lru_cache(maxsize=1)
def _connection(process: int) -> tuple[Any, Any, Any]:
    """The client, its transfers, and the session whose credentials it has."""
    import boto3
    from boto3.s3.transfer import TransferConfig, create_transfer_manager
    from botocore.config import Config

    # boto3 knows AWS_DEFAULT_REGION only; everything else of AWS sets and reads AWS_REGION.
    opened = boto3.Session(region_name=os.environ.get("AWS_REGION"))
    config = Config(
        retries={"mode": "standard", "max_attempts": RETRIES},
        connect_timeout=10,
        read_timeout=TIMEOUT,
        max_pool_connections=2 * FILES_AT_ONCE,
    )
    client = opened.client("s3", config=config)
    client.meta.events.register("needs-retry.s3", _after_half_an_answer)
    return client, create_transfer_manager(client, TransferConfig(max_concurrency=16)), opened


_ALWAYS = {  # in the answers of S3
    "ListObjectsV2": {"IsTruncated"},
    "GetObject": {"ETag", "ContentLength"},
    "HeadObject": {"ETag", "ContentLength"},
    "PutObject": {"ETag"},
    "CreateMultipartUpload": {"UploadId"},
    "UploadPart": {"ETag"},
    "CompleteMultipartUpload": {"ETag"},
}


def _after_half_an_answer(
    response: Any, endpoint: Any, operation: Any, attempts: int, **_: Any
) -> float | None:
    """Seconds to wait before the request is sent again; None: the answer is whole.

    Where a connection breaks amid the headers, Python's http.client knows nothing of it: what came
    looks like a good answer without a body, a full folder like an empty one.
    """
    from botocore.exceptions import ConnectionClosedError

    if response is None or response[0].status_code not in (200, 206):
        return None  # botocore's own business
    if _ALWAYS.get(operation.name, set()) <= response[1].keys():
        return None
    if attempts > RETRIES:
        raise ConnectionClosedError(endpoint_url=endpoint.host)
    return attempts / 4


def session() -> Any:
    """The boto3 session of this process: profile, region, credentials that renew themselves."""
    return _connection(os.getpid())[2]


def gdal_options(path: S3Path) -> dict[str, Any]:
    """What makes GDAL read s3:// as boto3 would; the credentials are in `session`.

    Whether there are files beside the path is asked here: GDAL would list the whole folder, or
    take a connection that broke for a no.
    """
    client = _client()
    endpoint = urlsplit(client.meta.endpoint_url)
    style = (client.meta.config.s3 or {}).get("addressing_style")
    options = PATIENCE | {
        "AWS_S3_ENDPOINT": endpoint.netloc,
        "AWS_HTTPS": "YES" if endpoint.scheme == "https" else "NO",
        "AWS_REGION": client.meta.region_name or "us-east-1",
        "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE" if path.beside() else "EMPTY_DIR",
        "CPL_VSIL_CURL_NON_CACHED": "/vsis3/",  # a scene that was replaced is read anew
    }
    if style != "virtual" and not (endpoint.hostname or "").endswith("amazonaws.com"):
        options["AWS_VIRTUAL_HOSTING"] = "FALSE"
    return options


# ---------------------------------------------------------------- errors in one sentence

_SENTENCES = {
    "NoSuchBucket": "there is no such bucket",
    "AccessDenied": "access is denied to these credentials",
    "403": "access is denied to these credentials",
    "ExpiredToken": "the credentials have expired: renew them",
    "ExpiredTokenException": "the credentials have expired: renew them",
    "TokenRefreshRequired": "the credentials have expired: renew them",
    "RequestExpired": "the credentials have expired: renew them",
    "InvalidAccessKeyId": "the server doesn't know this access key",
    "InvalidToken": "the server refuses the session token",
    "SignatureDoesNotMatch": "the secret key doesn't belong to the access key",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION",
    "SlowDown": "the server is overloaded, after all retries",
    "ServiceUnavailable": "the server is overloaded, after all retries",
    "503": "the server is overloaded, after all retries",
    "400": "the request is refused: the credentials may have expired",  # the answer to a HEAD
    "InvalidBucketName": "that is no bucket's name",
}
_MISSING = {"NoSuchKey", "NoSuchBucket", "404"}
_CHANGED = {"PreconditionFailed", "412", "ConditionalRequestConflict"}


def _got(**wanted: str) -> tuple[bytes, str]:
    """Body and ETag of an object or a part of it; asked for again where the answer breaks off.

    boto3 does that itself, but not for a body, nor for a header that ends within a date.
    """
    from botocore import exceptions as boto

    def ask() -> tuple[bytes, str]:
        answer = _client().get_object(**wanted)
        return answer["Body"].read(), answer["ETag"]

    for _ in range(RETRIES):
        with suppress(ValueError, boto.IncompleteReadError, boto.ResponseStreamingError):
            return ask()
    return ask()


@contextmanager
def _in_plain_words(path: S3Path) -> Iterator[None]:
    """Turn what boto3 says into one sentence that names the path."""
    needed("s3://", "boto3")
    from boto3.exceptions import Boto3Error, RetriesExceededError
    from botocore import exceptions as boto

    try:
        yield
    except InputError:
        raise
    except boto.ClientError as error:
        told = error.response.get("Error", {})
        code, message = str(told.get("Code")), told.get("Message")
        if code in _CHANGED:
            raise Changed(f"{path}: another writer has changed it meanwhile") from error
        if code in _MISSING:
            raise Missing(f"{path}: {_SENTENCES.get(code, 'no such file')}") from error
        sentence = _SENTENCES.get(code, f"the server answers {code} ({message})")
        raise StorageError(f"{path}: {sentence}") from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise StorageError(f"{path}: there are no AWS credentials, or not all of them") from error
    except (boto.ConnectionError, boto.HTTPClientError) as error:
        endpoint = _client().meta.endpoint_url
        raise StorageError(f"{path}: no answer from {endpoint}: is there a network?") from error
    except RetriesExceededError as error:
        raise StorageError(f"{path}: no whole answer ({error.last_exception})") from error
    except (boto.BotoCoreError, Boto3Error, ValueError) as error:
        raise StorageError(f"{path}: {error}") from error
    except OSError as error:
        if error.errno in (None, errno.ECONNRESET, errno.EPIPE):
            raise StorageError(f"{path}: the connection broke ({error})") from error
        raise
