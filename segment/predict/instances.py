"""The buildings of a whole scene, one by one: its marks are kept on the disk, not in memory."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment.data.rasters import Window, write_raster
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


def write_instances(
    bands: Iterable[Band], path: Path, dataset: Any, threshold: float, how: Separation
) -> None:
    """Write whose each pixel is, as a GeoTIFF of 32 bits: a building's id, 0 where none's."""
    if dataset.width * dataset.height >= 2**32:
        raise InputError(
            f"{dataset.name} has {dataset.width * dataset.height:,} pixels, and ids of 32 bits "
            "reach for fewer: predict with --shards, or ask for outlines"
        )
    _write(bands, path, dataset, threshold, how, "uint32")


def write_parted(
    bands: Iterable[Band], path: Path, dataset: Any, threshold: float, how: Separation
) -> None:
    """Write a mask, 0 and 255, with a line of 0 between buildings that touch."""
    _write(bands, path, dataset, threshold, how, "uint8")


def _write(
    bands: Iterable[Band], path: Path, dataset: Any, limit: float, how: Separation, dtype: str
) -> None:
    with write_raster(path, mask_profile(dataset, dtype)) as out:
        mark = marks_of(_noting_validity(bands, out), dataset.shape, limit)
        found = all_buildings(mark, how)
        for row in range(0, dataset.height, STRIP):
            rows = slice(row, min(row + STRIP, dataset.height))
            draw = found.numbers if dtype == "uint32" else found.parted
            window = Window(0, row, dataset.width, rows.stop - row)
            out.write(draw(rows, dataset.width), 1, window=window)


def _noting_validity(bands: Iterable[Band], out: Any) -> Iterator[Band]:
    for band in bands:
        out.write_mask(band.valid, window=Window(0, band.row, out.width, len(band.valid)))
        yield band


def found_in(bands: Iterable[Band], dataset: Any, threshold: float, how: Separation) -> Buildings:
    """Every building of a scene, by rising id."""
    return all_buildings(marks_of(bands, dataset.shape, threshold), how)
