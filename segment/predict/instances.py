"""The buildings of a whole scene, one by one: its marks are kept on the disk, not in memory."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment.data.rasters import Window, write_cog
from segment.errors import InputError
from segment.geo.buildings import Buildings, all_buildings
from segment.geo.separate import Separation
from segment.predict.scene import Band, mask_profile

STRIP = 512  # rows that are drawn at once


def marks_of(bands: Iterable[Band], shape: tuple[int, int], threshold: float) -> NDArray[np.uint8]:
    """The marks of a scene as an array in a temporary file, which goes when the array does."""
    with tempfile.TemporaryFile(prefix="minicnn-") as file:
        marks = np.memmap(file, np.uint8, "w+", shape=shape)
        for band in bands:
            found = band.marks(threshold)
            marks[band.row : band.row + len(found)] = found
    return marks


def write_buildings(
    bands: Iterable[Band],
    path: Path,
    dataset: Any,
    threshold: float,
    how: Separation,
    tags: Mapping[str, str],
    ids: bool,
) -> None:
    """Write a GeoTIFF with, of 32 bits, the id of each pixel's building, 0 where there is none; or
    without `ids` a mask, 0 and 255, with a line of 0 between buildings that touch."""
    if ids and dataset.width * dataset.height >= 2**32:
        raise InputError(
            f"{dataset.name} has {dataset.width * dataset.height:,} pixels, and ids of 32 bits "
            "reach for fewer: predict with --shards, or ask for outlines"
        )
    with write_cog(path, mask_profile(dataset, "uint32" if ids else "uint8"), tags) as out:
        found = found_in(_noting_validity(bands, out), dataset, threshold, how)
        draw = found.numbers if ids else found.parted
        for row in range(0, dataset.height, STRIP):
            rows = slice(row, min(row + STRIP, dataset.height))
            window = Window(0, row, dataset.width, rows.stop - row)
            out.write(draw(rows, dataset.width), 1, window=window)


def _noting_validity(bands: Iterable[Band], out: Any) -> Iterator[Band]:
    for band in bands:
        out.write_mask(band.valid, window=Window(0, band.row, out.width, len(band.valid)))
        yield band


def found_in(bands: Iterable[Band], dataset: Any, threshold: float, how: Separation) -> Buildings:
    """Every building of a scene, by rising id."""
    return all_buildings(marks_of(bands, dataset.shape, threshold), how)
