"""How many masks a second the service makes, how long each takes, and whether its memory stays.

    python benchmarks/api_load.py URL SCENE [--clients 1 8 32] [--seconds 20] [--fresh]

Bounded in time and in clients; meant for a service on this machine. Without --fresh every request
asks for the same scene, which the service has at hand after the first: what is measured is all but
the network. With --fresh no two scenes are equal (the last byte is a counter's), so each is
computed. Refusals for back-pressure (503) are counted apart, and retried when the service says so.
"""

import argparse
import http.client
import itertools
import statistics
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

BOUNDARY = "minicnn-load"


def body_of(scene: bytes, number: int) -> bytes:
    """A multipart body; the bytes behind a TIFF's end mean nothing, but make it another file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.tif"\r\n\r\n'
    return head.encode() + scene + str(number).encode() + f"\r\n--{BOUNDARY}--\r\n".encode()


class Load:
    def __init__(self, url: str, scene: bytes, fresh: bool) -> None:
        self.address, self.scene, self.fresh = urlsplit(url).netloc, scene, fresh
        self.numbers = itertools.count(time.time_ns())
        self.seconds: list[float] = []
        self.codes: Counter[int] = Counter()

    def run(self, clients: int, seconds: float = 1e9, requests: int = 10**9) -> None:
        """Let `clients` ask one after the other, until time or number is up."""
        self.seconds, self.codes = [], Counter()
        end, left = time.monotonic() + seconds, iter(range(requests))

        def client() -> None:
            connection = http.client.HTTPConnection(self.address, timeout=120)
            headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
            while time.monotonic() < end and next(left, None) is not None:
                body = body_of(self.scene, next(self.numbers) if self.fresh else 0)
                start = time.perf_counter()
                connection.request("POST", "/buildings_mask/", body, headers)
                answer = connection.getresponse()
                answer.read()
                self.codes[answer.status] += 1
                if answer.status == 200:
                    self.seconds.append(time.perf_counter() - start)
                else:
                    time.sleep(min(1.0, float(answer.headers.get("Retry-After") or 0)))
            connection.close()

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url")
    parser.add_argument("scene", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    load = Load(options.url, options.scene.read_bytes(), options.fresh)
    load.run(clients=1, requests=3)
    print("| clients | masks/s | p50, ms | p99, ms | refused |")
    print("|---|---|---|---|---|")
    for clients in options.clients:
        start = time.monotonic()
        load.run(clients, options.seconds)
        took = time.monotonic() - start
        cuts = statistics.quantiles(load.seconds, n=100)
        refused = load.codes[503]
        assert set(load.codes) <= {200, 503}, load.codes
        print(
            f"| {clients} | {len(load.seconds) / took:.1f} | {1000 * cuts[49]:.0f} "
            f"| {1000 * cuts[98]:.0f} | {refused} |"
        )


if __name__ == "__main__":
    main()
