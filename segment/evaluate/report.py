"""An evaluation as one HTML file, for people: tables, curves, the best and the worst tiles.

Nothing in it is fetched from anywhere: pictures and styles are in the file.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from minicnn.files import write_text
from segment import plots
from segment.data.tiles import TILE
from segment.evaluate.examine import (
    SIZES,
    Findings,
    boundary_distance,
    calibration_error,
    precision_recall,
    reliability,
)

# Out of sample, binarised: median IoU and accuracy, as published.
PUBLISHED = (
    (
        "published result of this network, over its three scenarios",
        "45.7 – 52.9 %",
        "97.5 – 99.5 %",
    ),
    ("U-Net (Bischke et al. 2017, arXiv:1709.05932)", "about 55 %", "about 93 %"),
    ("SegNet (the same)", "about 70 %", "about 95 %"),
)

ALL_BACKGROUND = "with all background"

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0 2rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { padding: .25rem .6rem; font-size: .9rem; text-align: right;
         border-bottom: 1px solid #ddd; }
td { white-space: nowrap; }
th:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; font-weight: 600; }
tbody th { font-weight: 400; }
.scroll { overflow-x: auto; }
.curves, .row { display: flex; flex-wrap: wrap; gap: 1rem; }
.curves img { width: 30rem; max-width: 100%; }
.row img { width: 256px; max-width: 100%; }
figure { margin: 0 0 1.5rem; }
.key span { padding: .1rem .5rem; margin-right: .5rem; }
dt { font-weight: 600; }
"""


@dataclass(frozen=True)
class Evaluation:
    """A model's findings on tiles, with the words and the pictures that go with them."""

    name: str
    what: str  # which tiles
    device: str
    threshold: float
    outline_threshold: float  # of whole buildings
    views: int
    learnt: int  # how many of the tiles the model was trained or calibrated on
    pixel_size: float | None
    findings: Findings
    summary: dict[str, Any]
    examples: dict[str, list[plots.Example]]

    def document(self) -> dict[str, Any]:
        """What --json prints."""
        about = {"model": self.name, "evaluated": self.what, "threshold": self.threshold}
        about["outline_threshold"] = self.outline_threshold
        return about | {"views": self.views, "device": self.device} | self.summary

    @property
    def thresholds(self) -> str:
        """In words: of pixels, and of whole buildings where that is another."""
        if self.outline_threshold == self.threshold:
            return f"threshold {self.threshold:.3f}"
        return f"threshold {self.threshold:.3f}, of outlines {self.outline_threshold:.3f}"

    def in_words(self) -> str:
        """What the table of pixels leaves out, in a line."""
        row = self.summary["pooled"]
        objects = row["objects"]
        return (
            f"boundary IoU {row['boundary_iou']:.3f}; of {objects['true']:,} buildings "
            f"{objects['found']:.1%} found, of {objects['predicted']:,} predicted "
            f"{objects['right']:.1%} right, F1 {objects['f1']:.3f}; {objects['merged']:,} merged, "
            f"{objects['split']:,} split, {objects['predicted_per_true']:.2f} predicted per true"
        )


