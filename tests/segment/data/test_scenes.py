"""Reading pictures and labels, and finding them, against what was written and plain arithmetic."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyproj
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from pictures import UTM, mask, photograph, write_pair, write_picture
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine
from rasterio.windows import Window

from segment.data.ground import ground_pixel_size, working_shape
from segment.data.labels import read_label
from segment.data.rasters import open_raster, write_raster
from segment.data.reading import Reading, read_pixels
from segment.data.scenes import Scene, find_scenes
from segment.errors import InputError


def read(path, reading=None, **where):
    with open_raster(path) as dataset:
        return read_pixels(dataset, reading, **where)


def label_of(image, label):
    with open_raster(image) as dataset:
        return read_label(Scene(image, label, "s", "s", "c", None), dataset)


# ---------------------------------------------------------------- pictures, by content


@pytest.mark.parametrize("driver", ["GTiff", "PNG", "JPEG"])
@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg"])
def test_the_format_is_read_from_the_content(tmp_path, driver, suffix):
    flat = np.full((40, 50, 3), (200, 100, 50), np.uint8)  # JPEG keeps one colour
    pixels, valid = read(write_picture(tmp_path / f"x{suffix}", flat, driver))
    assert abs(pixels.astype(int) - flat).max() <= 2 and valid.all()


def test_only_three_drivers_open(tmp_path):
    inner = write_picture(tmp_path / "inner.tif", photograph(20, 20))
    vrt = tmp_path / "x.tif"
    band = f"<SimpleSource><SourceFilename>{inner}</SourceFilename></SimpleSource>"
    vrt.write_text(
        '<VRTDataset rasterXSize="20" rasterYSize="20">'
        f'<VRTRasterBand dataType="Byte" band="1">{band}</VRTRasterBand></VRTDataset>'
    )
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(vrt) as dataset:
        assert dataset.read(1).any()  # a sound VRT, which rasterio by itself would follow
    hdf = tmp_path / "h.tif"
    hdf.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    for path in (vrt, hdf):
        with pytest.raises(InputError, match=f"{path.name}.*GeoTIFF, JPEG or PNG"):
            read(path)


@pytest.mark.parametrize("content", [b"", b"text", b"II*\0", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_empty_and_stump_files_are_refused(tmp_path, content):
    path = tmp_path / "stump.tif"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"stump\.tif"):
        read(path)
    with pytest.raises(InputError, match=r"absent\.tif"):
        read(tmp_path / "absent.tif")


@pytest.mark.parametrize("form", [
    {"driver": "PNG"}, {"driver": "JPEG"}, {"driver": "GTiff"},
    {"driver": "GTiff", "compress": "deflate"},
    {"driver": "GTiff", "compress": "jpeg", "photometric": "ycbcr"},
])  # fmt: skip
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.995])
def test_cut_off_pictures_are_refused(tmp_path, form, kept):
    whole = write_picture(tmp_path / "whole.tif", photograph(300, 300), **form).read_bytes()
    path = tmp_path / "cut.tif"
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(InputError, match=r"cut\.tif.*cut off"):
        read(path)


@pytest.mark.parametrize("form", [
    {"driver": "PNG"}, {"driver": "JPEG"}, {"driver": "GTiff", "compress": "deflate"},
    {"driver": "GTiff", "compress": "jpeg", "photometric": "ycbcr"},
])  # fmt: skip
def test_pictures_with_a_hole_are_refused(tmp_path, form):
    whole = bytearray(write_picture(tmp_path / "x.tif", photograph(300, 300), **form).read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 4096] = b"\xff" * 4096
    (tmp_path / "x.tif").write_bytes(whole)
    with pytest.raises(InputError, match=r"x\.tif.*damaged"):
        read(tmp_path / "x.tif")


# ---------------------------------------------------------------- pixels and validity


def test_black_is_valid_and_a_declared_nodata_value_is_not(tmp_path):
    pixels = photograph(60, 80)
    black = (pixels == 0).all(axis=-1)
    got, valid = read(write_picture(tmp_path / "a.tif", pixels))
    assert (got == pixels).all() and valid.all() and black.any()
    got, valid = read(write_picture(tmp_path / "b.tif", pixels, nodata=0))
    assert (valid == ~black).all()
    assert (got == pixels).all()  # one channel that is 0 is a colour


def test_alpha_and_mask_bands_say_what_is_valid(tmp_path):
    pixels, alpha = photograph(40, 50), mask(40, 50)
    rgba = write_picture(tmp_path / "a.png", np.dstack([pixels, alpha]), "PNG")
    masked = tmp_path / "m.tif"
    profile = {"height": 40, "width": 50, "count": 3, "dtype": "uint8", **UTM}
    with write_raster(masked, profile) as out:
        out.write(np.moveaxis(pixels, -1, 0))
        out.write_mask(alpha)
    for path in (rgba, masked):
        got, valid = read(path)
        assert (valid == (alpha == 255)).all()
        assert (got == np.where(valid[..., None], pixels, 0)).all()


def test_what_is_not_8_bit_rgb_needs_an_option(tmp_path):
    wide = photograph(30, 30).astype(np.uint16) * 7
    path = write_picture(tmp_path / "wide.tif", wide)
    with pytest.raises(InputError, match=r"wide\.tif.*uint16.*--value-range"):
        read(path)
    assert str(Reading((4, 3, 2), (100, 1500))) == "--bands 4 3 2 --value-range 100 1500"
    narrow = write_picture(tmp_path / "narrow.tif", photograph(20, 30))
    with pytest.raises(InputError, match=r"narrow\.tif holds 8-bit pixels.*up to 1500"):
        read(narrow, Reading(value_range=(100, 1500)))  # would come out nearly black
    got, _ = read(path, Reading(value_range=(100, 1500)))
    expected = np.clip((wide.astype(float) - 100) / 1400 * 255, 0, 255)
    assert abs(got - expected).max() <= 0.501

    for count in (1, 2, 5):
        path = tmp_path / f"{count}.tif"
        write_picture(
            path, photograph(30, 30)[..., [0, 1, 2, 0, 1][:count]], photometric="minisblack"
        )
        with pytest.raises(InputError, match=rf"{count}\.tif.*{count} colour band.*--bands"):
            read(path)
    four = np.dstack([photograph(30, 30), np.full((30, 30), 9, np.uint8)])
    path = write_picture(tmp_path / "four.tif", four, photometric="minisblack")
    got, _ = read(path, Reading(bands=(4, 2, 1)))
    assert (got == four[..., [3, 1, 0]]).all()
    with pytest.raises(InputError, match=r"four\.tif.*1 to 4"):
        read(path, Reading(bands=(1, 2, 5)))
    with pytest.raises(InputError, match="--value-range"):
        read(path, Reading(bands=(1, 2, 3), value_range=(9, 9)))


def test_nan_is_refused_unless_declared_nodata(tmp_path):
    values = photograph(30, 30).astype(np.float32)
    values[3, 4] = np.nan
    reading = Reading(value_range=(0, 255))
    with pytest.raises(InputError, match=r"nan\.tif.*NaN"):
        read(write_picture(tmp_path / "nan.tif", values), reading)
    got, valid = read(write_picture(tmp_path / "ok.tif", values, nodata=np.nan), reading)
    assert np.argwhere(~valid).tolist() == [[3, 4]] and (got[3, 4] == 0).all()


@given(st.integers(-40, 60), st.integers(-40, 60), st.integers(1, 70), st.integers(1, 70))
def test_a_window_beyond_the_edge_is_invalid_there(shared, row, col, height, width):
    path, pixels = shared
    got, valid = read(path, window=Window(col, row, width, height))
    padded = np.pad(pixels, ((100, 100), (100, 100), (0, 0)))
    where = np.pad(np.ones(pixels.shape[:2], bool), 100)
    at = np.s_[100 + row : 100 + row + height, 100 + col : 100 + col + width]
    assert (got == padded[at]).all() and (valid == where[at]).all()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    pixels = photograph(48, 36)
    return write_picture(tmp_path_factory.mktemp("shared") / "x.tif", pixels), pixels


def test_shrinking_averages_and_windows_agree_with_the_whole(shared):
    path, pixels = shared
    means = pixels.reshape(24, 2, 18, 2, 3).mean(axis=(1, 3))
    whole, valid = read(path, shape=(24, 18))
    assert abs(whole - means).max() <= 0.501 and valid.all()
    parts = [read(path, window=Window(0, r, 36, 16), shape=(8, 18))[0] for r in (0, 16, 32)]
    assert (np.concatenate(parts) == whole).all()
    beyond, valid = read(path, window=Window(0, 40, 36, 16), shape=(8, 18))
    assert (beyond[:4] == whole[20:]).all() and valid[:4].all() and not valid[4:].any()
    before, valid = read(path, window=Window(0, -3, 36, 16), shape=(8, 18))  # half a pixel out
    assert not valid[:2].any() and valid[2:].all() and (before[:2] == 0).all()
    odd = pixels[1:13].reshape(6, 2, 18, 2, 3).mean(axis=(1, 3))
    assert abs(before[2:] - odd).max() <= 0.501


def test_overviews_have_no_say(tmp_path):
    path = write_picture(tmp_path / "x.tif", photograph(64, 64))
    before, _ = read(path, shape=(32, 32))
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2], Resampling.nearest)
    assert (read(path, shape=(32, 32))[0] == before).all()


def test_bands_of_a_resampled_picture_meet_without_a_seam(shared):
    path, _ = shared
    for shape in ((30, 22), (75, 56)):  # steps of 1.6 and 0.64 pixels
        whole, _ = read(path, shape=shape)
        step = 48 / shape[0]
        parts = [
            read(path, window=Window(0, r * step, 36, 5 * step), shape=(5, shape[1]))
            for r in range(0, shape[0], 5)
        ]
        assert all(valid.all() for _, valid in parts)
        together = np.concatenate([part for part, _ in parts]).astype(int)
        assert abs(together - whole).max() <= 1


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("top", [1, 255])
@pytest.mark.parametrize("form", [{}, {"nodata": 0}, {"nodata": 1}, {"driver": "PNG"}])
def test_masks_of_0_and_1_or_255_whatever_their_nodata(tmp_path, top, form):
    image = write_picture(tmp_path / "i.tif", photograph(30, 40))
    building = mask(30, 40) == 255
    label = write_picture(tmp_path / "m.tif", (building * top).astype(np.uint8), **form)
    assert (label_of(image, label) == building).all()
    coloured = write_picture(tmp_path / "c.png", np.dstack([building * np.uint8(top)] * 3), "PNG")
    assert (label_of(image, coloured) == building).all()


def test_the_mask_band_of_a_label_is_ignored_ground(tmp_path):
    image, values = write_picture(tmp_path / "i.tif", photograph(30, 40)), mask(30, 40)
    alpha = mask(30, 40, seed=1)
    label = write_picture(tmp_path / "m.png", np.dstack([values, alpha]), "PNG")
    assert (label_of(image, label) == np.where(alpha == 0, 255, values == 255)).all()


def test_faulty_masks_are_refused(tmp_path):
    image = write_picture(tmp_path / "i.tif", photograph(30, 40))
    values = mask(30, 40)
    three = np.minimum(values, 1) + mask(30, 40, 1)
    for wrong in (values // 2, three, values * np.float32(np.nan)):
        label = write_picture(tmp_path / "m.tif", wrong)
        with pytest.raises(InputError, match=r"m\.tif.*0 and 1, or 0 and 255"):
            label_of(image, label)
    two = write_picture(tmp_path / "two.png", np.dstack([values, values, 255 - values]), "PNG")
    with pytest.raises(InputError, match=r"two\.png"):
        label_of(image, two)
    small = write_picture(tmp_path / "small.tif", values[:20])
    with pytest.raises(InputError, match=r"small\.tif is 40 x 20.*i\.tif is 40 x 30"):
        label_of(image, small)
    with pytest.raises(InputError, match=r"i\.tif has no mask"):
        label_of(image, None)


def geojson(path, ring, crs=None, to="EPSG:4326", kind="Polygon"):
    """Write a polygon whose corners are given in UTM 14 as GeoJSON in another CRS."""
    move = pyproj.Transformer.from_crs("EPSG:32614", to, always_xy=True)
    shape = {"type": kind, "coordinates": [[move.transform(*corner) for corner in ring]]}
    features = [
        {"type": "Feature", "properties": {}, "geometry": shape},
        {"type": "Feature", "properties": {}, "geometry": None},
    ]
    named = {"crs": {"type": "name", "properties": {"name": crs}}} if crs else {}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **named}))
    return path


WEST, EAST, SOUTH, NORTH = 620003.02, 620009.02, 3349991.0, 3349998.5
RING = [(WEST, NORTH), (EAST, NORTH), (EAST, SOUTH), (WEST, SOUTH), (WEST, NORTH)]


@pytest.mark.parametrize(("crs", "to"), [
    (None, "EPSG:4326"),
    ("urn:ogc:def:crs:OGC:1.3:CRS84", "EPSG:4326"),
    ("EPSG:32614", "EPSG:32614"),
    ("urn:ogc:def:crs:EPSG::3857", "EPSG:3857"),
])  # fmt: skip
def test_polygons_fill_the_pixels_whose_centre_they_hold(tmp_path, crs, to):
    image = write_picture(tmp_path / "i.tif", photograph(40, 50), **UTM)
    expected = np.zeros((40, 50), np.uint8)
    expected[5:30, 10:30] = 1  # 3.02 m / 0.3 m = 10.07: the centre of column 10 is inside
    assert (label_of(image, geojson(tmp_path / "g.geojson", RING, crs, to)) == expected).all()


def test_faulty_polygons_are_refused(tmp_path):
    image = write_picture(tmp_path / "i.tif", photograph(40, 50), **UTM)
    path = tmp_path / "g.geojson"
    cases = {
        "longitudes": lambda: geojson(path, RING, None, "EPSG:32614"),  # metres, but no crs member
        "faulty shape": lambda: geojson(path, RING, kind="LineString"),
        "FeatureCollection": lambda: path.write_text("[1, 2"),
        "GeoJSON": lambda: path.write_text('{"features": [3]}'),
    }
    for words, write in cases.items():
        write()
        with pytest.raises(InputError, match=rf"g\.geojson.*{words}"):
            label_of(image, path)
    unplaced = write_picture(tmp_path / "u.tif", photograph(40, 50))
    with pytest.raises(InputError, match=r"u\.tif has no CRS"):
        label_of(unplaced, geojson(path, RING))


SQUARE = "[0, 0], [1, 0], [1, 1], [0, 0]"


@pytest.mark.parametrize("coordinates", [
    '[["a"]]', "null", "[]", "[[]]", "[null]", "3", f"[[{SQUARE}], []]", f"[{{}}, [{SQUARE}]]",
    f"[[{SQUARE.replace('1, 1', 'null, 1')}]]",  # what follows has crashed the process
    f"[[{SQUARE.replace('1, 1', chr(34) + 'a' + chr(34) + ', 1')}]]",
    f"[[{SQUARE}], [{SQUARE.replace('0, 0', chr(34) + 'a' + chr(34) + ', 0')}]]",
    '[["ab", "cd", "ef", "ab"]]', f"[[{SQUARE.replace('1, 1', 'NaN, 1')}]]",
    f"[[{SQUARE.replace('1, 1', '1')}]]", f"[[{SQUARE.replace('1, 1', '1' + 400 * '0' + ', 1')}]]",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["Polygon", "MultiPolygon"])
def test_coordinates_that_are_none_are_refused(tmp_path, coordinates, kind):
    image = write_picture(tmp_path / "i.tif", photograph(40, 50), **UTM)
    path = tmp_path / "g.geojson"
    nested = coordinates if kind == "Polygon" else f"[{coordinates}]"
    shape = f'{{"type": "{kind}", "coordinates": {nested}}}'
    path.write_text(f'{{"features": [{{"geometry": {shape}}}]}}')
    if nested == "[]":  # an empty polygon is none
        assert not label_of(image, path).any()
    else:
        with pytest.raises(InputError, match=rf"g\.geojson holds a faulty shape or a {kind}"):
            label_of(image, path)


# ---------------------------------------------------------------- size on the ground

NO_CODE = pyproj.CRS("+proj=laea +lat_0=30 +lon_0=-97 +ellps=GRS80 +units=us-ft").to_wkt()


AUSTIN, LAPLAND = (-97.7, 30.3), (15.6, 66.0)


@pytest.mark.parametrize(("crs", "step", "place"), [
    ("EPSG:32614", 0.3, AUSTIN), ("EPSG:2277", 1.0, AUSTIN), (NO_CODE, 1.0, AUSTIN),
    ("EPSG:3857", 0.3, AUSTIN), ("EPSG:3857", 0.3, LAPLAND),
    ("EPSG:4326", 3e-6, LAPLAND), ("EPSG:4807", 3e-6, LAPLAND),
])  # fmt: skip
@pytest.mark.parametrize("turn", [0, 30])
def test_ground_pixel_size_agrees_with_geodesics(crs, step, place, turn):
    """Oracle: the area of a block of pixels on the ellipsoid, by pyproj (Karney 2013)."""
    to_map = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = to_map.transform(*place)
    transform = Affine.translation(x, y) @ Affine.rotation(turn) @ Affine.scale(step, -step)
    profile = {"crs": CRS.from_user_input(crs), "transform": transform, "width": 400, "height": 200}
    corners = np.array([(195, 95), (205, 95), (205, 105), (195, 105)])
    lon, lat = to_map.transform(
        *(np.array([transform @ tuple(corner) for corner in corners]).T), direction="INVERSE"
    )
    area, _ = pyproj.Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)
    assert ground_pixel_size(profile) == pytest.approx(np.sqrt(abs(area)) / 10, rel=1e-4)


def test_pictures_without_a_place_have_no_ground_pixel_size(tmp_path):
    with open_raster(write_picture(tmp_path / "x.tif", photograph(9, 9))) as dataset:
        assert ground_pixel_size(dataset) is None
    feet = CRS.from_wkt('LOCAL_CS["site",UNIT["foot",0.3048]]')
    profile = {"crs": feet, "transform": Affine.scale(2, -2), "width": 9, "height": 9}
    assert ground_pixel_size(profile) == pytest.approx(0.6096)
    moon = CRS.from_user_input("IAU_2015:30100")
    assert ground_pixel_size({**profile, "crs": moon}) is None


def test_working_shape():
    place = {"transform": Affine.identity(), "crs": None, "gcps": ([], None)}
    scene = SimpleNamespace(name="a.tif", shape=(5000, 4000), **place)
    assert working_shape(scene, 0.3, 0.6) == (2500, 2000)
    assert working_shape(scene, 0.30012, 0.3) == (5000, 4000)
    assert working_shape(scene, None, 0.6) == working_shape(scene, 0.3, None) == scene.shape
    with pytest.raises(InputError, match=r"a\.tif has pixels of 0\.3 m: at most 8 times"):
        working_shape(scene, 0.3, 0.0001)  # would be 15 million pixels wide


# ---------------------------------------------------------------- writing


def test_what_is_written_comes_back_with_place_and_mask(tmp_path):
    path, values, valid = tmp_path / "o.tif", mask(300, 500), mask(300, 500, 1)
    place = {"crs": CRS.from_wkt(NO_CODE), "transform": Affine(0.3, 0.1, 7, 0.1, -0.3, 9)}
    profile = {"height": 300, "width": 500, "count": 1, "dtype": "uint8", "nodata": 255, **place}
    with write_raster(path, profile) as out:
        for row in range(0, 300, 100):
            at = Window(0, row, 500, 100)
            out.write(values[row : row + 100], 1, window=at)
            out.write_mask(valid[row : row + 100], window=at)
    with rasterio.open(path) as dataset:
        assert dataset.crs == place["crs"] and dataset.transform == place["transform"]
        assert dataset.nodata is None and dataset.block_shapes == [(256, 256)]
        assert (dataset.read(1) == values).all() and (dataset.dataset_mask() == valid).all()
        assert dataset.compression and dataset.colorinterp == (ColorInterp.gray,)
    assert [file.name for file in tmp_path.iterdir()] == ["o.tif"]  # no .msk beside it


FULL = """
import resource, sys, numpy as np
from segment.errors import InputError
from segment.data.rasters import Window, write_raster
noise = np.random.default_rng(0).integers(0, 256, (512, 1024), dtype=np.uint8)
profile = dict(height=512, width=1024, count=1, dtype="uint8", crs="EPSG:3857", transform=None)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with write_raster(sys.argv[1], profile) as out:
        for row in range(0, 512, 64):
            out.write(noise[row:row + 64], 1, window=Window(0, row, 1024, 64))
            out.write_mask(noise[row:row + 64] > 9, window=Window(0, row, 1024, 64))
