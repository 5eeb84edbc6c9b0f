"""What is valid and which band is which colour, told of files as programs really write them.

The right answer is always what was put into the file; GDAL wrote it.
"""

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp as C
from rasterio.windows import Window

from segment.data.rasters import open_raster, unplaced_is_fine
from segment.data.reading import Reading, look, read_pixels, read_valid
from segment.errors import InputError
from tests.segment.pictures import UTM, photograph, write_picture

image = pytest.importorskip("PIL.Image")

RGB = [C.red, C.green, C.blue]


def write(path, bands, kinds=None, mask=None, **form):
    """Write (bands, H, W), with what each band is called."""
    size = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    with rasterio.open(path, "w", driver="GTiff", dtype=bands.dtype, **size, **UTM, **form) as out:
        if kinds:
            out.colorinterp = kinds
        out.write(bands)
        if mask is not None:
            out.write_mask(mask)
    return path


def read(path, reading=None, **how):
    with open_raster(path) as dataset:
        pixels, valid = read_pixels(dataset, reading, **how)
        if not how:
            window = Window(0, 0, dataset.width, dataset.height)
            assert (read_valid(dataset, reading, window) == valid).all()
        return pixels, valid


def notes(path, reading=None):
    with open_raster(path) as dataset:
        return " ".join(look(dataset, reading).notes)


# ---------------------------------------------------------------- what is valid


@pytest.mark.parametrize(("dtype", "top"), [
    ("uint8", 255), ("uint8", 1), ("uint16", 65535), ("uint16", 255), ("uint16", 1),
    ("float32", 1.0), ("int16", 100),
])  # fmt: skip
@pytest.mark.parametrize("place", [3, 4, 0])
def test_an_alpha_decides_at_any_place_and_of_any_type(tmp_path, dtype, top, place):
    rng = np.random.default_rng(place)
    valid = rng.random((60, 70)) < 0.6
    colours = np.moveaxis(photograph(60, 70), -1, 0).astype(dtype) // 2
    others = [*colours] + [colours[0]] * (place == 4)
    kinds = RGB + [C.undefined] * (place == 4)
    bands, kinds = list(others), list(kinds)
    bands.insert(place, (valid * top).astype(dtype))
    kinds.insert(place, C.alpha)
    path = write(tmp_path / "a.tif", np.stack(bands), kinds, photometric="MINISBLACK")
    got, inside = read(path, Reading(value_range=(0, 200)) if dtype != "uint8" else None)
    assert (inside == valid).all()
    assert (got[~valid] == 0).all()


@pytest.mark.parametrize("top", [1, 255])
def test_a_mask_band_beside_the_file_may_be_0_and_1(tmp_path, top):
    valid = np.random.default_rng(0).random((60, 70)) < 0.3
    path = write(tmp_path / "a.tif", np.moveaxis(photograph(60, 70), -1, 0))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as out:
        out.write_mask(valid)
    with unplaced_is_fine(), rasterio.open(tmp_path / "a.tif.msk", "r+") as out:
        out.write((valid * top).astype(np.uint8), 1)
    assert (read(path)[1] == valid).all()


