"""The notebooks: stored as readers should find them, and (slow) right from top to bottom."""

import ast
import base64
import json
import os
import re
import subprocess
import sys
from copy import deepcopy
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE = re.compile(r"/home/|/root/|/tmp/|/Users/|ipykernel_\d|[A-Z]:\\\\")


def cells(path, kind="code"):
    stored = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in stored["cells"] if cell["cell_type"] == kind]


def tagged(path, tag):
    return [cell for cell in cells(path) if tag in cell["metadata"].get("tags", [])]


def test_all_are_there():
    names = [path.stem.split("_")[0] for path in NOTEBOOKS]
    numbers = "01 02 03 04 04b 05 06 07 08 09 10 10b 11 12"
    assert names == [*numbers.split(), "A", "B", "C", "D"]
    index = (FOLDER.parent / "index.md").read_text()
    pages = re.findall(r"^notebooks/(\w+)$", index, re.M)
    assert pages == [path.stem for path in NOTEBOOKS]  # in the site, in this order


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs(path):
    """Run in order, without an error, a warning, or a trace of the machine that ran them."""
    assert [cell["execution_count"] for cell in cells(path)] == list(range(1, len(cells(path)) + 1))
    for cell in cells(path):
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", output["text"]
    assert not MACHINE.search(path.read_text(encoding="utf-8"))


