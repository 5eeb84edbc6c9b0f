"""The pages about the GPU hold what the code says today."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("gpu_tables", DOCS / "gpu_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["gpu.md", "one-kernel.md"])
def test_pages_are_up_to_date(page, tables):
    text = (DOCS / page).read_text()
    assert len(tables.PART.findall(text)) >= 4
    assert tables.filled(text) == text, "run: python docs/gpu_tables.py"