def test_a_feathered_alpha_is_still_a_mask_and_cut_at_half(tmp_path):
    ramp = np.clip(np.arange(200) * 8 - 400, 0, 255).astype(np.uint8)
    alpha = np.broadcast_to(ramp, (200, 200))
    path = write(tmp_path / "a.tif", np.stack([alpha // 2] * 3 + [alpha]), [*RGB, C.alpha])
    assert (read(path)[1] == (alpha >= 128)).all()
    assert not notes(path)


@pytest.mark.parametrize("spread", [(90, 190), (20, 240)])
def test_an_alpha_of_many_values_is_a_colour_and_said(tmp_path, spread):
    near_infrared = np.random.default_rng(0).integers(*spread, (100, 100)).astype(np.uint8)
    near_infrared[:30] = 0  # water
    colours = np.moveaxis(photograph(100, 100), -1, 0)
    path = write(tmp_path / "naip.tif", np.stack([*colours, near_infrared]), [*RGB, C.alpha])
    got, valid = read(path)
    assert valid.all() and (got == photograph(100, 100)).all()
    assert "naip.tif: band 4 is called alpha, but holds many values" in notes(path)


def test_a_small_valid_corner_of_a_large_scene_is_found(tmp_path):
    """The windows that are looked at hold none of it."""
    alpha = np.zeros((2600, 2600), np.uint8)
    alpha[700:720, 900:930] = 1
    path = write(
        tmp_path / "a.tif", np.stack([alpha] * 4), [*RGB, C.alpha], compress="deflate", tiled=True
    )
    assert read(path)[1].sum() == 20 * 30


def test_nodata_and_alpha_both_count(tmp_path):
    colours = np.moveaxis(photograph(40, 40), -1, 0).copy()
    colours[:, :10] = 7
    alpha = np.full((40, 40), 255, np.uint8)
    alpha[:, :10] = 0
    path = write(tmp_path / "a.tif", np.stack([*colours, alpha]), [*RGB, C.alpha], nodata=7)
    valid = (colours != 7).any(axis=0) & (alpha == 255)
    assert (read(path)[1] == valid).all()


# ---------------------------------------------------------------- which band is which


@pytest.mark.parametrize("order", ["bgr", "gbr", "rgb"])
@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("by", ["kinds", "descriptions"])
def test_bands_are_read_by_their_names(tmp_path, order, more, by):
    pixels = photograph(50, 60)
    bands = [pixels[..., "rgb".index(letter)] for letter in order] + [pixels[..., 0] // 3] * more
    names = {"r": "Red", "g": "Green", "b": "Blue"}
    kinds = {"r": C.red, "g": C.green, "b": C.blue}
    if by == "kinds":
        path = write(
            tmp_path / "a.tif", np.stack(bands), [kinds[k] for k in order] + [C.undefined] * more
        )
    else:  # and the kinds say what GDAL says where nobody says anything: red, green, blue
        path = write(tmp_path / "a.tif", np.stack(bands), photometric="RGB")
        with rasterio.open(path, "r+") as out:
            out.descriptions = [names[k] for k in order] + ["Red Edge"] * more
    got, valid = read(path)
    assert (got == pixels).all() and valid.all()
    told, _ = read(path, Reading(bands=(1, 2, 3)))  # an option wins
    assert (told == np.stack(bands, axis=-1)[..., :3]).all()


def test_four_nameless_bands_are_read_in_file_order_and_said(tmp_path):
    pixels = np.moveaxis(photograph(50, 60), -1, 0)
    path = write(tmp_path / "a.tif", np.stack([*pixels, pixels[0] // 2]), photometric="MINISBLACK")
    assert (read(path)[0] == photograph(50, 60)).all()
    assert "a.tif has 4 bands of colour and doesn't say which is which" in notes(path)


@pytest.mark.parametrize("shape", [None, (25, 30), (80, 100)])
def test_a_palette_is_expanded(tmp_path, shape):
    """Resampled as the same picture in colours is; numbers of colours have nothing between them."""
    rng = np.random.default_rng(0)
    numbers = np.kron(rng.integers(0, 6, (10, 12)), np.ones((5, 5), int)).astype(np.uint8)
    palette = {i: (*rng.integers(0, 256, 3).tolist(), 255) for i in range(6)}
    path = write(tmp_path / "p.tif", numbers[None], photometric="PALETTE")
    with rasterio.open(path, "r+") as out:
        out.write_colormap(1, palette)
    colours = np.array([palette[i][:3] for i in range(6)], np.uint8)[numbers]
    plain = write(tmp_path / "c.tif", np.moveaxis(colours, -1, 0))
    got, valid = read(path, shape=shape)
    assert valid.all()
    assert (got == read(plain, shape=shape)[0]).all()
    with open_raster(path) as dataset, open_raster(plain) as other:
        window = rasterio.windows.Window(3.5, 2.25, 20, 30)
        cut = read_pixels(dataset, None, window, (45, 30))[0]
        assert (cut == read_pixels(other, None, window, (45, 30))[0]).all()


def test_a_palettes_transparent_colour_is_void(tmp_path):
    image = pytest.importorskip("PIL.Image")
    numbers = np.random.default_rng(0).integers(0, 3, (40, 50)).astype(np.uint8)
    picture = image.fromarray(numbers, mode="P")
    picture.putpalette([255, 255, 255, 0, 200, 0, 30, 40, 50])
    for transparency in (0, bytes([0, 255, 255])):
        picture.save(tmp_path / "p.png", transparency=transparency)
        got, valid = read(tmp_path / "p.png")
        assert (valid == (numbers != 0)).all()
        assert (got[numbers == 1] == (0, 200, 0)).all()


def test_the_colours_of_print_are_refused(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.zeros((40, 50, 4), np.uint8), mode="CMYK").save(tmp_path / "print.tif")
    with pytest.raises(InputError, match=r"print\.tif is in the colours of print"):
        read(tmp_path / "print.tif")


# ---------------------------------------------------------------- which values


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "uint8"])
def test_auto_is_2_and_98_percent_of_what_is_valid(tmp_path, dtype):
    rng = np.random.default_rng(0)
    values = (rng.gamma(3, 20, (3, 120, 130))).astype(dtype)
    alpha = np.where(rng.random((120, 130)) < 0.7, 255, 0).astype(dtype)
    path = write(tmp_path / "a.tif", np.stack([*values, alpha]), [*RGB, C.alpha], photometric="RGB")
    low, high = np.percentile(values[:, alpha > 0].astype(float), (2, 98))
    expected = np.clip((values.astype(float) - low) / (high - low) * 255, 0, 255)
    got, valid = read(path, Reading(value_range="auto"))
    assert abs(got - np.moveaxis(expected, 0, -1))[valid].max() <= 0.51
    assert f"values from {low:g} to {high:g}" in notes(path, Reading(value_range="auto"))


def test_auto_of_a_large_scene_is_about_that_of_all(tmp_path):
    row = np.linspace(100, 3000, 3000)
    values = np.broadcast_to(row, (3, 2500, 3000)).astype(np.uint16)
    path = write(tmp_path / "a.tif", values, compress="deflate", tiled=True)
    with open_raster(path) as dataset:
        low, high = look(dataset, Reading(value_range="auto")).value_range
    assert (low, high) == pytest.approx(np.percentile(row, (2, 98)), abs=0.02 * 2900)


@pytest.mark.parametrize("value", [0, 700])
def test_a_scene_of_one_value_has_a_range_too(tmp_path, value):
    path = write(tmp_path / "a.tif", np.full((3, 30, 30), value, np.uint16))
    got, valid = read(path, Reading(value_range="auto"))
    assert valid.all() and not got.any()


def test_the_sentence_names_the_way_out(tmp_path):
    path = write_picture(tmp_path / "wide.tif", photograph(30, 30).astype(np.uint16))
    with pytest.raises(InputError, match=r"wide\.tif holds uint16.*--value-range auto"):
        read(path)


# ---------------------------------------------------------------- which way is up


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("mode, start", [("RGB", b"II"), ("I;16B", b"MM")])
@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8])
def test_a_tiff_that_is_to_be_turned_is_refused(tmp_path, big, mode, start, orientation):
    """As a JPEG is; GDAL gives its pixels as they are stored, which is another picture."""
    path, tags = tmp_path / "scan.tif", {} if orientation is None else {274: orientation}
    image.new(mode, (30, 20)).save(path, tiffinfo=tags, big_tiff=big)
    assert path.read_bytes()[:2] == start and (43 in path.read_bytes()[2:4]) == big
    if orientation in (None, 1):
        with open_raster(path) as file:
            assert file.shape == (20, 30)
    else:
        with pytest.raises(InputError, match=r"scan\.tif is to be turned before it is shown"):
            read(path)


def test_the_place_of_a_geotiff_goes_before_its_orientation(tmp_path):
    """Its transform says where each pixel lies: GIS programs heed nothing else. It is said."""
    picture = photograph(20, 30)
    path = write(tmp_path / "scene.tif", np.moveaxis(picture, -1, 0), RGB)
    with image.open(path) as file:
        tags = file.tag_v2
        tags[274] = 4
        image.fromarray(picture).save(path, tiffinfo=tags)
    with rasterio.open(path) as file:
        assert file.transform == UTM["transform"]
    with image.open(path) as file:
        assert file.tag_v2[274] == 4
    np.testing.assert_array_equal(read(path)[0], picture)
    with open_raster(path) as file:
        (note,) = look(file).notes
    assert "scene.tif has a place, and is to be turned" in note


@pytest.mark.parametrize("ending", [".tif", ".jpg"])
def test_a_world_file_goes_before_the_orientation(tmp_path, ending):
    """Who wrote it placed the pixels as they lie, whichever the format."""
    exif, path = image.Exif(), tmp_path / f"scan{ending}"
    exif[274] = 6
    image.new("RGB", (30, 20)).save(path, exif=exif)
    with pytest.raises(InputError, match="to be turned"):
        read(path)
    (tmp_path / "scan.wld").write_text("0.3\n0\n0\n-0.3\n500000.15\n4999999.85\n")
    with open_raster(path) as file:
        assert file.shape == (20, 30)
        assert "it is read as it lies" in look(file).notes[0]
