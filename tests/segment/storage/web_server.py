"""A web server of a folder, in a process of its own: GDAL may hold this one's while it asks."""

import http.server
import json
import re
import ssl
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote


class Server(http.server.BaseHTTPRequestHandler):
    """Gives files, and parts of them if it knows of `ranges`; writes down what it is asked for."""

    folder: Path
    log: Path
    ranges = True
    forbids = False

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def _answer(self, body):
        wanted = self.headers.get("Range")
        with self.log.open("a") as log:
            log.write(json.dumps([self.command, self.path, wanted]) + "\n")
        file = self.folder / unquote(self.path.partition("?")[0]).lstrip("/")
        if self.forbids or not file.is_file():
            return self.send_error(403 if self.forbids else 404)
        data = file.read_bytes()
        told = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
        size = len(data)
        if told and self.ranges:
            if not size:
                return self.send_error(416)
            first, last = (int(n) if n else None for n in told.groups())
            start, stop = (first, (last or size) + 1) if first is not None else (size - last, size)
            data = data[start:stop]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def serving(folder, log, certificate="", **how):
    """The address of a server of the folder; `asked` reads what it has been asked for."""
    command = [sys.executable, __file__, str(folder), str(log), str(certificate), json.dumps(how)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        port = server.stdout.readline().strip()
        try:
            yield f"{'https' if certificate else 'http'}://127.0.0.1:{port}"
        finally:
            server.terminate()


def asked(log):
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def main(folder, log, certificate, how):
    here = type("Here", (Server,), {"folder": Path(folder), "log": Path(log), **json.loads(how)})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), here)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
