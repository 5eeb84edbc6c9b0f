"""Hundreds of broken and hostile uploads: each is refused in words, and the service answers on."""

import collections
import time

from hostile import corpus
from serving import peaks, problem, scene


def test_hostile_files_are_refused(new_server, tmp_path):
    """Each in under 5 seconds, no worker ever above 600 MB."""
    with new_server() as server:
        refuse_all(server, tmp_path)


def refuse_all(server, tmp_path):
    before, counts, wrong = server.workers(), collections.Counter(), []
    slowest = 0.0, ""
    for name, data, odd in corpus(tmp_path):
        start = time.monotonic()
        answer = server.mask(data, name, timeout=60)
        slowest = max(slowest, (time.monotonic() - start, name))
        counts[answer.status_code] += 1
        if answer.status_code == 200:  # figures, too, need no more than a mask does
            answer = server.mask(data, name, {"response_type": "json"}, timeout=20)
        if answer.status_code in (413, 422):
            problem(answer, answer.status_code)
        elif answer.status_code != 200 or not odd:
            wrong.append(f"{name}: {answer.status_code} {answer.text[:200]!a}")
    assert not wrong, "\n".join(wrong)
    assert counts.total() >= 200 and counts[422] > 120 and counts[413] > 5, counts
    assert slowest[0] < 5, slowest
    assert max(peaks(server)) < 600e6, peaks(server)
    assert set(before) <= set(server.workers()), "a worker died"
    assert server.mask(scene()).ok
    assert not list((server.store / "scratch").iterdir())


def test_hostile_files_are_not_stored(server, tmp_path):
    for number, (name, data, odd) in enumerate(corpus(tmp_path)):
        if number % 5 == 0 and not odd:
            answer = server.put("/items/hostile", data, "image/tiff")
            if answer.status_code in (200, 201):  # what is wrong shows only in its pixels
                answer = server.get("/items/hostile/mask")
                server.delete("/items/hostile")
            assert answer.status_code in (413, 422), f"{name}: {answer.text[:200]!a}"
    assert "hostile" not in server.get("/items").text
