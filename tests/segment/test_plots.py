"""The pictures: what is in the files, read back by another library."""

import numpy as np
import pytest
import rasterio
from matplotlib.figure import Figure

from segment import plots

HISTORY = [
    {
        f"{part}_{name}": str(0.1 * epoch + (part == "val") * 0.05)
        for part in ("train", "val")
        for name in ("accuracy", "iou", "loss")
    }
    | {"epoch": str(epoch)}
    for epoch in (1, 2, 3)
]


def test_tint_changes_buildings_only():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    mask = np.zeros((5, 7), np.uint8)
    mask[2, 3] = mask[4, 6] = 255
    picture = plots.tinted(pixels, mask)
    for row in range(5):
        for col in range(7):
            expected = pixels[row, col].astype(float)
            if mask[row, col]:
                expected = np.round(0.55 * expected + 0.45 * np.array(plots.TINT))
            np.testing.assert_array_equal(picture[row, col], expected)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_overlay_has_the_size_and_values_of_the_photograph(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (13, 29, 3), dtype=np.uint8)
    mask = np.zeros((13, 29), np.uint8)
    mask[3:6, 3:9] = 255
    path = tmp_path / "overlay.png"
    plots.overlay(pixels, mask, path)
    with rasterio.open(path) as dataset:
        assert dataset.driver == "PNG"
        np.testing.assert_array_equal(
            dataset.read((1, 2, 3)).transpose(1, 2, 0), plots.tinted(pixels, mask)
        )
    assert list(tmp_path.iterdir()) == [path]


def test_curves_draw_every_series_against_epoch(tmp_path, monkeypatch):
    drawn = []
    subplots = Figure.subplots
    monkeypatch.setattr(Figure, "subplots", lambda *a: drawn.extend(subplots(*a)) or drawn)
    plots.curves(HISTORY, tmp_path / "curves.png")
    assert [axes.get_title() for axes in drawn] == ["accuracy", "IoU", "loss"]
    for axes in drawn:
        train, validation = axes.lines
        assert (train.get_label(), validation.get_label()) == ("train", "validation")
        np.testing.assert_array_equal(train.get_xdata(), [1, 2, 3])
        np.testing.assert_allclose(train.get_ydata(), [0.1, 0.2, 0.3])
        np.testing.assert_allclose(validation.get_ydata(), [0.15, 0.25, 0.35])
        assert axes.get_xlabel() == "epoch"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_importing_draws_in_no_matplotlib():
    import subprocess
    import sys

    code = "import sys, segment.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
