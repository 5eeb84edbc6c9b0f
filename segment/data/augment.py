"""Random views of a place that are as true as its picture: nearer or farther, in another light.

Pictures are neither turned nor mirrored. In photographs with north at the top the sun stands on one
side, and roofs lean away from their footprints to another: a net that sees both learns from them.
"""

import numpy as np
from numpy.typing import NDArray

from segment.data.labels import IGNORE
from segment.data.resample import interpolated

ZOOM = 1.3  # a picture is shrunk or enlarged by up to this factor
BRIGHTNESS = 0.15  # shift of all channels, as a part of the full range
CONTRAST = 0.3  # factor about the middle grey is within 1 ± this
COLOUR = 0.1  # factor of each channel is within 1 ± this


def zoomed_size(size: int, rng: np.random.Generator) -> int:
    """The side of a square that `zoomed` brings to `size`: up to ZOOM times smaller or larger."""
    return round(size * ZOOM ** rng.uniform(-1, 1))


def zoomed(
    pixels: NDArray[np.uint8], coverage: NDArray[np.uint8], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A square picture and its coverage at another size, bilinear; next to IGNORE is IGNORE."""
    if len(coverage) == size:
        return pixels, coverage
    values = np.dstack([pixels, coverage, np.where(coverage == IGNORE, 255, 0)])
    values = interpolated(values, (size, size))
    bytes_ = np.round(values).astype(np.uint8)
    return bytes_[..., :3], np.where(values[..., 4] > 0, np.uint8(IGNORE), bytes_[..., 3])


def lit(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture (H, W, 3) in another light: a table for each channel.

    bytes.translate looks bytes up in a table several times faster than NumPy's indexing.
    """
    planes = [
        np.frombuffer(pixels[..., channel].tobytes().translate(table.tobytes()), np.uint8)
        for channel, table in enumerate(light_tables(1, rng)[0])
    ]
    return np.stack(planes, axis=-1).reshape(pixels.shape)


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