def write_report(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write the report of one or several evaluations, those of several runs side by side."""
    title = "Buildings found, out of sample"
    parts = [f"<h1>{title}</h1>", _published_form(evaluations)]
    parts += [*map(_section, evaluations), _NOTES]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )
    write_text(path, page)


def _published_form(evaluations: Sequence[Evaluation]) -> str:
    """Median IoU and accuracy of every run, beside calling all background and the published."""
    rows = []
    for each in evaluations:
        median, pooled = each.summary["median"], each.summary["pooled"]
        none = median["background"]
        shares = [median["iou"], none["iou"], median["accuracy"], none["accuracy"]]
        shares += [pooled["iou"], pooled["accuracy"], pooled["background"]["accuracy"]]
        rows.append([f"{each.name}: {each.what}", *map(_percent, shares)])
    rows += [[name, iou, "", accuracy, *[""] * 4] for name, iou, accuracy in PUBLISHED]
    head = ["", "median IoU", ALL_BACKGROUND, "median accuracy", ALL_BACKGROUND]
    head += ["pooled IoU", "pooled accuracy", ALL_BACKGROUND]
    return _table("The median tile, then all pixels in one count", head, rows)


def _section(each: Evaluation) -> str:
    findings = each.findings
    precision, recall = precision_recall(findings.histogram)
    curves = [
        (plots.precision_recall(precision, recall, each.threshold), _curve_in_words(each)),
        (
            plots.reliability(*reliability(findings.histogram)),
            f"Expected calibration error {calibration_error(findings.histogram):.3f}.",
        ),
    ]
    parts = [
        f"<h2>{escape(each.name)}</h2>",
        f"<p>{escape(_sentence(each.what))}; {each.thresholds}; "
        f"{_views(each.views)}. {escape(_sentence(each.in_words()))}.</p>",
        f"<p><strong>{each.learnt} of these tiles were used in training.</strong></p>"
        if each.learnt
        else "",
        _regions(each),
        '<div class="curves">',
        *(_figure("image/svg+xml", svg, words, words) for svg, words in curves),
        "</div>",
        _by_size(each),
        _pictures(each),
    ]
    return "\n".join(filter(None, parts))


def _curve_in_words(each: Evaluation) -> str:
    row = each.summary["pooled"]
    return (
        f"At the chosen threshold, {each.threshold:.2f}, precision is {_percent(row['precision'])} "
        f"and recall {_percent(row['recall'])}."
    )


def _regions(each: Evaluation) -> str:
    summary = each.summary
    rows = [("all tiles, pooled", summary["pooled"]), ("median tile", summary["median"])]
    rows += list(summary["cities"].items())
    head = ["region", "tiles", "built", "IoU", "accuracy", ALL_BACKGROUND]
    head += ["precision", "recall", "F1", "boundary IoU", "buildings", "found", "right"]
    head += ["F1 of buildings", "merged", "split", "predicted per true"]
    return _table("By region", head, [_region(name, row) for name, row in rows])


def _region(name: str, row: dict[str, Any]) -> list[str]:
    shares = [row["building"], row["iou"], row["accuracy"], row["background"]["accuracy"]]
    shares += [row["precision"], row["recall"], row["f1"]]
    cells = [name, f"{row['tiles']:,}", *map(_percent, shares)]
    if "objects" not in row:
        return [*cells, *[""] * 8]
    objects = row["objects"]
    count = f"{objects['true']:,}"
    wholes = [_percent(row["boundary_iou"]), count, _percent(objects["found"])]
    counts = [f"{objects[kind]:,}" for kind in ("merged", "split")]
    per_true = f"{objects['predicted_per_true']:.2f}"
    return [*cells, *wholes, _percent(objects["right"]), _percent(objects["f1"]), *counts, per_true]


def _by_size(each: Evaluation) -> str:
    unit = "m²" if each.pixel_size else "pixels"
    rows = []
    for i, (true, found, pixels, hit, predicted, right) in enumerate(each.findings.sizes.tolist()):
        name = f"{SIZES[i]} – {SIZES[i + 1]}" if i + 1 < len(SIZES) else f"{SIZES[i]} and more"
        cells = [f"{name} {unit}", f"{true:,}", _percent(_ratio(found, true))]
        cells += [
            _percent(_ratio(hit, pixels)),
            f"{predicted:,}",
            _percent(_ratio(right, predicted)),
        ]
        rows.append(cells)
    head = ["area", "buildings", "found", "of their pixels", "predicted", "right"]
    return _table("By size of the building", head, rows)


def _pictures(each: Evaluation) -> str:
    key = "".join(
        f'<span style="background: rgb{colour}; color: {ink}">{word}</span>'
        for word, colour, ink in (
            ("found", plots.TINT, "#000"),
            ("missed", plots.MISSED, "#fff"),
            ("false alarm", plots.FALSE, "#000"),
        )
    )
    parts = [
        "<h3>Tiles: photograph, truth, verdict</h3>",
        f'<p class="key">{key}</p>' + "<p>Ranked by IoU among the tiles with buildings.</p>",
    ]
    for name, examples in each.examples.items():
        parts.append(f"<h4>{name.capitalize()}</h4>")
        for example in examples:
            pictures = {
                "photograph": example.pixels,
                "truth": plots.tinted(example.pixels, example.truth),
                "verdict": plots.judged(example),
            }
            images = [
                _image("image/jpeg", plots.as_jpeg(picture), f"{example.name}, {what}")
                for what, picture in pictures.items()
            ]
            caption = f"<figcaption>{escape(example.name)}</figcaption>"
            parts.append(f'<figure><div class="row">{"".join(images)}</div>{caption}</figure>')
    return "\n".join(parts)


# ---------------------------------------------------------------- pieces of HTML


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _figure(media: str, data: bytes, alt: str, caption: str) -> str:
    return f"<figure>{_image(media, data, alt)}<figcaption>{escape(caption)}</figcaption></figure>"


def _image(media: str, data: bytes, alt: str) -> str:
    source = f"data:{media};base64,{base64.b64encode(data).decode()}"
    return f'<img src="{source}" alt="{escape(alt)}">'


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{share:.1%}".replace("%", "\u00a0%")


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def _views(views: int) -> str:
    return "one view" if views == 1 else f"the mean of {views} turned and mirrored views"


_NOTES = f"""<h2>How it is counted</h2>
<dl>
<dt>Median tile, pooled</dt>
<dd>The median over the tiles' own scores (the form in which the published results stand), and the
score of all pixels in one count. Pixels without a label count nowhere. Where a tile has no building
and none is predicted, its scores are 1.</dd>
<dt>All background</dt>
<dd>What calling every pixel background would score on the same tiles.</dd>
<dt>Boundary IoU</dt>
<dd>IoU of the masks' rims, {boundary_distance(TILE, TILE)} pixels wide (2 % of a tile's
diagonal): Cheng et al. 2021, arXiv:2103.16562. A tile's edge counts as an outline.</dd>
<dt>Buildings found, right</dt>
<dd>A true building is found, and a predicted one right, if the two have an IoU above 0.5. True
roofs that touch are one building; a tile's edge cuts buildings.</dd>
<dt>Merged, split</dt>
<dd>True buildings of which one predicted building covers more than half of each; true buildings in
which two or more predicted ones lie, each with most of itself and on at least a tenth.</dd>
<dt>Calibration error</dt>
<dd>The mean distance of probability and share of buildings, over sixteen classes of probability,
weighted by pixels.</dd>
</dl>"""
