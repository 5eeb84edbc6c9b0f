"""Server-sent events of jobs: what they tell, and how few may listen."""

import itertools
import json
import os
from contextlib import ExitStack

import pytest
from serving import problem, scene, wait_for

from api.gate import try_lock

ASYNC = {"Prefer": "respond-async"}


@pytest.fixture(scope="module")
def large():
    """A scene that takes the small network some seconds."""
    return scene(1600, 1600, compress="deflate")


def test_a_job_is_told_of_as_it_goes_on(server, large):
    """Server-sent events, as any client of them reads them: each change once, until it is done."""
    job = server.mask(large, headers=ASYNC).headers["Location"]
    with server.get(f"{job}/events", stream=True) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        stream.encoding = "utf-8"
        lines = [line for line in stream.iter_lines(1, True) if line.startswith("data: ")]
    told = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert told[-1] == server.get(job).json() and told[-1]["status"] == "successful"
    assert all(one != other for one, other in itertools.pairwise(told)) and len(told) > 2
    progress = [state["progress"] for state in told]
    assert progress == sorted(progress)
    problem(server.get("/jobs/0123456789abcdef0123456789abcdef/events"), 404)


def test_listeners_are_few_and_leave_their_place(new_server):
    """Each holds a thread; those beyond the places are told to come again, the rest is answered."""
    with new_server(SLOTS=1) as server, ExitStack() as stack:
        job = server.mask(scene(6000, 500, compress="deflate"), headers=ASYNC).headers["Location"]
        streams = [stack.enter_context(server.get(f"{job}/events", stream=True)) for _ in range(8)]
        assert "Retry-After" in server.get(f"{job}/events").headers
        assert server.get("/healthz").ok
        streams[0].close()
        wait_for(lambda: len(listening(server)) == 7, 10)
        server.delete(job)
        for stream in streams[1:]:
            assert b"event: deleted" in list(stream.iter_lines(1))
        wait_for(lambda: not listening(server), 10)


def listening(server):
    """The places of listeners whose lock is held."""
    held = []
    for path in (server.store / "locks").glob("listener[0-9]"):
        descriptor = try_lock(path)
        if descriptor is None:
            held.append(path)
        else:
            os.close(descriptor)
    return held
