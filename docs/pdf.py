"""The course as one PDF, printed by Chromium from the built site: `python pdf.py SITE FILE`.

Folded code, hints and solutions are left out; a moving picture stands still.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pypdf import PdfWriter

HERE = Path(__file__).parent
SECONDS = 15  # of the page's own clock, for its formulas


def pages() -> list[str]:
    """The pages of the first table of contents of index.md, in order."""
    learn = (HERE / "index.md").read_text(encoding="utf-8").split("```{toctree}")[1]
    return re.findall(r"^[\w/-]+$", learn.split("```")[0], re.MULTILINE)


def print_page(chromium: str, page: Path, target: Path) -> None:
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    budget = f"--virtual-time-budget={1000 * SECONDS}"
    command = [chromium, *options, budget, f"--print-to-pdf={target}", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True)
    if not target.exists():
        sys.exit(f"{page}: Chromium printed nothing\n{done.stderr}")


def main(site: Path, target: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no PDF: it is printed by Chromium, and there is none")
    book = PdfWriter()
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(pages()):
            page, printed = site / f"{name}.html", Path(folder) / f"{number}.pdf"
            print_page(chromium, page, printed)
            title = re.search(r"<h1>(.*?)<a ", page.read_text(encoding="utf-8"))
            book.append(printed, outline_item=title[1] if title else name)
        book.write(target)
    print(f"{target}: {len(book.pages)} pages")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
