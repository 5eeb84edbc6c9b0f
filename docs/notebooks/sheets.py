"""Work sheets: the notebooks without their solutions, in a folder: `python sheets.py FOLDER`.

Copies `figures.py` and what it needs beside them. A solution is the cell tagged `solution`.
"""

import shutil
import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).parent


def without_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as students get it: stubs and checks stay, solutions go."""
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    pairs = zip(notebook.cells, tags, strict=True)
    notebook.cells = [cell for cell, of_cell in pairs if "solution" not in of_cell]
    return notebook


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(HERE.glob("*.ipynb")):
        sheet = without_solutions(nbformat.read(path, as_version=4))
        nbformat.write(sheet, folder / path.name)
    for name in ("figures.py", "states.html"):
        shutil.copy(HERE / name, folder / name)
    print(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "sheets"))
