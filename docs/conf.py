"""The site's settings: Sphinx reads Markdown, the stored notebooks and the docstrings."""

import re
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import browser  # noqa: E402

project = "minicnn"
author = "the minicnn authors"
copyright = author
package = ConfigParser(interpolation=None)
package.read(HERE.parent / "setup.cfg")
version = release = package["metadata"]["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # formulas without a network
]
exclude_patterns = ["_build"]
# The pages that other parts of the project add: those that are there.
OTHERS = ("performance.md", "gpu*.md", "api.md", "deploy*.md", "benchmarks/*.md")
reports = [str(path.relative_to(HERE).with_suffix("")) for p in OTHERS for path in HERE.glob(p)]
toctree = "\n".join(["```{toctree}", ":hidden:", ":caption: Reports", "", *sorted(reports), "```"])

myst_enable_extensions = ["dollarmath", "attrs_inline", "substitution"]
myst_substitutions = {"reports": toctree if reports else " "}
myst_heading_anchors = 3
nb_execution_mode = "off"  # outputs are stored; `make notebooks` checks that they can be had again
nb_merge_streams = True
nb_code_prompt_show = "Show the solution"  # nothing else is folded
nb_code_prompt_hide = "Hide the solution"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = ["cupy"]

html_theme = "sphinx_book_theme"
html_title = "minicnn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"show_toc_level": 2, "use_download_button": False}
copybutton_exclude = ".linenos, .gp"


def as_plain_text(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list) -> None:
    """Docstrings are written for people reading the code: `names` are code, the rest is text."""
    found: list[str] = []
    for line in lines:
        indented = line.startswith("    ")
        if indented and found and not found[-1].startswith("    "):
            found += ["", "::", ""]  # an equation
        elif found and found[-1].startswith("    ") and line and not indented:
            found.append("")
        parts = re.split(r"`+([^`]*)`+", line)
        code = [f"``{part}``" for part in parts[1::2]]
        text = [re.sub(r"([*|_])", r"\\\1", part) for part in parts[::2]]
        plain = "".join(a + b for a, b in zip(text, [*code, ""], strict=True))
        found.append(line if indented else plain)
    lines[:] = found


def as_short_types(
    _app: Any, _what: str, _name: str, _obj: Any, _options: Any, given: str | None, returned: Any
) -> tuple[str | None, str | None] | None:
    """Arrays by what they hold: `ndarray[uint8]`, not their whole generic type."""
    array = r"~?[\w.]*ndarray\[~?[\w.]*tuple\[.*?\], ~?[\w.]*dtype\[~?(?:\w+\.)*(\w+)\]\]"
    texts = [text and re.sub(array, r"ndarray[\1]", text) for text in (given, returned)]
    texts = [text and re.sub(r"~(?:\w+\.)*", "", text) for text in texts]
    return (texts[0], texts[1]) if given else None


# Not from file://, where browsers start no Python.
RUN = """
<p class="run" hidden>
<a href="{root}lite/notebooks/index.html?path={name}.ipynb">▶ Run this page</a> in your browser:
nothing to install, and nothing leaves your machine. Allow a minute to start.
</p>
<script>document.querySelector(".run").hidden = location.protocol === "file:";</script>
"""


def with_run_link(
    _app: Any, page: str, _template: str, context: dict[str, Any], _doctree: Any
) -> None:
    """Below the title of each notebook that runs in a browser."""
    folder, _, name = page.rpartition("/")
    if folder == "notebooks" and name in browser.PAGES and browser.HERE_TOO:
        link = RUN.format(root=context["pathto"]("index").removesuffix("index.html"), name=name)
        context["body"] = context["body"].replace("</h1>", "</h1>" + link, 1)


def setup(app: Any) -> None:
    app.connect("html-page-context", with_run_link)
    app.connect("autodoc-process-docstring", as_plain_text)
    app.connect("autodoc-process-signature", as_short_types)
