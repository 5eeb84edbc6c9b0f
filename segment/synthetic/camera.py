"""What a camera above a drawn scene sees: sunlight, the shadows it casts, blur, haze and noise."""

import math

import numpy as np

from segment.synthetic.canvas import PIXEL, Drawing, Window


def cast_shadows(height: np.ndarray, sun: np.ndarray) -> np.ndarray:
    """Shadow (H, W), 0 lit to 1 dark, of heights (H, W) under a sun: (east, south, up), unit.

    A point is dark if it lies below horizon(p) = max over t of height(p + t s) - t drop, where s
    is a pixel's step towards the sun and drop the fall of its rays on that step. The maximum over
    t < 2n is that over t < n and the same seen from p + n s: few passes for long shadows.
    """
    level = math.hypot(sun[0], sun[1])
    drop = PIXEL * sun[2] / level
    horizon, step = height.copy(), 1
    while step * drop < height.max():
        cols, from_cols = overlap(height.shape[1], round(step * sun[0] / level))
        rows, from_rows = overlap(height.shape[0], round(step * sun[1] / level))
        ray = horizon[from_rows, from_cols] - np.float32(step * drop)
        np.maximum(horizon[rows, cols], ray, out=horizon[rows, cols])
        step *= 2
    penumbra = 0.4  # metres of height over which the shadow's edge fades
    horizon -= height
    horizon /= penumbra
    return np.clip(horizon, 0, 1, out=horizon)


def overlap(size: int, shift: int) -> Window:
    """The slices of i and of i + shift for which both lie in range(size)."""
    shift = max(-size, min(shift, size))
    low, high = max(0, -shift), min(size, size - shift)
    return slice(low, high), slice(low + shift, high + shift)


def photograph(d: Drawing) -> np.ndarray:
    """What a camera sees of the drawing, (H, W, 3) uint8: light, blur, haze, cast, noise."""
    sunlit = d.light * (1 - cast_shadows(d.height, d.sun))
    image = np.empty(d.colour.shape, np.uint8)
    soft, exposure, haze = d.rng.uniform(0.04, 0.14), d.rng.uniform(1.05, 1.3), d.style.haze
    for band, sky in enumerate((0.27, 0.30, 0.35)):  # the blue sky lights the shadows
        plane = d.colour[..., band] * (sky + np.float32(1 - sky) * sunlit)
        for lines in (plane, plane.T):
            lines[1:-1] += soft * (lines[:-2] + lines[2:] - 2 * lines[1:-1])
        plane *= exposure * d.style.cast[band] * (1 - haze)
        plane += 190 * haze
        plane += 3 * d.rng.standard_normal(plane.shape, np.float32)
        image[..., band] = np.clip(plane, 0, 255, out=plane)
    return image
