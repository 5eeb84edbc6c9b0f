"""The worked example of CONTRIBUTING.md: each piece put where it says it goes, and its test run."""

import re
from importlib import import_module
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
PIECES = re.findall(r"```python\n# (\S+)\.py\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def example():
    """The example in its modules, taken out again afterwards; the names its test defines."""
    test: dict = {}
    before = []
    for path, code in PIECES:
        if path.startswith("tests/"):
            exec(code, test)
        else:
            names = vars(import_module(path.removesuffix("/__init__").replace("/", ".")))
            before.append((names, dict(names)))
            exec(code, names)
    yield test
    for names, old in reversed(before):
        names.clear()
        names.update(old)


def test_every_step_has_its_piece():
    """A piece that the pattern misses would go untested."""
    homes = ["naive", "ops", "kernels/cpu/__init__", "layers"]
    assert [path for path, _ in PIECES] == [f"minicnn/{home}" for home in homes] + [
        "tests/minicnn/test_average_pool"
    ]
    assert TEXT.count("```python") == len(PIECES)


def test_the_example_works(example):
    for shape, size in example["SHAPES"]:
        example["test_average_pool"](shape, size)


def test_the_planted_bug_is_found(example, monkeypatch):
    """Step 6: dy to the area's first pixel, which keeps all sums and means."""
    ops = example["ops"]
    right = ops.average_pool2d_backward

    def to_the_first(dy, cache):
        dx, size = 0 * right(dy, cache), cache[1]
        dx[:, : dy.shape[1] * size : size, : dy.shape[2] * size : size] = dy
        return dx

    monkeypatch.setattr(ops, "average_pool2d_backward", to_the_first)
    with pytest.raises(AssertionError):
        example["test_average_pool"](*example["SHAPES"][0])
