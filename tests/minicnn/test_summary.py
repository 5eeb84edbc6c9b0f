"""The table of a network, and its sums."""

import numpy as np

import minicnn as mc
from minicnn import summary


def test_a_table_by_hand():
    rng = np.random.default_rng(0)
    conv, norm, pool = mc.Conv2d(3, 20, 5, rng=rng), mc.BatchNorm2d(20), mc.MaxPool2d(2)
    shapes = (1, 60, 60, 20), (1, 60, 60, 20), (1, 30, 30, 20)
    stages = zip(("conv", "norm", "pool"), (conv, norm, pool), shapes, strict=True)
    assert summary.table(stages).splitlines() == [
        "layer  kind               output  parameters",
        "--------------------------------------------",
        "conv   Conv2d       60 x 60 x 20       1,520",
        "norm   BatchNorm2d  60 x 60 x 20          80",
        "pool   MaxPool2d    30 x 30 x 20           0",
        "--------------------------------------------",
        "1,600 parameters: 1,560 trainable, 40 not",
    ]


def test_counts():
    counts = summary.count(mc.Sequential(mc.BatchNorm2d(3), mc.ReLU()))
    assert counts == (6, 6)
    assert counts.total == 12
