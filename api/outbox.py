"""An answer on its way out: what a client doesn't take at once waits in files, not in a thread."""

import os
import tempfile
import time
from collections import deque
from typing import IO, Any

CHUNK = 1 << 20
STALL = 30.0  # seconds that a client may take nothing of an answer
RATE = 4000  # bytes a second: the slowest reading that is waited for


class Outbox:
    """A thread's socket, which never makes it wait: the worker's main thread sends the rest."""

    def __init__(self, sock: Any, folder: str) -> None:
        self.sock, self.folder = sock, folder
        self.start = self.last = time.monotonic()  # the last is when the client took something
        self.sent = 0
        self.parts: deque[tuple[int, int, int]] = deque()  # a descriptor, from where, to where
        self.spool: IO[bytes] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    @property
    def deadline(self) -> float:
        return STALL + min(self.last, self.start + self.sent / RATE)

    @property
    def waiting(self) -> int:
        """Bytes that are still to be sent."""
        return sum(end - at for _, at, end in self.parts)

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        if not self.parts:
            rest = rest[self._send(rest) :]
        if rest:
            self.spool = self.spool or tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
            at = self.spool.seek(0, os.SEEK_END)
            self.spool.write(rest)
            self.spool.flush()
            self.parts.append((self.spool.fileno(), at, at + len(rest)))

    def sendfile(self, file: IO[bytes], offset: int = 0, count: int = 0) -> None:
        self.parts.append((os.dup(file.fileno()), offset, offset + count))
        while self.parts and self.push():
            pass

    def _send(self, data: memoryview) -> int:
        try:  # a socket with a time-out doesn't block underneath
            sent = os.write(self.sock.fileno(), data)
        except BlockingIOError:
            sent = 0
        self.sent += sent
        return sent

    def push(self) -> bool:
        """Send a little more; whether the client took it."""
        file, at, end = self.parts[0]
        try:
            sent = os.sendfile(self.sock.fileno(), file, at, min(CHUNK, end - at))
        except BlockingIOError:
            return False
        if not sent:
            raise OSError("a file that is being sent has become shorter")
        self.sent, self.last = self.sent + sent, time.monotonic()
        self.parts[0] = file, at + sent, end
        if at + sent == end:
            self._let_go()
        return True

    def _let_go(self) -> None:
        file, *_ = self.parts.popleft()
        if not self.spool or file != self.spool.fileno():
            os.close(file)

    def close(self) -> None:
        """Forget what wasn't sent. The socket stays open."""
        while self.parts:
            self._let_go()
        if self.spool:
            self.spool.close()
