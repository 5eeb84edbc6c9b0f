"""What the CPU's fast convolutions cost in digits: the bounds that docs/performance.md states."""

import numpy as np

from minicnn import ops
from minicnn.kernels import cpu
from minicnn.losses import bce_with_logits
from minicnn.ops import BlockWeights, Statistics, same_pad
from segment.unet import UNet


def test_gradients_of_the_first_step(rng):
    """A less exact forward pass opens other ReLUs: the whole gradient is off by about a percent."""
    x, y = rng.standard_normal((1, 64, 64, 3)), (rng.random((1, 64, 64, 1)) < 0.3).astype(float)
    found = []
    for dtype in (np.float32, np.float64):
        net = UNet(seed=0)
        net.astype(dtype)
        logits = net.forward(x.astype(dtype), training=True)
        net.backward(bce_with_logits(logits, y.astype(dtype))[1])
        found.append(np.concatenate([g.ravel() for g in net.gradients().values()]))
    fast, exact = found
    assert 1e-4 < np.linalg.norm(fast - exact) / np.linalg.norm(exact) < 2e-2


def test_a_bright_pixel_costs_its_neighbours_digits(rng):
    """Of outputs that never see it: a millionth of it, next to it, and nothing further away."""
    image = rng.standard_normal((1, 64, 32, 16)).astype(np.float32)
    w = (rng.standard_normal((4, 4, 16, 16)) / 16).astype(np.float32)
    zeros, ones = np.zeros(16, np.float32), np.ones(16, np.float32)
    block, given = BlockWeights(w, zeros, ones, zeros + 3), Statistics(zeros, ones)
    plain = cpu.conv_bn_relu(image, None, block, given, same_pad(4))[0]
    image[0, 16, 16] = 1e4
    fast = cpu.conv_bn_relu(image, None, block, given, same_pad(4))[0]
    exact = ops.conv_bn_relu(
        image.astype(float),
        None,
        BlockWeights(*(a.astype(float) for a in block)),
        given,
        same_pad(4),
    )[0]
    off = np.abs(fast - exact).max(axis=3)[0]
    off[14:18, 14:18] = 0  # those that see it
    assert 1e-4 < off.max() < 1e-6 * 1e4
    assert (fast[0, 40:] == plain[0, 40:]).all()
