"""gunicorn's worker, but a request gets a thread only once it has arrived, as behind a proxy.

A client that stalls then holds a socket, and a file if it has sent much, but never a thread; nor
does one that is slow to take its answer (`outbox.py`). What is refused by its headers (no token,
too large) is answered before its body is read.
"""

import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from selectors import EVENT_READ, EVENT_WRITE
from typing import IO, Any

from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

from api.access import may_send
from api.errors import DISK_FULL, problem_body, sentence
from api.outbox import RATE, STALL, Outbox
from api.uploads import CHUNK

HEAD_BYTES = 1 << 15
HEAD_SECONDS = 10.0  # to send the headers; also the head start of a body
MEMORY = 1 << 18  # bytes of a request held in memory; what is longer goes to the disk
SPREAD = 0.00025  # seconds that each connection in hand makes a worker slower to take another
LINGER = 3.0  # seconds for a client to read its answer after we have stopped reading
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

MaySend = Callable[[int, str], bool]  # takes the length of a body, and `Authorization`


class Replay(SocketUnreader):
    """What has arrived already, then whatever the socket still brings."""

    arrived: IO[bytes] | None = None

    def chunk(self, size_hint: int | None = None) -> bytes:
        # Never more at once: gunicorn copies what it holds at each read of a kilobyte.
        data = self.arrived.read(self.mxchunk) if self.arrived else b""
        return data or super().chunk(size_hint)

    def finish(self) -> None:
        """Keep what belongs to the next request, and let the file go."""
        if self.arrived:
            self.unread(self.arrived.read())
            self.arrived.close()
            self.arrived = None


class Connection(TConn):
    """A connection that never makes the worker wait while it is closed."""

    whole = True  # the request in hand has arrived
    outbox: Any = None  # an Outbox, once there is an answer
    linger: Callable[["Connection"], None]

    def close(self, graceful: bool = False) -> None:
        if graceful:
            self.linger(self)
        else:
            super().close()


class Arrival:
    """A request on its way in, for whose body `may_send` is asked first."""

    def __init__(self, conn: Connection, folder: str, most: int, may_send: MaySend) -> None:
        self.conn, self.most, self.may_send = conn, most, may_send
        self.start, self.received, self.tail = time.monotonic(), 0, b""
        self.goal: int | None = None  # bytes of the file that let a thread go on
        self.chunked = False
        self.file = tempfile.SpooledTemporaryFile(MEMORY, dir=folder)  # noqa: SIM115

    @property
    def deadline(self) -> float:
        return self.start + HEAD_SECONDS + self.received / RATE

    def take(self, data: bytes) -> bool:
        """Add what came in; whether a thread can go on from here."""
        self.received += len(data)
        if self.goal is None:
            head, end, data = (self.tail + data).partition(b"\r\n\r\n")
            if not end:
                self.tail = head
                return False
            self.goal, self.tail = self._read(head), b""
        self.file.write(data)
        self.tail = (self.tail + data)[-5:]
        # Where this isn't the last chunk after all, the thread reads on from the socket.
        return self.file.tell() >= self.goal or (self.chunked and self.tail == b"0\r\n\r\n")

    def _read(self, head: bytes) -> int:
        request, *lines = head.split(b"\r\n")
        fields = {}
        for line in lines:
            name, _, value = line.decode("latin-1").partition(":")
            fields[name.strip().lower()] = value.strip()
        told = fields.get("content-length", "0")
        self.chunked = "transfer-encoding" in fields
        length = self.most if self.chunked else int(told) if told.isdecimal() else 0
        self.conn.whole = not length or self.may_send(length, fields.get("authorization", ""))
        if "expect" in fields:  # answered here
            lines = [line for line in lines if line[:7].lower() != b"expect:"]
            if length and self.conn.whole:
                self.conn.sock.send(CONTINUE)
        self.file.write(b"\r\n".join([request, *lines, b"", b""]))
        return self.file.tell() + length if self.conn.whole else 0


