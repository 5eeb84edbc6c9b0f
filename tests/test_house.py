"""The house keeps its shape: who may import whom, how large rooms and functions may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES, PARAMETERS = 60, 8  # of a function; self and cls are not counted

# Each room, from the top down: it may import its own files and what stands below it, never above.
# What stands on one line is of one height, and none of it imports another.
SEGMENT = """
batch align
train selfcheck
evaluate
merge
predict
synthetic
export summary
model
run_settings
data
geo
run_folder
cli
storage
plots errors interrupts progress unet
"""
API = """
__init__
hooks
routes
service worker
work
store
gate access uploads files
errors settings logs file_headers outbox
"""


def modules(package):
    return {path: ast.parse(path.read_text()) for path in (ROOT / package).rglob("*.py")}


def room(path, package):
    """The file or folder of the package that a module belongs to."""
    return path.relative_to(ROOT / package).parts[0].removesuffix(".py")


def arrows(package):
    """(room, imported room, where) for every import within a package."""
    for path, tree in modules(package).items():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                top, *rest = name.split(".")
                if top == package and rest:
                    yield room(path, package), rest[0], f"{path.relative_to(ROOT)}:{node.lineno}"


@pytest.mark.parametrize(("package", "order"), [("segment", SEGMENT), ("api", API)])
def test_rooms_import_downwards_only(package, order):
    height = {name: -level for level, line in enumerate(order.split("\n")) for name in line.split()}
    rooms = {room(path, package) for path in modules(package)} - {"__init__"}
    assert rooms - height.keys() == set(), "which of the others do they stand on?"
    wrong = [
        f"{where} imports {other}"
        for own, other, where in arrows(package)
        if own != other and own in height and other in height and height[own] <= height[other]
    ]
    assert wrong == []


def test_segment_knows_nothing_of_api_and_minicnn_of_neither():
    for package, others in (("segment", {"api"}), ("minicnn", {"segment", "api"})):
        for path, tree in modules(package).items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom | ast.Import):
                    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                    names += [alias.name for alias in node.names]
                    assert not {name.split(".")[0] for name in names} & others, path


@pytest.mark.parametrize("package", ["minicnn", "segment", "api"])
def test_functions_are_short(package):
    found = []
    for path, tree in modules(package).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                given = [each for each in given if each.arg not in ("self", "cls")]
                if lines > LINES or len(given) > PARAMETERS:
                    what = f"{lines} lines, {len(given)} parameters"
                    found.append(f"{path.relative_to(ROOT)}: {node.name} has {what}")
    assert found == []


def test_no_room_grows_beyond_what_is_stated():
    done = subprocess.run([sys.executable, ".ci/size"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kernels" in done.stdout and "storage" in done.stdout and "routes" in done.stdout
