"""More than 200 files that are broken, hostile or merely odd, made by code: (name, bytes, odd).

An odd file may be answered with a mask or refused; every other one must be refused.
"""

import struct
import zlib

import numpy as np
import rasterio
from rasterio.transform import Affine
from serving import PLACE, encode, picture, scene, unplaced_is_fine


def corpus(folder):
    for group in (
        truncated,
        corrupted,
        not_pictures,
        tiff_headers,
        pngs,
        formats,
        references,
        excessive,
    ):
        for number, (name, data, *odd) in enumerate(group(folder)):
            yield f"{group.__name__}-{number}-{name}", data, bool(odd and odd[0])


def truncated(folder):
    files = {
        "tif": scene(64, 64),
        "deflate": scene(64, 64, compress="deflate"),
        "jpg": encode(picture(64, 64), "JPEG"),
        "png": encode(picture(64, 64), "PNG"),
    }
    for name, data in files.items():
        for share in (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
            # A TIFF's pixels may come before what is cut off, and then it is whole.
            yield name, data[: int(len(data) * share)], name in ("tif", "deflate")
    yield "empty", b""
    for magic in (b"II*\0", b"MM\0*", b"II+\0", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"):
        yield "magic", magic
        yield "magic-and-zeros", magic + bytes(1000)
        yield "magic-and-noise", magic + np.random.default_rng(1).bytes(5000)


def corrupted(folder):
    """Bytes changed at random: in headers, where it hurts, and anywhere. Some do no harm."""
    rng = np.random.default_rng(2)
    sources = [scene(64, 64), scene(64, 64, compress="deflate", tiled=True, blockxsize=16)]
    sources += [encode(picture(64, 64), "JPEG"), encode(picture(64, 64), "PNG")]
    sources += [scene(64, 64, compress="lzw"), scene(64, 64, compress="jpeg")]
    for source in sources:
        for attempt in range(14):
            data = bytearray(source)
            reach = 400 if attempt % 2 else len(data)
            for place in rng.integers(4, reach, 1 + attempt):
                data[place] = rng.integers(256)
            yield "bytes", bytes(data), True


def not_pictures(folder):
    secret = folder / "secret.tif"
    secret.write_bytes(scene(32, 32))
    bands = "".join(  # three: nothing but being a VRT is wrong with it
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename>{secret}'
        f"</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    vrt = f'<VRTDataset rasterXSize="32" rasterYSize="32">{bands}</VRTDataset>'
    yield "a.vrt", vrt.encode()
    yield "vrt.tif", b"\xef\xbb\xbf" + vrt.encode()
    yield (
        "python.vrt",
        vrt.replace("VRTRasterBand ", 'VRTRasterBand subClass="VRTDerived" ').encode(),
    )
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    yield "bomb.xml", f'<!DOCTYPE l [<!ENTITY l0 "ha">{laughs}]><l>&l9;</l>'.encode()
    entity = '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>'
    yield "entity.svg", f'{entity}<svg xmlns="http://www.w3.org/2000/svg">&f;</svg>'.encode()
    wms = "<GDAL_WMS><Service name='TMS'><ServerUrl>http://127.0.0.1:9/</ServerUrl></Service>"
    yield "wms.xml", f"{wms}</GDAL_WMS>".encode()
    yield "list.txt", b"/etc/passwd\n"
    yield "path", b"/vsicurl/http://127.0.0.1:9/x.tif"
    yield "page.html", b"<!doctype html><script>alert(1)</script>"
    yield "a.gif", b"GIF89a" + struct.pack("<HHBBB", 60000, 60000, 0, 0, 0)
    yield "a.bmp", b"BM" + bytes(100)
    yield "a.zip", b"PK\x03\x04" + bytes(100)
    yield "a.gz", b"\x1f\x8b\x08" + bytes(100)
    yield "a.webp", b"RIFF\x20\0\0\0WEBPVP8 " + bytes(100)
    yield "a.jp2", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100)
    yield "a.nc", b"CDF\x01" + bytes(100)
    yield "a.hdf", b"\x89HDF\r\n\x1a\n" + bytes(100)
    yield "a.pdf", b"%PDF-1.7\n" + bytes(100)
    yield "zeros", bytes(10_000)
    yield "noise", np.random.default_rng(3).bytes(10_000)
    yield "scene.json", b'{"type": "FeatureCollection", "features": []}'


def tiff(entries, data=b"", offset=8):
    """A little-endian TIFF of one directory: (tag, type, count, value) with the values in place."""
    body = struct.pack("<H", len(entries))
    for tag, kind, count, value in sorted(entries):
        body += struct.pack("<HHI", tag, kind, count) + struct.pack("<I", value)
    return b"II*\0" + struct.pack("<I", offset) + body + struct.pack("<I", 0) + data


def tiff_headers(folder):
    short, long = 3, 4
    sane = {
        256: (short, 1, 8), 257: (short, 1, 8), 258: (short, 1, 8), 259: (short, 1, 1),
        262: (short, 1, 1), 273: (long, 1, 200), 277: (short, 1, 1), 278: (short, 1, 8),
        279: (long, 1, 64),
    }  # fmt: skip

    def changed(**values):
        entries = {**sane, **{int(k[1:]): v for k, v in values.items()}}
        return tiff([(tag, *value) for tag, value in entries.items() if value], bytes(300))

    for side in (0, 1, 65_535):
        yield "width", changed(t256=(short, 1, side))
        yield "height", changed(t257=(short, 1, side))
    for side in (10**5, 2**31 - 1, 2**31, 2**32 - 1):
        yield "huge-width", changed(t256=(long, 1, side))
        yield "huge-height", changed(t257=(long, 1, side))
        yield "huge", changed(t256=(long, 1, side), t257=(long, 1, side))
    for bands in (0, 2, 255, 65_535):
        yield "bands", changed(t277=(short, 1, bands))
    for bits in (0, 1, 7, 12, 16, 64, 65_535):
        yield "bits", changed(t258=(short, 1, bits)), bits == 1  # it has a palette
    for compression in (0, 2, 5, 6, 7, 8, 34_712, 34_887, 34_925, 50_000, 50_001, 65_535):
        yield "compression", changed(t259=(short, 1, compression))
    for photometric in (0, 2, 3, 5, 6, 8, 32_803, 65_535):
        yield (
            "photometric",
            changed(t262=(short, 1, photometric)),
            photometric in (0, 3),
        )  # likewise
    for place in (0, 7, 10**6, 2**32 - 1):
        yield "strip-offset", changed(t273=(long, 1, place))
        yield "strip-bytes", changed(t279=(long, 1, place))
    for rows in (0, 2**32 - 1):
        yield "rows-per-strip", changed(t278=(long, 1, rows))
    yield "no-strips", changed(t273=None, t279=None)
    yield "no-size", changed(t256=None, t257=None)
    yield "tiles-of-nothing", changed(t322=(short, 1, 0), t323=(short, 1, 0))
    yield "tiles-too-large", changed(t322=(long, 1, 2**31), t323=(long, 1, 2**31))
    yield "directory-behind-the-end", tiff([(256, short, 1, 8)], offset=10**6)
    yield "directory-in-a-circle", b"II*\0\x08\0\0\0\0\0\x08\0\0\0"
    yield "endless-array", changed(t258=(short, 2**31, 8))


def chunk(kind, content):
    return (
        struct.pack(">I", len(content)) + kind + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )  # fmt: skip


def png(width, height, bits=8, colour=2, interlace=0, data=None, extra=b""):
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)
    data = zlib.compress(bytes(1000)) if data is None else data
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    return start + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def pngs(folder):
    for width, height in ((0, 8), (8, 0), (2**31 - 1, 2**31 - 1), (10**6, 10**6), (2**31, 1)):
        yield "size", png(width, height)
    for bits, colour in ((3, 2), (8, 1), (8, 5), (16, 2), (1, 0), (16, 4), (255, 255)):
        yield "colours", png(8, 8, bits, colour)
    rows = (b"\0" + bytes(24)) * 8
    yield "interlaced-nonsense", png(8, 8, interlace=7, data=zlib.compress(rows))
    yield "interlaced", png(8, 8, interlace=1, data=zlib.compress(bytes(300))), True
    yield "no-zlib", png(8, 8, data=b"not compressed")
    yield "too-short", png(8, 8, data=zlib.compress(bytes(10))), True  # libpng fills up
    yield "bomb", png(9000, 9000, data=zlib.compress(bytes(50 * 10**6), 9))
    yield "bad-filter", png(8, 8, data=zlib.compress((b"\x09" + bytes(24)) * 8))
    yield "palette-without-one", png(8, 8, colour=3, data=zlib.compress((b"\0" + bytes(8)) * 8))
    # an animation whose still picture is fine
    control = struct.pack(">II", 2, 0)
    actl = (
        struct.pack(">I", 8) + b"acTL" + control + struct.pack(">I", zlib.crc32(b"acTL" + control))
    )
    yield "animated", png(8, 8, data=zlib.compress(rows), extra=actl), True


def formats(folder):
    """Whole pictures of a kind the model doesn't take, or takes only just."""
    grey = picture(32, 32)[..., 0]
    yield "grey", encode(grey, "PNG")
    yield "grey-alpha", encode(np.dstack([grey, grey]), "PNG")
    yield "16-bit", encode(picture(32, 32).astype(np.uint16) * 257, "PNG")
    yield "16-bit", scene_of(picture(32, 32).astype(np.uint16))
    for kind in ("int16", "int32", "float32", "float64", "complex64", "uint32"):
        yield kind, scene_of(picture(32, 32).astype(kind))
    for value in (np.nan, np.inf):
        yield "not-finite", scene_of(np.full((32, 32, 3), value, np.float32))
    for bands in (1, 2, 5, 13):
        yield "bands", scene_of(np.zeros((32, 32, bands), np.uint8))
    yield "many-bands", scene_of(np.zeros((4, 4, 2000), np.uint8))
    yield "cmyk", cmyk_jpeg(folder)  # GDAL would turn it into some RGB
    yield "palette", palette_png(folder), True
    yield "one-pixel", scene(1, 1), True
    yield "one-row", scene(1, 3000), True
    yield "one-column", scene(3000, 1), True
    yield "wide", scene(1, 40_000)
    yield "all-nodata", scene(32, 32, nodata=0), True
    places = {
        "rotated": Affine.translation(5e5, 5e6) @ Affine.rotation(33) @ Affine.scale(0.3, -0.3),
        "mirrored": Affine(-0.3, 0, 5e5, 0, 0.3, 5e6),
        "flat": Affine(0.3, 0, 5e5, 0.3, 0, 5e6),
        "tiny": Affine(1e-12, 0, 5e5, 0, -1e-12, 5e6),
        "coarse": Affine(1000, 0, 5e5, 0, -1000, 5e6),
        "far-away": Affine(0.3, 0, 1e300, 0, -0.3, -1e300),
        "not-a-number": Affine(np.nan, 0, np.nan, 0, np.nan, np.nan),
        "infinite": Affine(np.inf, 0, 0, 0, -np.inf, 0),
    }
    for name, place in places.items():
        yield name, scene(32, 32, transform=place), True
        yield f"{name}-degrees", scene(32, 32, transform=place, crs="EPSG:4326"), True
    yield "nowhere", scene(32, 32, crs='LOCAL_CS["a",UNIT["metre",1]]'), True


def scene_of(pixels):
    return encode(pixels, **PLACE)


def cmyk_jpeg(folder):
    """Four components make a JPEG CMYK."""
    return encode(np.dstack([picture(32, 32), picture(32, 32)[..., :1]]), "JPEG")


def palette_png(folder):
    path = folder / "palette.tif"
    with unplaced_is_fine():
        size = {"height": 32, "width": 32, "count": 1, "dtype": "uint8"}
        with rasterio.open(path, "w", driver="GTiff", **size, photometric="palette") as dataset:
            dataset.write(picture(32, 32)[..., 0] // 64, 1)
            dataset.write_colormap(1, {n: (n * 60, 0, 0, 255) for n in range(4)})
        return path.read_bytes()


def references(folder):
    """TIFFs whose metadata name other files, which GDAL would open on the way."""
    secret = folder / "other.tif"
    secret.write_bytes(scene(32, 32))
    for target in (str(secret), "/vsicurl/http://127.0.0.1:9/x", "/vsis3/a/b", "/etc/passwd"):
        path = folder / "names.tif"
        path.write_bytes(scene(64, 64))
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=target)
        yield "overviews", path.read_bytes()
        path.unlink()
    hidden = scene(64, 64)
    with rasterio.MemoryFile(hidden) as memory, memory.open() as dataset:
        assert dataset.count == 3


def excessive(folder):
    """A little of everything that GDAL handles badly in quantity."""
    sane = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    sane += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 8), (279, 4, 1, 64)]
    items = "".join(f'<Item name="k{n}">v</Item>' for n in range(50_000))
    text = f"<GDALMetadata>{items}</GDALMetadata>\0".encode()
    yield "metadata", tiff([*sane, (42112, 2, len(text), 1000)]).ljust(1000, b"\0") + text
    body = struct.pack("<H", len(sane)) + b"".join(struct.pack("<HHII", *tag) for tag in sane)
    size = len(body) + 4
    chain = (body + struct.pack("<I", 8 + n * size) for n in range(1, 120_000))
    yield "directories", b"II*\0\x08\0\0\0" + b"".join(chain)
    pixels = zlib.compress((b"\0" + bytes(24)) * 8)
    packed = zlib.compress(bytes(b"A" * 7_000_000))
    bombs = b"".join(chunk(b"zTXt", b"key%d\0\0" % n + packed) for n in range(200))
    yield "packed-texts", png(8, 8, data=pixels, extra=bombs)
    texts = b"".join(chunk(b"tEXt", b"key%d\0v" % n) for n in range(100_000))
    yield "texts", png(8, 8, data=pixels, extra=texts)
    yield "chunks", png(8, 8, data=pixels, extra=chunk(b"IDAT", b"") * 1_000_000)
    yield "segments", b"\xff\xd8" + b"\xff\xfe\0\x02" * 500_000
    flat = np.zeros((9990, 9990, 3), np.uint8)
    yield "progressive", encode(flat, "JPEG", PROGRESSIVE="ON", photometric="RGB"), True
