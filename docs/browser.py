"""The notebooks that run in a browser, by JupyterLite: `python browser.py FOLDER`.

Nothing is installed and no server computes. Python itself (Pyodide: CPython, NumPy and matplotlib
for browsers) comes from its makers' CDN when a page is opened. With PYODIDE=FOLDER in the
environment that folder, a whole Pyodide, is copied beside the pages, which then need no network.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
# They need NumPy and matplotlib alone. 7 is about speed; 10 and 11 need rasters, B PyTorch, C g++.
NAMES = ("01", "02", "03", "04", "04b", "05", "06", "08", "09", "10b", "A", "D")
PAGES = tuple(next(HERE.glob(f"notebooks/{name}_*.ipynb")).stem for name in NAMES)
HERE_TOO = find_spec("jupyterlite_core") is not None and find_spec("jupyter_server") is not None
KERNEL = "@jupyterlite/pyodide-kernel-extension:kernel"
FETCH = "import matplotlib, numpy, PIL  # only here: fetched into the browser"


def write_contents(folder: Path) -> None:
    """The notebooks without outputs, what draws their pictures, and the library beside them."""
    for name in PAGES:
        page = json.loads((HERE / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
        for cell in page["cells"]:
            if cell["cell_type"] == "code":
                cell |= {"outputs": [], "execution_count": None}
        fetch = {"outputs": [], "execution_count": None, "metadata": {}, "id": "fetch"}
        page["cells"].insert(1, {"cell_type": "code", "source": FETCH, **fetch})
        (folder / f"{name}.ipynb").write_text(json.dumps(page), encoding="utf-8")
    for name in ("figures.py", "states.html"):
        shutil.copy(HERE / "notebooks" / name, folder)
    for package in ("minicnn", "segment"):
        for path in (HERE.parent / package).rglob("*.py"):
            target = folder / path.relative_to(HERE.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def build(folder: Path, wheels: Path | None = None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        contents = Path(temporary) / "files"
        contents.mkdir()
        write_contents(contents)
        options = "--apps notebooks --no-sourcemaps --no-unused-shared-packages --no-libarchive"
        words = [*options.split(), "--contents", contents, "--output-dir", folder]
        words += ["--piplite-wheels", wheels] if wheels else []
        command = [sys.executable, "-m", "jupyterlite_core", "build", *map(str, words)]
        done = subprocess.run(command, cwd=temporary, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)


def bring_pyodide(folder: Path, pyodide: Path) -> None:
    """Python out of `pyodide`, and no other address asked."""
    shutil.copytree(pyodide, folder / "pyodide")
    path = folder / "jupyter-lite.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    settings = config["jupyter-config-data"]["litePluginSettings"][KERNEL]
    settings |= {"pyodideUrl": "./pyodide/pyodide.js", "disablePyPIFallback": True}
    path.write_text(json.dumps(config), encoding="utf-8")


def main(folder: Path) -> None:
    if not HERE_TOO:
        sys.exit("not built: pages that run in a browser need jupyterlite-core and jupyter-server")
    shutil.rmtree(folder, ignore_errors=True)
    if "PYODIDE" not in os.environ:
        build(folder)
        print(f"{folder}: {len(PAGES)} pages to run; their Python comes from a CDN when opened")
        return
    with tempfile.TemporaryDirectory() as wheels:  # the one package that no Pyodide holds
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "comm"]
        subprocess.run([*pip, "--dest", wheels], check=True)
        build(folder, next(Path(wheels).glob("*.whl")))
    bring_pyodide(folder, Path(os.environ["PYODIDE"]))
    print(f"{folder}: {len(PAGES)} pages to run, with a Python of their own")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "site/html/lite").resolve())
