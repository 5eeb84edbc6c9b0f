"""The report's page, read as a browser would read it: numbers, pictures, and nothing from afar."""

import base64
import io
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from segment import plots
from segment.evaluate import examine, report
from segment.evaluate.objects import truth_of

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tables as rows of texts by caption, images as (alt, media type, bytes); tags must match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.images, self.texts = [], {}, [], []
        self.caption = None
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert "href" not in attributes and not attributes.get("src", "data:").startswith("http")
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.tables[self.caption].append([])
        if tag in ("td", "th"):
            self.tables[self.caption][-1].append("")
        if tag == "img":
            media, data = attributes["src"].removeprefix("data:").split(";base64,")
            self.images.append((attributes["alt"], media, base64.b64decode(data)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "caption":
            self.caption = data if data not in self.tables else f"{data} (again)"
            self.tables[self.caption] = []
        elif self.open and self.open[-1] in ("td", "th"):
            self.tables[self.caption][-1][-1] += data
        self.texts.append(data)


def evaluation(name="runs/<city>", seed=0, **changes):
    rng = np.random.default_rng(seed)
    labels = np.zeros((4, 32, 32), np.uint8)
    labels[:, 4:14, 4:16] = labels[:3, 20:30, 20:26] = 1
    probability = np.clip(labels * 0.5 + rng.random(labels.shape) * 0.5, 0, 1).astype(np.float32)
    truths = np.stack([truth_of(label) for label in labels])
    found = examine.examine([(slice(0, 4), probability, labels, truths)], 4, 0.4, 2.0)
    tiles = [SimpleNamespace(city="ab"[n // 3], scene=f"s{n}") for n in range(4)]
    pixels = np.kron(rng.integers(0, 256, (2, 2, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    shown = plots.Example("a & b", pixels, labels[0], probability[0] >= 0.4)
    about = {"what": "the 4 test tiles", "threshold": 0.4, "views": 1, "learnt": 0, "device": "cpu"}
    about |= {"pixel_size": 2.0, "examples": {"best": [shown], "worst": [shown, shown]}}
    about |= {"outline_threshold": 0.4}
    about |= changes
    return report.Evaluation(name, findings=found, summary=found.summary(tiles), **about)


def page(tmp_path, *evaluations):
    report.write_report(evaluations, tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def percent(share):
    return f"{100 * share:.1f}\u00a0%"


def test_the_published_form_comes_first_with_all_background_beside_it(tmp_path):
    runs = [evaluation("random"), evaluation("scene", 1), evaluation("city", 2)]
    rows = page(tmp_path, *runs).tables["The median tile, then all pixels in one count"]
    assert [row[0] for row in rows[1:4]] == [
        f"{n}: the 4 test tiles" for n in ("random", "scene", "city")
    ]
    for run, row in zip(runs, rows[1:4], strict=True):
        median, pooled = run.summary["median"], run.summary["pooled"]
        expected = [median["iou"], median["background"]["iou"], median["accuracy"]]
        expected += [median["background"]["accuracy"], pooled["iou"], pooled["accuracy"]]
        expected += [pooled["background"]["accuracy"]]
        assert row[1:] == [percent(share) for share in expected]
    assert rows[4][1:4] == ["45.7 – 52.9 %", "", "97.5 – 99.5 %"]
    assert len({len(row) for row in rows}) == 1


def test_regions_and_sizes_are_tables_of_the_findings(tmp_path):
    run = evaluation()
    tables = page(tmp_path, run).tables
    head, *rows = tables["By region"]
    assert [row[0] for row in rows] == ["all tiles, pooled", "median tile", "a", "b"]
    for row, name in zip(rows[2:], "ab", strict=True):
        cell, city = dict(zip(head, row, strict=True)), run.summary["cities"][name]
        assert cell["tiles"] == str(city["tiles"]) and cell["IoU"] == percent(city["iou"])
        assert cell["boundary IoU"] == percent(city["boundary_iou"])
        assert cell["found"] == percent(city["objects"]["found"])
        assert cell["right"] == percent(city["objects"]["right"])
    head, *rows = tables["By size of the building"]
    for row, (true, found, pixels, hit, predicted, right) in zip(
        rows, run.findings.sizes, strict=True
    ):
        assert row[1] == str(true) and row[4] == f"{predicted:,}"
        assert row[2] == (percent(found / true) if true else "–")
        assert row[3] == (percent(hit / pixels) if true else "–")
        assert row[5] == (percent(right / predicted) if predicted else "–")
    # 10 x 12 and 10 x 6 pixels of 4 m2: 4 of 480 m2, 3 of 240 m2
    assert [row[:2] for row in rows if row[1] != "0"] == [["200 – 500 m²", "7"]]
    unplaced = page(tmp_path, evaluation(pixel_size=None)).tables
    assert unplaced["By size of the building"][1][0] == "0 – 50 pixels"


def test_names_are_text_not_markup_and_learnt_tiles_are_confessed(tmp_path):
    read = page(tmp_path, evaluation(learnt=3))
    assert "runs/<city>" in read.texts
    assert "3 of these tiles were used in training." in read.texts


def test_pictures_are_in_the_file_each_with_a_text(tmp_path):
    run = evaluation()
    images = page(tmp_path, run).images
    assert all(alt for alt, _, _ in images)
    curves, photographs = images[:2], images[2:]
    assert [media for _, media, _ in curves] == ["image/svg+xml"] * 2
    assert all(b"<svg" in data for _, _, data in curves)
    assert len(photographs) == 9
    shown = run.examples["best"][0]
    for (_, media, data), picture in zip(
        photographs,
        (shown.pixels, plots.tinted(shown.pixels, shown.truth), plots.judged(shown)),
        strict=False,
    ):
        assert media == "image/jpeg"
        got = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert got.shape == picture.shape and abs(got - picture).mean() < 15


def test_the_same_evaluation_gives_the_same_bytes(tmp_path):
    report.write_report([evaluation()], tmp_path / "a.html")
    report.write_report([evaluation()], tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_verdict_has_a_colour_for_each_kind_of_pixel():
    pixels = np.full((1, 4, 3), 100, np.uint8)
    truth, predicted = np.array([[1, 1, 0, 0]]), np.array([[1, 0, 1, 0]])
    got = plots.judged(plots.Example("", pixels, truth, predicted))[0]
    for value, colour in zip(
        got, (plots.TINT, plots.MISSED, plots.FALSE, (100, 100, 100)), strict=True
    ):
        np.testing.assert_array_equal(value, np.rint(0.55 * 100 + 0.45 * np.array(colour)))


@pytest.mark.parametrize("threshold, index", [(0.4, 102), (0.0, 0), (1.0, 255)])
def test_the_chosen_threshold_is_marked_on_the_curve(monkeypatch, threshold, index):
    drawn = []
    monkeypatch.setattr(plots, "_square", lambda draw: drawn.append(draw) or b"")
    precision, recall = np.linspace(0.2, 1, 256), np.linspace(1, 0, 256)
    plots.precision_recall(precision, recall, threshold)
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    drawn[0](axes)
    curve, mark = axes.lines
    np.testing.assert_array_equal(curve.get_xdata(), recall)
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (recall[index], precision[index])
