"""Scenes that lie on one grid as one picture: which they are, its blocks, its virtual raster."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree as xml

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from minicnn.files import atomic_write
from segment.data.ground import ground_pixel_size, same_crs
from segment.data.rasters import CRS, Window, naming, open_raster, shifted
from segment.errors import InputError
from segment.geo.separate import Separation
from segment.predict.shards import MASKS, TAG, Piece, Plan, Source

_OFF_GRID = 0.05  # pixels
BLOCK = 4096  # pixels along the side of what is held at once

Masks = dict[str, Path]  # the file of each piece, on this machine
Read = Callable[[slice, slice], tuple[NDArray[np.uint8], NDArray[np.bool_]]]


@dataclass(frozen=True)
class Mosaic:
    """Masks on one grid: the same CRS (WKT), pixel size and rotation, whole pixels apart.

    Where two have the same ground, the later one in the plan counts, as far as it is valid.
    """

    crs: str | None
    transform: Affine
    height: int
    width: int
    pieces: tuple[Piece, ...]  # each at its row and column of the mosaic
    separation: Separation  # in pixels of the grid
    digest: str  # of the plan


def mosaics(plan: Plan) -> list[Mosaic]:
    """One mosaic for every grid, in the order of the plan; a scene without a place is its own."""
    grids: list[list[int]] = []  # scenes of each; the first one says which grid it is
    corners: dict[int, NDArray[np.float64]] = {}
    for index, source in enumerate(plan.scenes):
        for members in grids:
            corner = _corner_on(plan.scenes[members[0]], source)
            if corner is not None:
                members.append(index)
                corners[index] = corner
                break
        else:
            grids.append([index])
            corners[index] = np.zeros(2)
    pieces: dict[int, list[Piece]] = defaultdict(list)
    for piece in plan.pieces:
        pieces[piece.scene].append(piece)
    return [_mosaic(plan, members, corners, pieces) for members in grids]


def _corner_on(grid: Source, source: Source) -> NDArray[np.float64] | None:
    """(row, col) of a scene's corner on another's grid; None where it doesn't lie on that.

    It does if the CRSs mean the same and its corners are all whole pixels away, give or take a
    twentieth: coordinates come rounded, to a millimetre or nine digits.
    """
    if not (grid.crs and source.crs) or grid.place.is_identity or source.place.is_identity:
        return None
    if not _same(grid.crs, source.crs):
        return None
    onto = ~grid.place @ source.place
    height, width = source.height, source.width
    ends = [(0, 0), (width, 0), (0, height), (width, height)]
    moved = np.array([onto @ end for end in ends]) - ends
    whole = np.round(moved[0])
    if np.abs(moved - whole).max() > _OFF_GRID:
        return None
    return whole[::-1]


@lru_cache
def _same(one: str, other: str) -> bool:
    return one == other or same_crs(CRS.from_wkt(one), CRS.from_wkt(other))


def _mosaic(
    plan: Plan,
    members: list[int],
    corners: dict[int, NDArray[np.float64]],
    pieces: dict[int, list[Piece]],
) -> Mosaic:
    first = plan.scenes[members[0]]
    offsets = np.array([np.round(corners[i] - corners[members[0]]) for i in members]).astype(int)
    sizes = np.array([(plan.scenes[i].height, plan.scenes[i].width) for i in members])
    low, high = offsets.min(axis=0), (offsets + sizes).max(axis=0)
    here = [
        replace(piece, row=int(row) + piece.row, col=int(col) + piece.col)
        for index, (row, col) in zip(members, offsets - low, strict=True)
        for piece in pieces[index]
    ]
    place = shifted(first.place, int(low[0]), int(low[1]))
    height, width = (int(size) for size in high - low)
    return Mosaic(
        first.crs, place, height, width, tuple(here), _separation(plan, first), plan.digest
    )


def _separation(plan: Plan, source: Source) -> Separation:
    """How the model parts buildings in a scene, in its pixels, as when it is predicted alone."""
    told = dict(plan.request["separation"])
    wanted = told.pop("pixel_size")
    size = {"height": source.height, "width": source.width}
    profile = {"crs": source.crs, "transform": source.place} | size
    return Separation(**told).on(source.pixel_size or ground_pixel_size(profile), wanted)


# ---------------------------------------------------------------- its pixels


def reader(mosaic: Mosaic, masks: Masks, band: int) -> Read:
    """What gives a band of the mosaic in any rows and columns, and where it is valid."""
    sides = np.array([(each.row, each.col, each.height, each.width) for each in mosaic.pieces])
    top, left, height, width = sides.T

    def read(rows: slice, cols: slice) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        meet = (top < rows.stop) & (top + height > rows.start)
        meet &= (left < cols.stop) & (left + width > cols.start)
        meeting = [mosaic.pieces[index] for index in np.flatnonzero(meet)]
        return _read(mosaic, masks, (rows, cols), meeting, band)

    return read


def blocks(
    mosaic: Mosaic, masks: Masks
) -> Iterator[tuple[Window, NDArray[np.uint8], NDArray[np.bool_]]]:
    """The mosaic's mask and validity, block by block; blocks where no piece lies are left out."""
    read = reader(mosaic, masks, 1)
    for row, col in itertools.chain.from_iterable(places(mosaic, BLOCK)):
        rows = slice(row, min(row + BLOCK, mosaic.height))
        cols = slice(col, min(col + BLOCK, mosaic.width))
        yield Window.from_slices(rows, cols), *read(rows, cols)


