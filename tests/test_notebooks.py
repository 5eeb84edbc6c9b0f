"""The notebooks: stored as readers should find them, and (slow) right from top to bottom."""

import ast
import json
import os
import re
import subprocess
import sys
from copy import deepcopy
from importlib import import_module
from pathlib import Path

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
    numbers = "01 02 03 04 04b 05 06 07 08 09 10 10b 11"
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_picture_has_a_text(path):
    for cell in cells(path):
        pictures = [o for o in cell["outputs"] if "image/png" in o.get("data", {})]
        assert len(pictures) <= 1  # a cell has room for one text
        for picture in pictures:
            assert len(picture["metadata"]["image/png"]["alt"]) > 40
            assert cell["metadata"]["mystnb"]["image"] == picture["metadata"]["image/png"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_have_stub_check_and_solution(path):
    exercises, checks, solutions = (tagged(path, t) for t in ("exercise", "check", "solution"))
    assert len(exercises) == len(checks) == len(solutions)
    for exercise, check, solution in zip(exercises, checks, solutions, strict=True):
        assert "raise NotImplementedError" in "".join(exercise["source"])
        assert "Your turn" in str(check["outputs"])
        assert "Right." in str(solution["outputs"])
        assert "hide-cell" in solution["metadata"]["tags"]


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
