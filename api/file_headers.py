"""What an uploaded file says of itself, walked within bounds before GDAL parses it.

GDAL takes time that grows with the square of a TIFF's metadata, memory with each of its
directories, and unpacks every text of a PNG: a file of a megabyte can cost minutes or gigabytes.
"""

import struct
from pathlib import Path
from typing import IO

DIRECTORIES = 100  # of a TIFF: a mosaic with masks and overviews has some 20
ENTRIES = 1000  # of a directory
GDAL_METADATA = 42_112
GDAL_BYTES = 100_000  # of that tag, an XML of names and values
TAG_BYTES = 16_000_000  # of all other tags, less the places of pixels
PLACES = (273, 279, 324, 325)  # where each strip or tile is, and its size
PLACE_BYTES = 16_000_000
CHUNKS = 100_000  # of a PNG: pixels come in chunks of 8 kB or more
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf")
TEXT_BYTES = 64_000  # packed; unpacked it may be a thousand times that
SEGMENTS = 1000  # of a JPEG, before its pixels: each has 64 kB at most
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SIZES |= {16: 8, 17: 8, 18: 8}


class Excessive(Exception):
    """The file holds more of something than is taken; the text says of what."""


def check_header(path: Path) -> None:
    """Raise Excessive where a header would cost too much; what is broken is GDAL's to say."""
    with path.open("rb") as file:
        start = file.read(8)
        try:
            if start[:2] in (b"II", b"MM"):
                _tiff(file, ">" if start[:2] == b"MM" else "<", start)
            elif start == b"\x89PNG\r\n\x1a\n":
                _png(file)
            elif start[:2] == b"\xff\xd8":
                _jpeg(file)
        except (struct.error, ValueError, OSError):  # it ends too early, or points nowhere
            pass


def _tiff(file: IO[bytes], order: str, start: bytes) -> None:
    """Directories are a chain; each has entries of tag, type, count, and a value or its place."""
    big = start[2:4] in (b"+\0", b"\0+")
    file.seek(8 if big else 4)
    place, number, entry = ("Q", "Q", "HHQ8x") if big else ("I", "H", "HHI4x")

    def read(form: str) -> tuple[int, ...]:
        return struct.unpack(order + form, file.read(struct.calcsize(order + form)))

    tags = places = 0
    for _ in range(DIRECTORIES):
        (at,) = read(place)
        if not at:
            return
        file.seek(at)
        (entries,) = read(number)
        if entries > ENTRIES:
            raise Excessive(f"{entries} tags in a directory")
        for _ in range(entries):
            tag, kind, count = read(entry)
            size = count * SIZES.get(kind, 1)
            if tag == GDAL_METADATA and size > GDAL_BYTES:
                raise Excessive(f"{size // 1000} kB of GDAL metadata")
            places += size * (tag in PLACES)
            tags += size * (tag not in PLACES)
        if tags > TAG_BYTES or places > PLACE_BYTES:
            raise Excessive("so many tags")
    raise Excessive(f"more than {DIRECTORIES} directories")


def _png(file: IO[bytes]) -> None:
    texts = 0
    for _ in range(CHUNKS):
        size, kind = struct.unpack(">I4s", file.read(8))
        texts += (size + 12) * (kind in TEXTS)
        if texts > TEXT_BYTES:
            raise Excessive(f"more than {TEXT_BYTES // 1000} kB of texts")
        if kind == b"IEND":
            return
        file.seek(size + 4, 1)
    raise Excessive(f"more than {CHUNKS} chunks")


def _jpeg(file: IO[bytes]) -> None:
    file.seek(2)
    for _ in range(SEGMENTS):
        marker, size = struct.unpack(">HH", file.read(4))
        if marker == 0xFFDA or size < 2:  # the pixels begin, or nonsense
            return
        file.seek(size - 2, 1)
    raise Excessive(f"more than {SEGMENTS} segments")
