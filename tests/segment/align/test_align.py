"""Labels that lie off by a known step come back; without evidence they stay."""

import csv

import numpy as np
import pytest
import rasterio
from test_predict import Redness, write

from segment.align import command
from segment.align.shift import building_shifts, moved_label, picture_shift
from segment.data.scenes import find_scenes
from segment.errors import InputError
from segment.evaluate.objects import truth_of


def town(seed=0, shape=(160, 200)):
    """True roofs as a label, none within 12 pixels of the edge."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for row in range(14, shape[0] - 34, 30):
        for col in range(14, shape[1] - 34, 34):
            high, wide = rng.integers(9, 18, 2)
            label[row : row + high, col : col + wide] = 1
    return label


def seen(label, seed=0):
    """What a decent model says of it."""
    noise = np.random.default_rng(seed).uniform(0, 0.2, label.shape)
    return (0.75 * label + noise).astype(np.float32)


@pytest.mark.parametrize("step", [(0, 0), (4, -3), (-6, 6), (0, 5)])
def test_a_picture_comes_back_by_the_step_it_was_moved(step):
    truth = town()
    label = np.roll(truth, (-step[0], -step[1]), (0, 1))
    shift = picture_shift(seen(truth), label, reach=8)
    assert shift.step == step and shift.after == pytest.approx(0.98, abs=0.03)
    assert shift.moved == (step != (0, 0))


def test_without_evidence_nothing_moves():
    noise = np.random.default_rng(3).uniform(0, 1, (160, 200)).astype(np.float32)
    assert not picture_shift(noise, town(), 8).moved
    assert not picture_shift(np.zeros((160, 200), np.float32), town(), 8).moved
    assert not any(s.moved for s in building_shifts(np.zeros((160, 200)), truth_of(town()), 5))


def test_unknown_pixels_are_no_evidence():
    truth = town()
    label = np.roll(truth, (-4, 3), (0, 1))
    label[:60] = 255
    assert picture_shift(seen(truth), label, 8).step == (4, -3)


def test_a_building_that_alone_lies_off_is_moved_alone():
    truth = town()
    label = truth.copy()
    number = truth_of(truth)
    alone = number == 5
    label[alone] = 0
    label |= np.roll(alone, (3, -4), (0, 1)).astype(np.uint8)
    own = truth_of(label)
    (which,) = np.unique(own[np.roll(alone, (3, -4), (0, 1))])
    shifts = building_shifts(seen(truth), own, 6)
    assert [n for n, s in enumerate(shifts, start=1) if s.moved] == [which]
    assert shifts[which - 1].step == (-3, 4)
    steps = [s.step if s.moved else (0, 0) for s in shifts]
    np.testing.assert_array_equal(moved_label(label, own, (0, 0), steps), truth)


def test_what_a_shift_uncovers_is_unknown():
    label = np.zeros((20, 30), np.uint8)
    label[5:10, 5:10], label[12, 20] = 1, 255
    moved = moved_label(label, truth_of(label), (3, -2), [(3, -2)])
    assert (moved[:3] == 255).all() and (moved[:, -2:] == 255).all() and moved[15, 18] == 255
    assert (moved[8:13, 3:8] == 1).all() and (moved == 1).sum() == 25
    assert (moved[3:, :-2] == 255).sum() == 1


def data(folder, label, truth):
    """A scene whose red is what the model sees."""
    (folder / "images").mkdir(parents=True)
    (folder / "gt").mkdir()
    pixels = np.zeros((3, *truth.shape), np.uint8)
    pixels[0] = np.rint(255 * seen(truth))
    write(folder / "images/town1.tif", pixels)
    write(folder / "gt/town1.tif", 255 * label[None])


def test_the_command_writes_labels_to_train_on_and_what_it_found(tmp_path, monkeypatch, capsys):
    truth = town()
    data(tmp_path / "in", np.roll(truth, (-4, 3), (0, 1)), truth)
    monkeypatch.setattr(command, "load_model", lambda path: Redness())
    arguments = ["--data", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    command.main(arguments)
    assert "1 of 1 pictures show where their labels belong" in capsys.readouterr().out
    (scene,) = find_scenes([tmp_path / "out/pairs.csv"])
    with rasterio.open(scene.label) as file:
        mask, known = file.read(1) > 0, file.dataset_mask() > 0
    np.testing.assert_array_equal(mask, truth > 0)
    assert not known[:4].any() and known[4:, :-3].all()
    with (tmp_path / "out/shifts.csv").open() as file:
        whole, *own = csv.DictReader(file)
    assert (whole["right_m"], whole["down_m"], whole["moved"]) == ("-0.9", "1.2", "yes")
    assert {row["moved"] for row in own} == {"no evidence"} and len(own) == truth_of(truth).max()
    numbers = 2 * truth_of(truth)
    for house in range(1, truth_of(truth).max() + 1):  # each as two that touch
        rows, cols = np.nonzero(truth_of(truth) == house)
        numbers[rows, cols] -= cols < np.median(cols)
    write(tmp_path / "in/gt/town1.tif", numbers[None].astype(np.uint16))
    command.main([*arguments[:2], "--out", str(tmp_path / "apart")])
    with (tmp_path / "apart/shifts.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1 + len(np.unique(numbers[numbers > 0]))
    with pytest.raises(InputError, match="holds moved labels already"):
        command.main(arguments)


def test_labels_are_asked_for(tmp_path):
    with pytest.raises(InputError, match="--data PATH was expected"):
        command.main(["--out", str(tmp_path / "out")])