except InputError as error:
    sys.exit(f"InputError {error}")
"""


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    """A limit on file sizes fails writes as a full disk does: in the data, the mask, at the end."""
    path = tmp_path / "o.tif"

    def run(room):
        command = [sys.executable, "-W", "ignore", "-c", FULL, str(path), str(room)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run(10_000_000).returncode == 0
    size = path.stat().st_size
    path.unlink()
    for room in (size // 3, size - 20_000, size - 500, size - 1):
        done = run(room)
        assert done.stderr.splitlines()[-1].startswith(f"InputError {path} could not be written")
        assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- finding


def told(scenes):
    return {(scene.city, scene.scene, scene.stem) for scene in scenes}


@pytest.mark.parametrize("inside", [".", "train", "set"])
def test_images_pair_with_gt_by_stem(tmp_path, inside):
    home = tmp_path / "aerial" / inside
    write_pair(home, "austin1_3", 20, 20, **UTM)
    write_pair(home, "tyrol-w12", 20, 20)
    (home / "gt" / "tyrol-w12.tif").rename(home / "gt" / "tyrol-w12.png")
    (home / "images" / "._austin1_3.tif").write_bytes(b"left by a Mac")
    (home / "images" / "austin1_3.tfw").write_text("a world file")
    write_picture(tmp_path / "aerial" / "test" / "images" / "bloomington1.tif", photograph(9, 9))
    first, second = find_scenes([tmp_path / "aerial"])
    assert told([first, second]) == {
        ("austin", "austin1", "austin1_3"), ("tyrol-w", "tyrol-w12", "tyrol-w12"),
    }  # fmt: skip
    assert first.label.name == "austin1_3.tif" and second.label.name == "tyrol-w12.png"
    assert first.pixel_size == pytest.approx(0.3, rel=1e-3) and second.pixel_size is None
    assert len(find_scenes([tmp_path / "aerial"], labelled=False)) == 3


def test_pairs_in_one_folder(tmp_path):
    write_picture(tmp_path / "a.tif", photograph(9, 9), **UTM)
    write_picture(tmp_path / "b.tif", photograph(9, 9), **UTM)
    write_picture(tmp_path / "b_mask.png", mask(9, 9), "PNG")
    with pytest.raises(InputError, match=r"a\.tif has no mask"):
        find_scenes([tmp_path])
    geojson(tmp_path / "a.geojson", RING)
    assert [s.label.name for s in find_scenes([tmp_path])] == ["a.geojson", "b_mask.png"]
    assert [s.label for s in find_scenes([tmp_path], labelled=False)] == [None, None]
    assert [s.stem for s in find_scenes([tmp_path / "b.tif"], labelled=False)] == ["b"]


def test_what_cannot_be_paired_is_refused(tmp_path):
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match=r"empty holds no pair.*images/.*gt/"):
        find_scenes([tmp_path / "empty"])
    with pytest.raises(InputError, match="empty holds no picture"):
        find_scenes([tmp_path / "empty"], labelled=False)
    with pytest.raises(InputError, match="nowhere: no such f"):
        find_scenes([tmp_path / "nowhere"])
    write_pair(tmp_path / "set", "austin1", 9, 9)
    (tmp_path / "set" / "gt" / "austin1.tif").rename(tmp_path / "set" / "gt" / "austin2.tif")
    with pytest.raises(InputError, match=r"austin1\.tif has no mask"):
        find_scenes([tmp_path / "set"])
    write_picture(tmp_path / "set" / "gt" / "austin2.png", mask(9, 9), "PNG")
    with pytest.raises(InputError, match=r"austin2\.png and .*austin2\.tif are two masks"):
        find_scenes([tmp_path / "set"])
    (tmp_path / "set" / "gt" / "austin2.png").unlink()
    (tmp_path / "set" / "images" / "austin2.tif").write_bytes(b"no picture")
    (tmp_path / "set" / "images" / "austin1.tif").unlink()
    with pytest.raises(InputError, match=r"austin2\.tif.*no picture"):
        find_scenes([tmp_path / "set"])


@pytest.mark.parametrize("stem", ["12", "7000001", "3band_1_img5", "3band7", "roofs", "a-12", "_1"])
def test_names_that_tell_no_city(tmp_path, stem):
    write_pair(tmp_path / "suburb", stem, 9, 9)
    assert told(find_scenes([tmp_path / "suburb"])) == {("suburb", stem, stem)}


def test_sets_given_together_keep_their_names_apart(tmp_path):
    for folder in ("a", "b"):
        write_pair(tmp_path / folder, "austin1", 9, 9)
        write_pair(tmp_path / folder, "7", 9, 9)
    expected = {
        ("austin", "austin1", "austin1@a"), ("austin", "austin1", "austin1@b"),
        ("a", "7", "7"), ("b", "7", "7"),
    }  # fmt: skip
    one, other = tmp_path / "a", tmp_path / "b"
    assert told(find_scenes([one, other])) == told(find_scenes([other, one, one])) == expected
    assert find_scenes([one, other]) == find_scenes([other, one])
    write_pair(tmp_path / "again" / "a", "7", 9, 9)
    with pytest.raises(InputError, match="one name in one city"):
        find_scenes([one, tmp_path / "again" / "a"])


def test_slippy_tiles_of_one_ground_are_one_scene(tmp_path):
    x, y, zoom = 309612, 261632, 19
    names = [f"OAM-{x}-{y}-{zoom}", f"OAM-{x + 1}-{y}-{zoom}"]
    below = [f"OAM-{4 * x + 3}-{4 * y + 1}-{zoom + 2}", f"OAM-{2 * (x + 1)}-{2 * y}-{zoom + 1}"]
    alone = f"OAM-{2 * x + 9}-{2 * y + 9}-{zoom + 1}"  # its parent is not there
    for folder, stems in (("near", names), ("far", [*below, alone])):
        for stem in stems:
            write_pair(tmp_path / folder, stem, 256, 256)
    scenes = {s.stem: s for s in find_scenes([tmp_path / "far", tmp_path / "near"])}
    assert [scenes[stem].scene for stem in (*below, alone)] == [*names, alone]
    assert {scenes[stem].city for stem in below} == {"near"}
    # Kampala lies at 0.3° N: 40,075 km of equator, 2^19 tiles of 256 pixels
    assert scenes[names[0]].pixel_size == pytest.approx(40075017 / 2**19 / 256, rel=5e-3)
    ratio = scenes[names[0]].pixel_size / scenes[below[0]].pixel_size
    assert ratio == pytest.approx(4, rel=1e-4)


def test_a_csv_says_what_folders_cannot(tmp_path):
    write_pair(tmp_path / "set", "12", 9, 9, **UTM)
    table = tmp_path / "set.csv"
    row = "set/images/12.tif,set/gt/12.tif"
    columns = "image,mask,scene,city,pixel_size"  # as Excel saves it, with a byte order mark:
    table.write_text(f"{columns}\n{row},north,Río,0.5\n", encoding="utf-8-sig")
    (scene,) = find_scenes([table])
    assert (scene.scene, scene.city, scene.pixel_size) == ("north", "Río", 0.5)
    table.write_text(f"mask,image\nset/gt/12.tif,{tmp_path}/set/images/12.tif\n")
    (scene,) = find_scenes([table])
    assert (scene.scene, scene.city, round(scene.pixel_size, 3)) == ("12", "set", 0.3)
    faulty = {
        f"image,mask,colour\n{row},red": "columns",
        "image\nset/images/12.tif": "expected image, mask",
        "": "columns",
        "image,mask": "no rows",
        f"image,mask\n{row},1": "line 2",
        "image,mask\nset/images/12.tif,": "line 2",
        f"image,mask,pixel_size\n{row},-1": "pixel_size -1",
        "image,mask\nset/images/12.tif,set/none.tif": "no such file",
        "image,mask\nset/none.tif,set/gt/12.tif": "no such file",
        f"image,mask\n{row}\nset/images/12.tif,set/images/12.tif": "two masks",
    }
    for text, words in faulty.items():
        table.write_text(text)
        with pytest.raises(InputError, match=words):
            find_scenes([table])


def test_sites_csv_names_scenes(tmp_path):
    for stem in ("qa", "qb", "qc"):
        write_pair(tmp_path / "cities", stem, 9, 9)
    (tmp_path / "cities" / "sites.csv").write_text("tile,site\nqa,s1\nqb,s1\nqc,s2\n")
    assert [s.scene for s in find_scenes([tmp_path / "cities"])] == ["s1", "s1", "s2"]
    (tmp_path / "cities" / "sites.csv").write_text("tile,site\nqa,s1\n")
    with pytest.raises(InputError, match=r"qb\.tif is not in the sites\.csv"):
        find_scenes([tmp_path / "cities"])


@pytest.mark.parametrize(("name", "images", "scenes", "cities"), [
    ("inria-crops", 55, 6, 3), ("china-cities", 1051, 693, 1), ("banepa-nepal", 32, 32, 1),
    ("kampala-uganda", 126, 6, 1), ("spacenet1-rio", 10, 10, 1), ("us-suburb-512", 6, 6, 1),
    ("banepa-nepal/mosaic", 1, 1, 1),
])  # fmt: skip
def test_real_sets(photographs, name, images, scenes, cities):
    found = find_scenes([photographs / name])
    assert len(found) == images
    assert len({(scene.city, scene.scene) for scene in found}) == scenes
    assert len({scene.city for scene in found}) == cities
    for scene in found[:20]:
        with open_raster(scene.image) as dataset:
            read_pixels(dataset)
            assert set(np.unique(read_label(scene, dataset))) <= {0, 1}
