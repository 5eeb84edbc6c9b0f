"""Random views of a tile that are as true as the tile: turned, mirrored, in another light."""

import numpy as np
from numpy.typing import NDArray

BRIGHTNESS = 0.15  # shift of all channels, as a part of the full range
CONTRAST = 0.25  # factor about the middle grey is within 1 ± this
COLOUR = 0.08  # factor of each channel is within 1 ± this


def augment(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """New arrays: images (N, S, S, 3) and labels (N, S, S), each tile turned and lit at random.

    One of the eight symmetries of the square moves image and label alike; the light, drawn for each
    image and channel, changes pixel values of the image only. The same rng state gives the same
    result. (bytes.translate looks bytes up in a table several times faster than NumPy's indexing.)
    """
    N = len(images)
    turns, mirrored = rng.integers(4, size=N), rng.integers(2, size=N)
    tables = light_tables(N, rng)
    new_images, new_labels = np.empty_like(images), np.empty_like(labels)
    for n in range(N):
        image, label = np.rot90(images[n], turns[n]), np.rot90(labels[n], turns[n])
        if mirrored[n]:
            image, label = image[:, ::-1], label[:, ::-1]
        for channel in range(3):
            plane = image[:, :, channel].tobytes().translate(tables[n, channel].tobytes())
            new_images[n, :, :, channel] = np.frombuffer(plane, np.uint8).reshape(label.shape)
        new_labels[n] = label
    return new_images, new_labels


def light_tables(N: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A look-up table (N, 3, 256) for each image and channel.

    value -> colour · (contrast · (value - 127.5) + 127.5 + brightness), clipped to 0 ... 255.
    """
    brightness = rng.uniform(-BRIGHTNESS, BRIGHTNESS, (N, 1, 1)) * 255
    contrast = rng.uniform(1 - CONTRAST, 1 + CONTRAST, (N, 1, 1))
    colour = rng.uniform(1 - COLOUR, 1 + COLOUR, (N, 3, 1))
    value = np.arange(256)
    lit = colour * (contrast * (value - 127.5) + 127.5 + brightness)
    return np.clip(lit, 0, 255).round().astype(np.uint8)
