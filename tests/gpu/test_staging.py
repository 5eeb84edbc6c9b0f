"""Batches on their way to the GPU: none is overwritten before it is used, none used too early.

The stand-in's second stream is as late as it may be, so that a missing wait shows in the numbers.
"""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import strict_cupy

from minicnn import backend

BATCHES = [
    (np.full((2, 4, 4, 3), 10 * i, np.uint8), np.full((2, 4, 4), 10 * i + 1, np.uint8))
    for i in range(7)
]


def check():
    sums, seen = [], []
    for images, labels in backend.staged(iter(BATCHES), "gpu"):
        with strict_cupy.forbid_transfers():
            sums.append(images.max() + labels.max())
        seen.append(images)
    assert [int(s) for s in sums] == [20 * i + 1 for i in range(7)]
    return seen


@pytest.fixture(autouse=True)
def fresh(stand_in):
    pass


def test_batches_arrive_in_order_through_two_places():
    seen = check()
    assert len({id(images) for images in seen}) == 2
    assert strict_cupy.counts["async h2d"] == 2 * len(BATCHES)
    assert strict_cupy.counts["h2d"] == 0


def test_the_next_batch_is_made_before_this_one_is_used():
    made = []

    def batches():
        for batch in BATCHES:
            made.append(batch)
            yield batch

    running = backend.staged(batches(), "gpu")
    next(running)
    assert len(made) == 2


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_batches(count):
    assert len(list(backend.staged(iter(BATCHES[:count]), "gpu"))) == count


def test_a_smaller_last_batch():
    batches = [*BATCHES[:2], tuple(a[:1] for a in BATCHES[2])]
    shapes = [images.shape[0] for images, _ in backend.staged(batches, "gpu")]
    assert shapes == [2, 2, 1]


def test_on_the_cpu_nothing_is_copied():
    assert [id(b) for b in backend.staged(BATCHES, "cpu")] == [id(b) for b in BATCHES]


@pytest.mark.parametrize(
    "old, new",
    [
        ("stream.wait_event(self.copied)", "pass"),
        ("self.copied.synchronize()", "pass"),
        ("copying.wait_event(self.used)", "pass"),
        ("self.used.record(computing)", "pass"),
        ("self.used.record(stream)", "pass"),
        ("_page_locked(a) for", "np.empty_like(a) for"),
        ("deque([_Slot(), _Slot()])", "deque([_Slot()])"),
    ],
)
def test_a_missing_wait_is_found(old, new, monkeypatch):
    staging = import_module("minicnn.kernels.gpu.staging")
    text = Path(staging.__file__).read_text()
    assert text.count(old) == 1
    mutant = {"__name__": "mutant"}
    exec(compile(text.replace(old, new), staging.__file__, "exec"), mutant)
    monkeypatch.setattr(staging, "staged", mutant["staged"])
    with pytest.raises((AssertionError, TypeError)):
        check()
