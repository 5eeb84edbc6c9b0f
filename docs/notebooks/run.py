"""Run notebooks from top to bottom: `python run.py [--save] [NOTEBOOK...]`, all of them by default.

A cell that raises fails the run, so every `assert` in the text is tested. What the cells print and
draw is compared with what is stored, so that no page can go stale; cells tagged `varies` (times,
what this machine has) are left out. With --save the fresh outputs are stored instead, cleaned of
all that differs from machine to machine.
"""

import argparse
import base64
import io
import os
import re
import resource
import sys
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from matplotlib.image import imread
from nbclient import NotebookClient

HERE = Path(__file__).parent
SECONDS = 60  # a notebook takes no longer, on two cores
NUMBER = re.compile(r"(-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?)")
EMBEDDED = re.compile(r"data:image/png;base64,([\w+/=]+)")
CLOSE = 0.03  # numbers may differ by this share: other processors round otherwise
DUST = 1e-5  # below it a number is a rounding error
SHADE = 4.0  # how far the pixels of two pictures may be apart on average, of 255
DRAWS = {"code_prompt_show": "Show the code of this picture", "code_prompt_hide": "Hide the code"}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook at `path` with fresh outputs."""
    notebook = nbformat.read(path, as_version=4)
    options = {"resources": {"metadata": {"path": str(HERE)}}, "record_timing": False}
    NotebookClient(notebook, timeout=10 * SECONDS, kernel_name="python3", **options).execute()
    return notebook


def clean(notebook: nbformat.NotebookNode) -> None:
    """Keep of the metadata what readers need; copy each picture's text to where Sphinx looks."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        kept: dict[str, Any] = {"tags": tags} if tags else {}
        if {"solution", "hide-input"} & set(tags):
            kept["jupyter"] = {"source_hidden": True}  # folded in Jupyter, too
        site = dict(DRAWS) if "hide-input" in tags else {}
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                site["image"] = {"alt": alt}
                if "text/html" not in output["data"]:  # sliders write their caption themselves
                    site["figure"] = {"caption": alt}
        cell.metadata = nbformat.from_dict(kept | ({"mystnb": site} if site else {}))


def export_pictures(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Write what cells tagged `picture:NAME` drew as NAME.png: pages outside the course show it."""
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", []):
            if tag.startswith("picture:"):
                png = base64.b64decode(parts(cell)[1][0])
                (folder / f"{tag.removeprefix('picture:')}.png").write_bytes(png)


def same_text(stored: str, fresh: str) -> bool:
    """The same words, and the same numbers up to rounding."""
    for n, (a, b) in enumerate(zip_longest(NUMBER.split(stored), NUMBER.split(fresh))):
        if a == b:
            continue
        if n % 2 == 0 or a is None or b is None:
            return False  # words, or more of them on one side
        x, y = (float(text.replace(",", "")) for text in (a, b))
        if abs(x - y) > max(CLOSE * max(abs(x), abs(y)), DUST):
            return False
    return True


def same_picture(stored: str, fresh: str) -> bool:
    """The same size, and pixels that hardly differ. Both are PNG in base64."""
    a, b = (imread(io.BytesIO(base64.b64decode(png)), format="png") for png in (stored, fresh))
    return a.shape == b.shape and 255 * float(np.abs(a - b).mean()) <= SHADE


def parts(cell: nbformat.NotebookNode) -> tuple[str, list[str]]:
    """What a cell printed, and the pictures it drew."""
    text, pictures = "", []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        text += output.get("text", "") + data.get("text/plain", "")
        pictures += [data["image/png"]] if "image/png" in data else []
        pictures += EMBEDDED.findall(data.get("text/html", ""))
    return text, pictures


def differences(stored: nbformat.NotebookNode, fresh: nbformat.NotebookNode) -> list[str]:
    """One line for each cell whose output is not the stored one."""
    found = []
    for number, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True)):
        if "varies" in old.metadata.get("tags", []):
            continue
        (text, pictures), (new_text, new_pictures) = parts(old), parts(new)
        if not same_text(text, new_text):
            found.append(f"cell {number} printed {new_text!r} and not {text!r}")
        elif len(pictures) != len(new_pictures):
            found.append(f"cell {number} drew {len(new_pictures)} pictures, not {len(pictures)}")
        elif not all(map(same_picture, pictures, new_pictures)):
            found.append(f"cell {number} drew another picture")
    return found


def cpu_seconds() -> float:
    """What all kernels that have ended used, on all cores together."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description="Run notebooks from top to bottom.")
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--save", action="store_true", help="store the outputs, compare nothing")
    options = parser.parse_args()
    os.environ |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    failed = False
    for path in options.notebooks or sorted(HERE.glob("*.ipynb")):
        started, used = time.monotonic(), cpu_seconds()
        notebook = run(path)
        seconds, used = time.monotonic() - started, cpu_seconds() - used
        print(f"{path.stem}: {seconds:.0f} s, {used:.0f} s of computing", flush=True)
        if min(seconds, used) > SECONDS:  # a busy machine is no fault of a notebook
            failed = True
            print(f"{path.stem} took longer than {SECONDS} s", file=sys.stderr)
        if options.save:
            clean(notebook)
            nbformat.write(notebook, path)
            export_pictures(notebook, HERE.parent / "images")
        elif stale := differences(nbformat.read(path, as_version=4), notebook):
            failed = True
            print(f"{path.name} is stale: run.py --save stores it anew", *stale, sep="\n  ")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