OURS = {"minicnn", "segment", "api"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_imported_of_ours_is_there(path):
    """A name that moved is found at once, not only where the notebook runs."""
    lines = "\n".join("".join(cell["source"]) for cell in cells(path)).splitlines()
    code = "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for name in (alias.name for alias in node.names):
                assert name.split(".")[0] not in OURS or find_spec(name), f"import {name}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            module = import_module(node.module)
            for name in (alias.name for alias in node.names):
                found = hasattr(module, name) or find_spec(f"{node.module}.{name}")
                assert found, f"from {node.module} import {name}"


def test_a_guides_picture_is_what_its_notebook_stores():
    (cell,) = tagged(FOLDER / "12_ten_tiles.ipynb", "picture:ten-tiles")
    stored = base64.b64decode(cell["outputs"][0]["data"]["image/png"])
    assert (FOLDER.parent / "images" / "ten-tiles.png").read_bytes() == stored


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_picture_has_a_text(path):
    for cell in cells(path):
        pictures = [o for o in cell["outputs"] if "image/png" in o.get("data", {})]
        assert len(pictures) <= 1  # a cell has room for one text
        for picture in pictures:
            assert len(picture["metadata"]["image/png"]["alt"]) > 40
            assert cell["metadata"]["mystnb"]["image"] == picture["metadata"]["image/png"]
            moves = "text/html" in picture["data"]  # and writes its caption itself
            assert moves or len(cell["metadata"]["mystnb"]["figure"]["caption"]) > 40


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_have_stub_check_and_solution(path):
    exercises, checks, solutions = (tagged(path, t) for t in ("exercise", "check", "solution"))
    assert len(exercises) == len(checks) == len(solutions)
    for exercise, check, solution in zip(exercises, checks, solutions, strict=True):
        assert "raise NotImplementedError" in "".join(exercise["source"])
        assert "Your turn" in str(check["outputs"])
        assert "Right." in str(solution["outputs"])
        assert "hide-cell" in solution["metadata"]["tags"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_have_hints_in_levels(path):
    stored = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for text, cell in pairwise(stored):
        if "exercise" in cell["metadata"].get("tags", []):
            assert {"Hint 1", "Hint 2"} <= set(re.findall(r"Hint \d", "".join(text["source"])))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_fits_79_columns(path):
    for cell in cells(path):
        assert [line for line in "".join(cell["source"]).split("\n") if len(line) > 79] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_that_only_draws_is_folded_and_says_what_it_is(path):
    for cell in tagged(path, "hide-input"):
        assert "figures." in "".join(cell["source"])
        assert "picture" in cell["metadata"]["mystnb"]["code_prompt_show"]
    pictures = re.compile(r"^figures\.(pictures|grids|show|states|bars)\(", re.M)
    for cell in cells(path):
        if "assert" not in (source := "".join(cell["source"])) and source.count("\n") > 8:
            assert not pictures.match(source) or "hide-input" in cell["metadata"]["tags"]


@pytest.fixture(scope="module")
def phone(program):
    """A browser of a phone's width, on files alone."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=500,900"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(program("chromedriver")))
    yield driver
    driver.quit()


def moving(path):
    """The pages with sliders that a notebook has stored."""
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    return ["".join(o["data"]["text/html"]) for o in outputs if "text/html" in o.get("data", {})]


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if moving(p)], ids=lambda path: path.stem)
def test_pictures_move_without_python(path, phone, tmp_path):
    """From file://, each slider shows another picture with another text, and so does the button."""
    page = tmp_path / "page.html"
    page.write_text("<meta charset='utf-8'>" + "".join(moving(path)), encoding="utf-8")
    phone.get(page.as_uri())
    for box in phone.find_elements(By.CLASS_NAME, "states"):
        image = box.find_element(By.TAG_NAME, "img")

        def seen(image=image):
            return image.get_attribute("src"), image.get_attribute("alt")

        shown = [seen()]
        for slider in box.find_elements(By.TAG_NAME, "input"):
            first, last = slider.get_attribute("value") == "0", slider.get_attribute("max")
            slider.send_keys(Keys.ARROW_RIGHT if first and last != "0" else Keys.ARROW_LEFT)
            shown.append(seen())
            assert shown[-1][0] != shown[-2][0] and shown[-1][1] != shown[-2][1]
        box.find_element(By.TAG_NAME, "button").click()
        WebDriverWait(phone, 10).until(lambda _, seen=seen, shown=shown: seen() != shown[-1])
        assert image.size["width"] <= 500


@pytest.mark.parametrize("name", ["rotated", "blind-check"])
def test_the_code_of_a_page_runs(name):
    text = (FOLDER.parent / f"{name}.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert "assert" in "".join(blocks)
    exec("\n".join(blocks), {})


@pytest.fixture
def runner(oracle, monkeypatch):
    """The program that runs notebooks, as a module."""
    oracle("nbclient")
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("run")


def test_stale_outputs_are_noticed(runner):
    stored = runner.nbformat.read(FOLDER / "09_accuracy_or_iou.ipynb", as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    printed = next(cell for cell in code if "IoU 0.40" in str(cell.outputs))
    first, *_, last = [o.data for c in code for o in c.outputs if "image/png" in o.get("data", {})]

    fresh = deepcopy(stored)
    assert runner.differences(stored, fresh) == []
    output = printed.outputs[0]
    output.text = output.text.replace("0.40", "0.44")
    assert "0.44" in runner.differences(stored, fresh)[0]
    printed.metadata["tags"] = ["varies"]
    assert runner.differences(stored, fresh) == []
    first["image/png"] = last["image/png"]
    assert "drew another picture" in runner.differences(stored, fresh)[0]


@pytest.mark.parametrize(
    ("stored", "fresh", "same"),
    [
        ("3 roofs", "3 roofs", True),
        ("3 roofs", "4 roofs", False),
        ("3 roofs", "3 trees", False),
        ("3 roofs", "3 roofs, 2 trees", False),
        ("error 1.2e-09", "error 8.1e-10", True),
        ("16,084 m²", "16,090 m²", True),
        ("16,084 m²", "1,084 m²", False),
    ],
)
def test_numbers_may_differ_by_rounding(runner, stored, fresh, same):
    assert runner.same_text(stored, fresh) == same


def test_sheets_have_stubs_and_no_solutions(oracle, tmp_path):
    oracle("nbformat")
    subprocess.run([sys.executable, FOLDER / "sheets.py", tmp_path], check=True)
    assert (tmp_path / "figures.py").is_file() and (tmp_path / "states.html").is_file()
    for path in NOTEBOOKS:
        sheet = tmp_path / path.name
        assert tagged(sheet, "solution") == []
        assert "_solution" not in "".join("".join(cell["source"]) for cell in cells(sheet))
        assert len(tagged(sheet, "exercise")) == len(tagged(path, "exercise"))
        assert len(cells(sheet)) == len(cells(path)) - len(tagged(path, "solution"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_assertion_of_a_check_says_what_was_expected(path):
    for cell in tagged(path, "check"):
        for statement in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(statement, ast.Assert):
                assert statement.msg, ast.unparse(statement)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, oracle):
    """Every assert holds, every solution passes its check, the stored outputs are those of today,
    and it takes at most a minute."""
    oracle("nbclient")
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent.parent)}
    done = subprocess.run(
        [sys.executable, FOLDER / "run.py", path], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


def test_the_pdf_has_every_page_of_the_course(oracle, monkeypatch):
    oracle("pypdf")
    monkeypatch.syspath_prepend(FOLDER.parent)
    pages = import_module("pdf").pages()
    assert pages[0] == "learn" and {f"notebooks/{path.stem}" for path in NOTEBOOKS} <= set(pages)
    assert all(any(FOLDER.parent.glob(f"{page}.*")) for page in pages)


# --- in a browser ---------------------------------------------------------------------------------

WITHOUT = """
import sys, threading
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"rasterio", "safetensors", "threadpoolctl", "tqdm", "shapely"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.platform = "emscripten"
def start(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
"""


def test_the_library_needs_numpy_alone_and_no_second_thread(browser):
    """What the pages that run in a browser import, in a process like one: they draw and train."""
    code = [
        ast.parse("".join(cell["source"]))
        for name in browser.PAGES
        for cell in cells(FOLDER / f"{name}.ipynb")
    ]
    imports = {
        ast.unparse(line)
        for tree in code
        for line in tree.body
        if isinstance(line, ast.Import | ast.ImportFrom)
        and ast.unparse(line).split()[1].split(".")[0] in ("minicnn", "segment")
    }
    code = (
        WITHOUT
        + "\n".join(sorted(imports))
        + """
import numpy as np
from segment.unet import UNet
mc.set_num_threads(4)
image, mask = draw_scene("corvo", 1, 64)
net = UNet(widths=(4, 8))
logits = net.forward(image[None].astype(np.float32), training=True)
loss, dlogits = mc.losses.bce_with_logits(logits, mask[None, ..., None] / np.float32(255))
net.backward(dlogits)
mc.optim.Adam(net).step()
print(mc.num_threads(), np.isfinite(loss))
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "1 True\n", done.stderr


@pytest.fixture
def browser(monkeypatch):
    """The program that builds the pages that run in a browser, as a module."""
    monkeypatch.syspath_prepend(FOLDER.parent)
    return import_module("browser")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def running_pages(tmp_path_factory, oracle):
    """Where pages that run in a browser are served from: with a Pyodide if PYODIDE names one."""
    for package in ("jupyterlite_core", "jupyterlite_pyodide_kernel", "jupyter_server"):
        oracle(package)
    folder = tmp_path_factory.mktemp("lite") / "lite"
    subprocess.run([sys.executable, FOLDER.parent / "browser.py", folder], check=True)
    path = folder / "jupyter-lite.json"
    config = json.loads(path.read_text())
    config["jupyter-config-data"]["exposeAppInBrowser"] = True  # for the commands below
    path.write_text(json.dumps(config))
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/notebooks/index.html?path="
        server.shutdown()


OPEN = """
const shown = window.jupyterapp?.shell.currentWidget;
if (!shown?.context?.isReady) return null;
"""


@pytest.mark.slow
def test_a_page_opens_in_the_browser(running_pages, phone):
    phone.get(running_pages + "02_convolution.ipynb")
    count = "return shown.content.model.cells.length"
    found = WebDriverWait(phone, 120).until(lambda driver: driver.execute_script(OPEN + count))
    assert found == 1 + len(json.loads((FOLDER / "02_convolution.ipynb").read_text())["cells"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif("PYODIDE" not in os.environ, reason="PYODIDE names no folder with a Pyodide")
@pytest.mark.parametrize("name", os.environ.get("PYODIDE_PAGES", "02_convolution").split())
def test_a_page_runs_in_the_browser(running_pages, phone, name):
    """Every assert of it holds in CPython for browsers."""
    phone.get(f"{running_pages}{name}.ipynb")
    idle = "return shown.sessionContext.session?.kernel?.status === 'idle'"
    wait = WebDriverWait(phone, 800, poll_frequency=2)
    wait.until(lambda driver: driver.execute_script(OPEN + idle))
    phone.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    state = """
    const code = shown.content.model.toJSON().cells.filter(cell => cell.cell_type === "code");
    const errors = code.flatMap(cell => cell.outputs.filter(o => o.output_type === "error"));
    return errors.length || code.every(c => c.execution_count) ? errors.map(e => e.evalue) : null
    """

    def errors(driver):
        found = driver.execute_script(OPEN + state)
        return None if found is None else [found]  # an empty list is no answer to `until`

    assert wait.until(errors) == [[]]
