"""PNG written row by row: a picture of any size in the memory of a few rows (RFC 2083)."""

import struct
import zlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

COLOURS = {1: 0, 3: 2, 4: 6}  # channels: colour type of grey, RGB, RGBA


def write_png(file: BinaryIO, shape: tuple[int, int], bands: Iterable[np.ndarray]) -> None:
    """Write bands (rows, W) or (rows, W, 3 or 4) of uint8, top to bottom, as one 8-bit picture.

    Each row is stored as its difference to the pixel on the left (filter 1, "Sub"), which
    photographs and probabilities compress well with.
    """
    compressor = zlib.compressobj(6)
    file.write(b"\x89PNG\r\n\x1a\n")
    for index, band in enumerate(bands):
        if index == 0:
            colour = COLOURS[1 if band.ndim == 2 else band.shape[2]]
            _chunk(file, b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], 8, colour, 0, 0, 0))
        lines = np.ones((len(band), 1 + band[0].size), np.uint8)  # the first byte: the filter
        differences = band.copy()
        differences[:, 1:] -= band[:, :-1]
        lines[:, 1:] = differences.reshape(len(band), -1)
        _chunk(file, b"IDAT", compressor.compress(lines.tobytes()))
    _chunk(file, b"IDAT", compressor.flush())
    _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data)
    file.write(struct.pack(">I", zlib.crc32(kind + data)))
