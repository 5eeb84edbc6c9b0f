"""Run notebooks from top to bottom: `python run.py [--save] [NOTEBOOK...]`, all of them by default.

A cell that raises fails the run, and so every `assert` in the text is tested. With --save the
outputs are stored, cleaned of all that differs from machine to machine.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
SECONDS = 60  # a notebook takes no longer, on two cores
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook at `path` with fresh outputs."""
    notebook = nbformat.read(path, as_version=4)
    options = {"resources": {"metadata": {"path": str(HERE)}}, "record_timing": False}
    NotebookClient(notebook, timeout=2 * SECONDS, kernel_name="python3", **options).execute()
    return notebook


def clean(notebook: nbformat.NotebookNode) -> None:
    """Keep of the metadata what readers need; copy each picture's text to where Sphinx looks."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if "solution" in tags:
            cell.metadata["jupyter"] = {"source_hidden": True}  # folded in Jupyter, too
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                cell.metadata["mystnb"] = {"image": {"alt": alt}}


def main() -> int:
    parser = argparse.ArgumentParser(description="Run notebooks from top to bottom.")
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--save", action="store_true", help="store the outputs")
    options = parser.parse_args()
    os.environ |= {"MINICNN_STILL": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    slow = 0
    for path in options.notebooks or sorted(HERE.glob("*.ipynb")):
        started = time.monotonic()
        notebook = run(path)
        seconds = time.monotonic() - started
        print(f"{path.stem}: {seconds:.0f} s", flush=True)
        slow += seconds > SECONDS
        if options.save:
            clean(notebook)
            nbformat.write(notebook, path)
    if slow:
        print(f"{slow} of them took longer than {SECONDS} s", file=sys.stderr)
    return int(slow > 0)


if __name__ == "__main__":
    sys.exit(main())