class Worker(ThreadWorker):
    """Arrivals and farewells are watched by the poller, in the main thread."""

    def init_process(self) -> None:
        self.arrivals: dict[int, Arrival] = {}
        self.departures: dict[int, Connection] = {}
        self.farewells: dict[int, tuple[Connection, float]] = {}
        super().init_process()

    @property
    def settings(self) -> Any:
        return self.wsgi.extensions["minicnn"].settings

    # ------------------------------------------------------------ arriving

    def accept(self, listener: Any) -> None:
        # Whoever has fewer connections is quicker, so that they spread over the workers.
        time.sleep(SPREAD * min(self.nr_conns, 4))
        try:
            sock, address = listener.accept()
        except OSError:  # gone again, or no descriptor is free
            return
        self.nr_conns += 1
        conn = Connection(self.cfg, sock, address, listener.getsockname())
        conn.linger = self.linger
        self.expect(conn)

    def on_client_socket_readable(self, conn: Connection, client: Any) -> None:
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self.expect(conn)

    def expect(self, conn: Connection) -> None:
        settings = self.settings
        conn.sock.setblocking(False)
        folder, admit = str(settings.folder("scratch")), partial(may_send, settings)
        arrival = Arrival(conn, folder, settings.upload_bytes, admit)
        self.arrivals[id(conn)] = arrival
        self.poller.register(conn.sock, EVENT_READ, partial(self.on_arriving, arrival))

    def on_arriving(self, arrival: Arrival, client: Any) -> None:
        try:
            data = client.recv(CHUNK)
            ready = bool(data) and arrival.take(data)
        except BlockingIOError:
            return
        except OSError as error:  # the disk is full, or the client is gone
            self.refuse(arrival, 507 if error.errno in DISK_FULL else 0)
            return
        if ready:
            self.start(arrival)
        elif not data:
            self.refuse(arrival, 0)
        elif arrival.goal is None and arrival.received > HEAD_BYTES:
            self.refuse(arrival, 431)

    def start(self, arrival: Arrival) -> None:
        conn = self._leave(arrival)
        arrival.file.seek(0)
        if not conn.initialized:
            conn.init()
            conn.parser.unreader = Replay(conn.sock)
        conn.parser.unreader.arrived = arrival.file
        self.enqueue_req(conn)

    def _leave(self, arrival: Arrival) -> Connection:
        self.poller.unregister(arrival.conn.sock)
        del self.arrivals[id(arrival.conn)]
        return arrival.conn

    def refuse(self, arrival: Arrival, status: int) -> None:
        """End a connection that brought no request; 0: without a word."""
        conn = self._leave(arrival)
        arrival.file.close()
        self.nr_conns -= 1
        if status:
            self.say(conn.sock, status)
        conn.close(graceful=bool(status))

    def murder_pending(self) -> None:
        """What is called once a second: end what has taken too long, or all that is too many."""
        super().murder_pending()
        now, spare = time.monotonic(), 4 * self.settings.upload_bytes
        crowded = self.nr_conns >= self.worker_connections
        oldest = sorted(self.arrivals.values(), key=lambda arrival: arrival.start)
        for index, arrival in enumerate(oldest):
            spare -= arrival.received
            if now > arrival.deadline or (crowded and index < len(oldest) / 4):
                self.refuse(arrival, 408 if arrival.received else 0)
            elif spare < 0:
                self.refuse(arrival, 503)
        slowest = sorted(self.departures.values(), key=lambda conn: conn.outbox.deadline)
        spare = 4 * self.settings.upload_bytes
        for index, conn in enumerate(slowest):
            spare -= conn.outbox.waiting
            if now > conn.outbox.deadline or (crowded and index < len(slowest) / 4) or spare < 0:
                self.depart(conn)
                self.nr_conns -= 1
                conn.close()
        for conn, end in list(self.farewells.values()):
            if now > end:
                self.gone(conn)

    # ------------------------------------------------------------ leaving

    def finish_request(self, conn: Connection, fs: Any) -> None:
        """A thread is done; what the client hasn't taken of the answer is sent from here."""
        if conn.outbox and conn.outbox.parts and conn.sock.fileno() >= 0:
            conn.sock.setblocking(False)
            self.departures[id(conn)] = conn
            self.poller.register(conn.sock, EVENT_WRITE, partial(self.on_departing, conn, fs))
        else:
            super().finish_request(conn, fs)

    def on_departing(self, conn: Connection, fs: Any, client: Any) -> None:
        try:
            conn.outbox.push()
        except OSError:  # the client is gone
            conn.outbox.close()
        if not conn.outbox.parts:
            self.depart(conn)
            super().finish_request(conn, fs)

    def depart(self, conn: Connection) -> None:
        self.poller.unregister(conn.sock)
        del self.departures[id(conn)]
        conn.outbox.close()
        conn.outbox = None

    def linger(self, conn: Connection) -> None:
        """Let a client read its answer: a socket closed on unread data takes it away."""
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            self.poller.register(conn.sock, EVENT_READ, partial(self.on_leaving, conn))
        except (OSError, ValueError, RuntimeError):  # it is gone, or we are
            conn.close()
            return
        self.farewells[id(conn)] = conn, time.monotonic() + LINGER

    def on_leaving(self, conn: Connection, client: Any) -> None:
        try:
            if client.recv(CHUNK):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.gone(conn)

    def gone(self, conn: Connection) -> None:
        del self.farewells[id(conn)]
        self.poller.unregister(conn.sock)
        conn.close()

    # ------------------------------------------------------------ in a thread

    def handle(self, conn: Connection) -> Any:
        try:
            return super().handle(conn)
        finally:
            conn.parser.unreader.finish()

    def handle_request(self, req: Any, conn: Connection) -> Any:
        conn.sock.settimeout(STALL)
        req.must_close = req.must_close or not conn.whole
        sock, folder = conn.sock, str(self.settings.folder("scratch"))
        conn.outbox = conn.sock = Outbox(sock, folder)
        try:
            return super().handle_request(req, conn)
        finally:
            conn.sock = sock

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """gunicorn's own errors, as problems: it finds the status, we say it."""
        heard = _Heard()
        super().handle_error(req, heard, addr, exc)
        self.say(client, int(heard.data.split()[1]) if heard.data else 500)

    @staticmethod
    def say(client: Any, status: int) -> None:
        body = problem_body(status, sentence(status)).encode()
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        head += "Content-Type: application/problem+json"
        head += f"\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        with suppress(OSError):
            client.send(head.encode() + body)


class _Heard:
    """A socket that listens to gunicorn instead of sending."""

    data = b""

    def gettimeout(self) -> float:
        return 0.0

    def sendall(self, data: bytes) -> None:
        self.data += data
