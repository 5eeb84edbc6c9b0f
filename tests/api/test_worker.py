"""Clients that stall, lie or dawdle: each holds a socket, and nobody else notices."""

import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from serving import encode, picture, scene, wait_for

from api.outbox import Outbox

POST = b"POST /buildings_mask/ HTTP/1.1\r\nHost: x\r\n"
POST += b"Content-Type: multipart/form-data; boundary=b\r\n"


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def answer(sock):
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


@pytest.mark.parametrize(
    "start",
    [
        POST + b"Content-Length: 1000\r\n\r\nabc",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        POST,
        b"",
    ],
    ids=["body", "chunks", "headers", "silence"],
)
def test_stalled_clients_stop_nobody(server, start):
    """300 sockets at once, more than there are threads: health and masks are answered."""
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connect(server)).sendall(start)
        for _ in range(4):
            begin = time.monotonic()
            assert server.get("/healthz").ok
            assert time.monotonic() - begin < 1
        assert server.mask(scene()).ok


def test_refused_clients_that_linger_stop_nobody(new_server):
    """They are told why, and don't hang up."""
    with new_server(TOKEN="x") as server, ExitStack() as stack:
        for _ in range(100):
            sock = stack.enter_context(connect(server))
            sock.sendall(POST + b"Content-Length: 1000\r\n\r\nabc")
        begin = time.monotonic()
        assert server.get("/healthz").ok and time.monotonic() - begin < 1
        assert b" 401 " in answer(sock)


def test_what_comes_too_slowly_is_ended(new_server):
    with new_server() as server, connect(server) as slow:
        slow.sendall(POST + b"Content-Length: 1000\r\n\r\nabc")
        told = answer(slow)  # within the time-out of the socket
        assert b" 408 " in told and b"problem+json" in told


def test_a_body_is_not_read_before_its_headers_are_judged(new_server):
    with new_server(TOKEN="x", UPLOAD_MB=1) as server:
        for more, status in (
            (b"Content-Length: 1000\r\n", b"401"),
            (b"Authorization: Bearer x\r\nContent-Length: 2000000\r\n", b"413"),
        ):
            for expect in (b"", b"Expect: 100-continue\r\n"):
                with connect(server) as sock:
                    sock.sendall(POST + more + expect + b"\r\n")  # and no byte of the body
                    assert answer(sock).startswith(b"HTTP/1.1 " + status)
        with connect(server) as sock:
            body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.tif"\r\n\r\n'
            body += scene() + b"\r\n--b--\r\n"
            sock.sendall(POST + b"Authorization: Bearer x\r\nExpect: 100-continue\r\n")
            sock.sendall(b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
            assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(body)
            assert answer(sock).startswith(b"HTTP/1.1 200")


def test_a_connection_is_used_again(server):
    with requests.Session() as session:
        for seed in range(3):
            files = {"file": ("a.png", encode(picture(seed=seed), "PNG"))}
            assert session.post(f"{server.url}/buildings_mask/", files=files, timeout=30).ok
            assert session.get(f"{server.url}/healthz", timeout=9).ok
    with connect(server) as sock:  # two requests in one packet
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        time.sleep(0.5)
        assert sock.recv(65536).count(b"HTTP/1.1 200") == 2


def test_errors_of_the_server_itself_are_problems(server):
    for data, status in (
        (b"NO\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 60 + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 50_000, b"431"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n0\r\n\r\n", b"400"),
    ):
        with connect(server) as sock:
            sock.sendall(data)
            told = answer(sock)
            assert told.startswith(b"HTTP/1.1 " + status), told[:200]
            assert b"application/problem+json" in told and b"<html" not in told


def test_clients_that_read_slowly_stop_nobody(new_server):
    """More of them than there are threads, each with an answer larger than any buffer; and all
    of it comes once they read on."""
    with new_server(WORKERS=1, WORKER_THREADS=4) as server, ExitStack() as stack:
        image = encode(picture(1500, 1500), "GTiff")
        assert server.put("/items/large", image).ok
        sockets = []
        for head in (b"", b"Range: bytes=10-\r\n") * 6:
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", server.port))
            request = b"GET /items/large/image HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            sock.sendall(request + head + b"\r\n")
            sockets.append(sock)
        time.sleep(0.5)
        for _ in range(4):
            begin = time.monotonic()
            assert server.get("/healthz").ok
            assert time.monotonic() - begin < 1
        assert server.mask(scene()).ok
        for sock, start in zip(sockets[:2], (0, 10), strict=True):
            sock.settimeout(20)
            head, _, body = answer(sock).partition(b"\r\n\r\n")
            assert body == image[start:], head


def test_an_answer_in_parts_is_sent_whole_and_in_order(tmp_path):
    file = tmp_path / "middle"
    file.write_bytes(bytes(range(256)) * 9000)
    here, there = socket.socketpair()
    with here, there, file.open("rb") as middle:
        here.settimeout(5)
        there.settimeout(5)
        box = Outbox(here, str(tmp_path))
        box.sendall(b"head")
        box.sendfile(middle, 3, 2_000_000)
        box.sendall(b"tail" * 100_000)
        assert box.waiting > 1_000_000
        got, wanted = b"", b"head" + file.read_bytes()[3:2_000_003] + b"tail" * 100_000
        while len(got) < len(wanted):
            got += there.recv(1 << 20)
            while box.parts and box.push():
                pass
        assert got == wanted and not box.waiting
        box.close()


@pytest.mark.slow
def test_who_takes_nothing_of_an_answer_is_left(new_server):
    with new_server(WORKERS=1) as server, connect(server) as sock:
        assert server.put("/items/large", encode(picture(2500, 2500), "GTiff")).ok
        sock.sendall(b"GET /items/large/image HTTP/1.1\r\nHost: x\r\n\r\n")
        (worker,) = server.workers()
        held = Path(f"/proc/{worker}/fd")
        time.sleep(2)
        before = len(list(held.iterdir()))
        wait_for(lambda: len(list(held.iterdir())) < before, 40)
