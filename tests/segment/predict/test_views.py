"""Averages of turned views against loops over pixels, and what turning the photograph may do."""

import numpy as np
import pytest

from segment.model import Model, ModelInfo
from segment.predict.views import VIEWS, averaged
from segment.unet import UNet

# Where the pixel (i, j) of an h x w image lies in its view, one line a view: by hand.
PLACES = [
    lambda i, j, h, w: (i, j),
    lambda i, j, h, w: (i, w - 1 - j),  # mirrored
    lambda i, j, h, w: (w - 1 - j, i),  # turned by a quarter, counter-clockwise
    lambda i, j, h, w: (h - 1 - i, w - 1 - j),
    lambda i, j, h, w: (j, h - 1 - i),
    lambda i, j, h, w: (j, i),  # mirrored, then turned
    lambda i, j, h, w: (h - 1 - i, j),
    lambda i, j, h, w: (w - 1 - j, h - 1 - i),
]
OF = {1: [0], 2: [0, 1], 4: [0, 2, 3, 4], 8: range(8)}


def slanted(images):
    """Depends on the place in the image as well as on the pixel: no view is like another."""
    row, col = np.mgrid[: images.shape[1], : images.shape[2]]
    return (images[..., 0] * (1 + row + 10 * col**2)).astype(np.float32)


@pytest.mark.parametrize("views", VIEWS)
def test_views_are_averaged_pixel_by_pixel(views, rng):
    images = rng.integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    found = averaged(slanted, views)(images)
    _, h, w, _ = images.shape
    for n, i, j in np.ndindex(2, h, w):
        total = 0.0
        for place in (PLACES[k] for k in OF[views]):
            row, col = place(i, j, h, w)
            total += float(images[n, i, j, 0]) * (1 + row + 10 * col**2)
        assert found[n, i, j] == pytest.approx(total / views, rel=1e-6)


@pytest.mark.parametrize("views", [1, 4, 8])
def test_turning_the_photograph_turns_the_answer_unless_there_is_one_view(views, rng):
    net = UNet(widths=(3, 4), seed=1)
    net.head.params["w"] *= 100
    predict = averaged(Model(net, ModelInfo()).predict, views)
    images = rng.integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    turned = predict(np.rot90(images, axes=(1, 2)).copy())
    error = abs(turned - np.rot90(predict(images), axes=(1, 2))).max()
    assert error > 0.01 if views == 1 else error < 1e-5