def places(mosaic: Mosaic, side: int) -> list[list[tuple[int, int]]]:
    """Where the blocks of this side begin in which a piece lies, row by row from the top."""
    found = {
        (row, col)
        for piece in mosaic.pieces
        for row in range(piece.row // side * side, piece.row + piece.height, side)
        for col in range(piece.col // side * side, piece.col + piece.width, side)
    }
    by_row = itertools.groupby(sorted(found), lambda place: place[0])
    return [list(row) for _, row in by_row]


def _read(
    mosaic: Mosaic, masks: Masks, box: tuple[slice, slice], pieces: list[Piece], band: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A band of the pieces in a box of the mosaic, and where it is valid."""
    row, col = box[0].start, box[1].start
    shape = box[0].stop - row, box[1].stop - col
    mask, valid = np.zeros(shape, np.uint8), np.zeros(shape, bool)
    for piece in pieces:
        rows, own_rows = _shared(row, shape[0], piece.row, piece.height)
        cols, own_cols = _shared(col, shape[1], piece.col, piece.width)
        with open_raster(masks[piece.name]) as dataset:
            size = dataset.height, dataset.width
            if dataset.tags().get(TAG) != mosaic.digest or size != (piece.height, piece.width):
                raise InputError(f"{dataset.name} is no mask of this plan: run its shard again")
            part = Window.from_slices(own_rows, own_cols)
            with naming(dataset):
                values = dataset.read(band, window=part)
                seen = dataset.dataset_mask(window=part) != 0
        mask[rows, cols][seen] = values[seen]
        valid[rows, cols] |= seen
    return mask, valid


def _shared(start: int, size: int, other: int, length: int) -> tuple[slice, slice]:
    """What two spans share, as a slice of each."""
    low, high = max(start, other), min(start + size, other + length)
    return slice(low - start, high - start), slice(low - other, high - other)


# ---------------------------------------------------------------- the virtual raster


def write_vrt(mosaic: Mosaic, path: Path) -> None:
    """Write a GDAL virtual raster of the mosaic, with its mask band, that names the masks."""
    root = xml.Element("VRTDataset", rasterXSize=str(mosaic.width), rasterYSize=str(mosaic.height))
    if mosaic.crs:
        xml.SubElement(root, "SRS").text = mosaic.crs
    if not mosaic.transform.is_identity:
        place = ", ".join(map(repr, mosaic.transform.to_gdal()))
        xml.SubElement(root, "GeoTransform").text = place
    values = xml.SubElement(root, "VRTRasterBand", dataType="Byte", band="1")
    masks = xml.SubElement(xml.SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
    for piece in mosaic.pieces:
        # What isn't valid covers nothing that another piece has.
        xml.SubElement(_source(values, piece, "1"), "UseMaskBand").text = "true"
        xml.SubElement(_source(masks, piece, "mask,1"), "NODATA").text = "0"
    with atomic_write(path) as temporary:
        xml.ElementTree(root).write(temporary)


def _source(band: xml.Element, piece: Piece, number: str) -> xml.Element:
    source = xml.SubElement(band, "ComplexSource")
    xml.SubElement(source, "SourceFilename", relativeToVRT="1").text = f"{MASKS}/{piece.name}"
    xml.SubElement(source, "SourceBand").text = number
    for name, col, row in (("SrcRect", 0, 0), ("DstRect", piece.col, piece.row)):
        box = {"xOff": col, "yOff": row, "xSize": piece.width, "ySize": piece.height}
        xml.SubElement(source, name, {side: str(number) for side, number in box.items()})
    return source
