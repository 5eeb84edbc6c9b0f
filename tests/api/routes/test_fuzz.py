"""Hundreds of broken and hostile uploads: each is refused in words, and the service answers on."""

import collections

from hostile import corpus
from serving import problem, scene


def test_hostile_files_are_refused(server, tmp_path):
    before, counts, wrong = server.workers(), collections.Counter(), []
    for name, data, odd in corpus(tmp_path):
        answer = server.mask(data, name, timeout=20)
        counts[answer.status_code] += 1
        if answer.status_code == 200:  # figures, too, need no more than a mask does
            answer = server.mask(data, name, {"response_type": "json"}, timeout=20)
        if answer.status_code in (413, 422):
            problem(answer, answer.status_code)
        elif answer.status_code != 200 or not odd:
            wrong.append(f"{name}: {answer.status_code} {answer.text[:200]!a}")
    assert not wrong, "\n".join(wrong)
    assert counts.total() >= 200 and counts[422] > 120 and counts[413] > 5, counts
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
