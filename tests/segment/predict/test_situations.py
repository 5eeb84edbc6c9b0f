"""The situations that people have: a folder of odd files ends with right masks or clear sentences.

The model calls a pixel building where its red is 128 or more, so the right mask is known to the
pixel; GDAL and Pillow wrote the files.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp as C
from rasterio.warp import Resampling, reproject

from segment.data.layouts import find_pairs
from segment.data.rasters import open_raster, unplaced_is_fine
from segment.data.scenes import find_scenes
from segment.errors import InputError
from segment.model import ModelInfo, save_model
from segment.predict import shards
from segment.predict.command import main
from segment.unet import UNet

image = pytest.importorskip("PIL.Image")
pyogrio = pytest.importorskip("pyogrio")
shapely = pytest.importorskip("shapely")
pyproj = pytest.importorskip("pyproj")

UTM = {"crs": "EPSG:32633", "transform": Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000)}
SIDE = 256


def red_model(path, **info):
    """A network of 1x1 convolutions: logit = 40 (relu((red - 127.5) / 64 + 2) - 2)."""
    net = UNet(widths=(2,), kernel=1)
    for block in net.encoder[0]:
        block.params["w"] = np.zeros_like(block.params["w"])
        block.params["w"][0, 0, 0, 0] = 1
        for name, value in (("b", 0), ("gamma", 1), ("beta", 0)):
            block.params[name] = np.full_like(block.params[name], value)
        block.state["mean"] = np.zeros_like(block.state["mean"])
        block.state["var"] = np.ones_like(block.state["var"])
    net.encoder[0][0].params["beta"][0] = 2
    net.head.params["w"] = np.zeros_like(net.head.params["w"])
    net.head.params["w"][0, 0, 0, 0] = 40
    net.head.params["b"] = np.array([-80], np.float32)
    save_model(path, net, ModelInfo(**({"pixel_size": 0.3, "threshold": 0.5} | info)))
    return str(path)


def town(side=SIDE):
    """(3, side, side): red boxes on green ground; and where the boxes are."""
    truth = np.zeros((side, side), bool)
    for row, col, height, width in ((30, 40, 40, 50), (100, 150, 60, 30), (180, 30, 30, 70)):
        truth[row : row + height, col : col + width] = True
    pixels = np.empty((3, side, side), np.uint8)
    pixels[:] = np.array([40, 110, 70])[:, None, None]
    pixels[:, truth] = np.array([200, 60, 50])[:, None]
    return pixels, truth


RGB, TRUTH = town()
WEST = np.arange(SIDE) < SIDE // 2  # where half a scene is valid


def write(path, bands, kinds=None, **form):
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    form = {"driver": "GTiff", "dtype": bands.dtype} | size | form
    with unplaced_is_fine(), rasterio.open(path, "w", **form) as out:
        if kinds:
            out.colorinterp = kinds
        out.write(bands)
    return path


def read(path):
    with open_raster(path) as dataset:
        return dataset.read(1), dataset.dataset_mask() > 0


# ---------------------------------------------------------------- thirty odd files


def right(folder):
    """Files whose masks are known; each with the share of the pixels that must agree."""
    void = np.where(WEST, RGB, 255).astype(np.uint8)  # white filling, which looks like roofs
    alpha = np.broadcast_to(WEST, TRUTH.shape)
    seen = TRUTH & alpha
    named = [C.red, C.green, C.blue]
    extra = np.full_like(TRUTH, 90, np.uint8)[None]

    yield write(folder / "plain.tif", RGB, **UTM), TRUTH, 1
    yield write(folder / "bgr.tif", RGB[::-1].copy(), named[::-1], **UTM), TRUTH, 1
    yield (
        write(folder / "rgbn.tif", np.concatenate([RGB, extra]), [*named, C.undefined], **UTM),
        TRUTH,
        1,
    )
    nameless = np.concatenate([RGB, extra])
    yield write(folder / "nameless.tif", nameless, photometric="MINISBLACK", **UTM), TRUTH, 1
    for name, top in (("rgba", 255), ("alpha_of_0_and_1", 1)):
        bands = np.concatenate([void, (alpha * np.uint8(top))[None]])
        yield write(folder / f"{name}.tif", bands, [*named, C.alpha], **UTM), seen, 1
    bands = np.concatenate([void, extra, (alpha * np.uint8(255))[None]])
    kinds = [*named, C.undefined, C.alpha]
    yield write(folder / "rgbna.tif", bands, kinds, photometric="RGB", **UTM), seen, 1
    noise = np.random.default_rng(0).integers(30, 220, TRUTH.shape).astype(np.uint8)[None]
    yield (
        write(folder / "naip.tif", np.concatenate([RGB, noise]), [*named, C.alpha], **UTM),
        TRUTH,
        1,
    )
    masked = write(folder / "masked.tif", void, **UTM)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(masked, "r+") as out:
        out.write_mask(alpha)
    with unplaced_is_fine(), rasterio.open(f"{masked}.msk", "r+") as out:
        out.write(alpha.astype(np.uint8), 1)
    yield masked, seen, 1
    yield write(folder / "nodata.tif", void, nodata=255, **UTM), seen, 1
    nothing = np.concatenate([RGB, np.zeros_like(extra)])
    yield write(folder / "wholly_void.tif", nothing, [*named, C.alpha], **UTM), TRUTH & False, 1
    described = write(folder / "described.tif", RGB[::-1].copy(), photometric="RGB", **UTM)
    with rasterio.open(described, "r+") as out:
        out.descriptions = ["Blue", "Green", "Red"]
    yield described, TRUTH, 1

    palette = image.fromarray(TRUTH.astype(np.uint8), mode="P")
    palette.putpalette([40, 110, 70, 200, 60, 50])
    palette.save(folder / "palette.png")
    yield folder / "palette.png", TRUTH, 1
    picture = image.fromarray(np.moveaxis(RGB, 0, -1))
    picture.save(folder / "oslo_2023-06-19.png")
    yield folder / "oslo_2023-06-19.png", TRUTH, 1
    picture.save(folder / "e\u0301te\u0301.png")  # as macOS writes été
    yield folder / "e\u0301te\u0301.png", TRUTH, 1
    picture.save(folder / "photo.jpg", quality=98, subsampling=0)
    yield folder / "photo.jpg", TRUTH, 0.99
    data = (folder / "photo.jpg").read_bytes()
    at = data.index(b"\xff\xda")
    (folder / "stray.jpg").write_bytes(data[:at] + b"\0\0\0\0" + data[at:])
    yield folder / "stray.jpg", TRUTH, 0.99
    picture.save(folder / "png_called.tif", format="PNG")
    yield folder / "png_called.tif", TRUTH, 1

    place = UTM["transform"]
    up = Affine(0.3, 0, place.c, 0, 0.3, place.f - 0.3 * SIDE)
    yield write(folder / "south_up.tif", RGB, crs="EPSG:32633", transform=up), TRUTH, 1
    turned = place @ Affine.rotation(30)
    yield write(folder / "turned.tif", RGB, crs="EPSG:32633", transform=turned), TRUTH, 1
    (folder / "world.tfw").write_text("0.3\n0\n0\n-0.3\n500000.15\n4999999.85\n")
    yield write(folder / "world.tif", RGB), TRUTH, 1
    points = [GroundControlPoint(r, c, *(place @ (c, r))) for r in (0, 256) for c in (0, 256)]
    with (
        unplaced_is_fine(),
        rasterio.open(
            folder / "gcps.tif",
            "w",
            driver="GTiff",
            count=3,
            height=SIDE,
            width=SIDE,
            dtype="uint8",
        ) as out,
    ):
        out.write(RGB)
        out.gcps = points, CRS.from_epsg(32633)
    yield folder / "gcps.tif", TRUTH, 1
    yield degrees(folder / "degrees.tif")
    (folder / "virtual.vrt").write_text(VRT.format(size=SIDE))
    yield folder / "virtual.vrt", TRUTH, 1
    lossless = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
    yield write(folder / "wavelets.jp2", RGB, **lossless, **UTM), TRUTH, 1
    x, y = pyproj.Transformer.from_crs("OGC:CRS84", "EPSG:32760", always_xy=True).transform(
        180, -16
    )
    fiji = {"crs": "EPSG:32760", "transform": Affine(0.3, 0, x - 38, 0, -0.3, y + 38)}
    yield write(folder / "fiji.tif", RGB, **fiji), TRUTH, 1
    yield write(folder / "north" / "field.tif", RGB, **UTM), TRUTH, 1
    (folder / "19" / "280000").mkdir(parents=True)
    picture.save(folder / "19" / "280000" / "152000.png")
    yield folder / "19" / "280000" / "152000.png", None, 1
    (folder / "linked.tif").symlink_to(folder / "plain.tif")
    yield folder / "linked.tif", TRUTH, 1


VRT = """<?xml version="1.0"?>
<VRTDataset rasterXSize="{size}" rasterYSize="{size}">
  <VRTRasterBand dataType="Byte" band="1"><ColorInterp>Red</ColorInterp><SimpleSource>
    <SourceFilename relativeToVRT="1">bgr.tif</SourceFilename><SourceBand>3</SourceBand>
  </SimpleSource></VRTRasterBand>
  <VRTRasterBand dataType="Byte" band="2"><ColorInterp>Green</ColorInterp><SimpleSource>
    <SourceFilename relativeToVRT="1">bgr.tif</SourceFilename><SourceBand>2</SourceBand>
  </SimpleSource></VRTRasterBand>
  <VRTRasterBand dataType="Byte" band="3"><ColorInterp>Blue</ColorInterp><SimpleSource>
    <SourceFilename relativeToVRT="1">bgr.tif</SourceFilename><SourceBand>1</SourceBand>
  </SimpleSource></VRTRasterBand>
</VRTDataset>
"""


def degrees(path):
    """The town on a grid of square degrees at 60 degrees north, half as wide as high there."""
    place = Affine(0.3, 0, 500_000, 0, -0.3, 6_650_000)
    west, north = pyproj.Transformer.from_crs(32633, 4326, always_xy=True).transform(
        *place @ (0, 0)
    )
    size = 0.3 / 111_412
    grid = Affine(size, 0, west, 0, -size, north)
    out = np.zeros((3, 250, 500), np.uint8)
    truth = np.zeros((250, 500), np.uint8)
    how = {"src_transform": place, "src_crs": "EPSG:32633", "dst_transform": grid}
    how |= {"dst_crs": "EPSG:4326", "resampling": Resampling.nearest}
    reproject(RGB, out, **how)
    reproject(TRUTH.astype(np.uint8), truth, **how)
    return write(path, out, crs="EPSG:4326", transform=grid), truth == 1, 0.985


def wrong(folder):
    """Files that can't be right, each with the words of the sentence that says why."""
    whole = write(folder / "whole.tif", RGB, compress="deflate", **UTM).read_bytes()
    (folder / "whole.tif").unlink()
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])
    yield "cut.tif", "cut off"
    (folder / "text.tif").write_text("no picture")
    yield "text.tif", "no picture"
    (folder / "empty.png").touch()
    yield "empty.png", "empty"
    write(folder / "grey.tif", RGB[:1], **UTM)
    yield "grey.tif", "1 colour band"
    write(folder / "multispectral.tif", np.concatenate([RGB, RGB]), photometric="MINISBLACK", **UTM)
    yield "multispectral.tif", "6 colour band"
    write(folder / "sixteen.tif", RGB.astype(np.uint16), **UTM)
    yield "sixteen.tif", "--value-range auto"
    image.fromarray(np.zeros((64, 64, 4), np.uint8), mode="CMYK").save(folder / "print.jpg")
    yield "print.jpg", "colours of print"
    exif = image.Exif()
    exif[0x0112] = 6
    image.fromarray(np.moveaxis(RGB, 0, -1)).save(folder / "phone.jpg", exif=exif)
    yield "phone.jpg", "EXIF orientation"


def test_a_folder_of_odd_files_ends_with_right_masks_or_clear_sentences(tmp_path):
    folder, out = tmp_path / "scenes", tmp_path / "masks"
    folder.mkdir()
    expected = list(right(folder))
    faults = list(wrong(folder))
    assert len(expected) + len(faults) >= 30
    model = red_model(tmp_path / "red.safetensors")
    command = [sys.executable, "-m", "segment.predict", str(folder), "--model", model]
    done = subprocess.run(
        [*command, "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    for name, words in faults:
        (line,) = [line for line in done.stderr.splitlines() if name in line]
        assert line.startswith("error: ") and words in line, line
    assert f"error: {len(faults)} scenes could not be done" in done.stderr
    assert "Traceback" not in done.stderr
    assert "wholly_void.tif: its alpha, mask or nodata value says that no pixel" in done.stderr
    assert "naip.tif: band 4 is called alpha, but holds many values" in done.stderr
    masks = {path.stem for path in out.glob("*.tif")}
    assert len(masks) == len(expected)
    for path, truth, share in expected:
        if truth is None:  # the tile of a tree: called by its place, at the pixel size of that
            assert "280000-152000-19" in masks
            continue
        values, _ = read(out / f"{path.stem}.tif")
        assert set(np.unique(values)) <= {0, 255}
        assert ((values == 255) == truth).mean() >= share, path.name


# ---------------------------------------------------------------- names and folders


def test_a_folders_own_pictures_and_those_of_its_folders_are_all_found(tmp_path):
    for name in ("a.tif", "images_old/b.tif", "images/c.tif", "deep/er/d.tif", "gt/c.tif"):
        write(tmp_path / name, RGB, **UTM)
    write(tmp_path / "masks" / "a.tif", RGB[:1], **UTM)
    found = find_pairs(tmp_path, labelled=False)
    assert sorted(pair.image.name for pair in found) == ["a.tif", "b.tif", "c.tif", "d.tif"]


def test_pictures_of_one_name_keep_their_folders(tmp_path):
    for name in ("north/1.tif", "south/1.tif", "2.tif"):
        write(tmp_path / "scenes" / name, RGB, **UTM)
    model, out = red_model(tmp_path / "m.safetensors"), tmp_path / "out"
    main([str(tmp_path / "scenes"), "--model", model, "--out", str(out)])
    made = sorted(str(path.relative_to(out)) for path in out.rglob("*.tif"))
    assert made == ["2.tif", "north/1.tif", "south/1.tif"]
    before = len(made)
    main([str(tmp_path / "scenes"), "--model", model, "--out", str(tmp_path / "scenes" / "found")])
    main([str(tmp_path / "scenes"), "--model", model, "--out", str(tmp_path / "scenes" / "found")])
    assert len(list((tmp_path / "scenes" / "found").rglob("*.tif"))) == before


def test_labels_pair_across_spellings_and_in_trees(tmp_path):
    composed, apart = "\u00e9t\u00e9", "e\u0301te\u0301"
    write(tmp_path / "images" / f"{apart}.tif", RGB, **UTM)
    write(tmp_path / "labels" / f"{composed}.tif", TRUTH[None].astype(np.uint8), **UTM)
    for x in (280000, 280001):
        write(tmp_path / "images" / "19" / f"{x}" / "152000.tif", RGB)
        write(tmp_path / "labels" / "19" / f"{x}" / "152000.tif", TRUTH[None].astype(np.uint8))
    scenes = {scene.stem: scene for scene in find_scenes([tmp_path])}
    assert set(scenes) == {composed, "280000-152000-19", "280001-152000-19"}
    # Web Mercator's pixel at the equator, 2 pi a / 256 / 2^19, times the cosine of the latitude
    lat = np.arctan(np.sinh(np.pi * (1 - 2 * 152000.5 / 2**19)))
    size = 2 * np.pi * 6378137 / 256 / 2**19 * np.cos(lat)
    assert scenes["280000-152000-19"].pixel_size == pytest.approx(size, rel=0.005)


@pytest.mark.parametrize(
    "name",
    ["2023-06-18", "18-06-19", "a_2023-06-24", "06-18-23", "IMG-1234-5678-16", "house 100-200-20"],
)
@pytest.mark.parametrize("side", [256, 300])
def test_a_date_or_a_number_is_no_tile(tmp_path, name, side):
    """Or it would lie where nobody builds: at 81 and at 85 degrees north the last two."""
    write(tmp_path / f"{name}.tif", town(300)[0][:, :side, :side])
    (scene,) = find_scenes([tmp_path], labelled=False)
    assert scene.pixel_size is None


def test_only_folders_of_labels_are_left_out(tmp_path):
    for name in ("gtown", "labelsville", "Masks", "gt", "gt_2020", "labels-old", "masks 2"):
        write(tmp_path / name / f"{name}.tif", RGB, **UTM)
    found = {scene.stem for scene in find_scenes([tmp_path], labelled=False)}
    assert found == {"gtown", "labelsville"}


# ---------------------------------------------------------------- options and formats


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return red_model(tmp_path_factory.mktemp("model") / "red.safetensors")


@pytest.fixture
def scene(tmp_path):
    return str(write(tmp_path / "scene.tif", RGB, **UTM))


@pytest.mark.parametrize("ending", ["parquet", "fgb", "shp", "gpkg", "geojson"])
def test_outlines_in_every_format(tmp_path, model, scene, ending):
    path = tmp_path / "out" / f"roofs.{ending}"
    main([scene, "--model", model, "--out", str(path)])
    if ending == "parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        areas = table["area_m2"].to_pylist()
    else:
        areas = pyogrio.raw.read(path, columns=["area_m2"])[3][0]
    # on the central meridian the grid is smaller than the ground by 0.9996
    want = [n * 0.09 / 0.9996**2 for n in (1800, 2000, 2100)]
    assert sorted(areas) == pytest.approx(want, rel=1e-3)
    assert "renderer-v2" in (path.parent / "roofs.qml").read_text()
    assert not [p for p in path.parent.iterdir() if not p.name.startswith("roofs.")]


@pytest.mark.parametrize(("form", "wish"), [
    ("tif", ["--simplify", "1"]), ("tif", ["--right-angles"]), ("png", ["--right-angles"]),
    ("probability", ["--min-area", "5"]), ("probability", ["--threshold", "0.3"]),
])  # fmt: skip
def test_what_a_format_cannot_honour_is_refused(tmp_path, model, scene, form, wish):
    with pytest.raises(InputError, match=rf"{wish[0]}: format {form} can't honour it"):
        main([scene, "--model", model, "--out", str(tmp_path / "out"), "--format", form, *wish])


def test_min_area_drops_small_buildings_from_a_mask(tmp_path, model, scene):
    path = tmp_path / "m.tif"
    main([scene, "--model", model, "--out", str(path), "--min-area", str(1900 * 0.09)])
    kept = TRUTH.copy()
    kept[100:160, 150:180] = False  # 1800 pixels; the others have 2000 and 2100
    assert ((read(path)[0] == 255) == kept).all()


@pytest.mark.parametrize(
    "options", [[], ["--separate"], ["--min-area", "1"], ["--format", "instances"]]
)
def test_a_mask_says_how_it_came_about_and_has_overviews(tmp_path, model, options):
    big = np.zeros((3, 1100, 1300), np.uint8)
    big[0, 200:700, 300:900] = 255
    scene, path = write(tmp_path / "s.tif", big, **UTM), tmp_path / "m.tif"
    main([str(scene), "--model", model, "--out", str(path), "--threshold", "0.25", *options])
    ids = "instances" in options
    with rasterio.open(path) as mask:
        tags = mask.tags()
        assert tags["MINICNN_THRESHOLD"] == "0.25" and tags["MINICNN_MODEL"].startswith("red-")
        assert tags["TIFFTAG_SOFTWARE"].startswith("minicnn ")
        assert re.fullmatch(r"\d{4}:\d\d:\d\d \d\d:\d\d:\d\d", tags["TIFFTAG_DATETIME"])
        assert mask.overviews(1) and mask.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        whole, small = mask.read(1), mask.read(1, out_shape=(138, 163))
        assert ((whole != 0) == (big[0] != 0)).all() and mask.dataset_mask().all()
        # An eighth of the size is read from an overview: ids are not to be averaged there either.
        assert set(np.unique(small)) == set(np.unique(whole)) and len(np.unique(whole)) == 2
        if not ids:
            assert mask.colorinterp[0] == C.palette and mask.colormap(1)[255][:3] != (0, 0, 0)
            assert whole.max() == 255


def test_control_points_are_kept_and_place_outlines(tmp_path, model):
    place = UTM["transform"]
    points = [GroundControlPoint(r, c, *(place @ (c, r))) for r in (0, 256) for c in (0, 256)]
    path = write(tmp_path / "g.tif", RGB)
    with unplaced_is_fine(), rasterio.open(path, "r+") as out:
        out.gcps = points, CRS.from_epsg(32633)
    main([str(path), "--model", model, "--out", str(tmp_path / "m.tif")])
    with rasterio.open(tmp_path / "m.tif") as mask:
        kept = [(p.row, p.col, p.x, p.y) for p in mask.gcps[0]]
        assert (
            kept == [(p.row, p.col, p.x, p.y) for p in points] and mask.gcps[1].to_epsg() == 32633
        )
    main([str(path), "--model", model, "--out", str(tmp_path / "m.gpkg")])
    placed = write(tmp_path / "p.tif", RGB, **UTM)
    main([str(placed), "--model", model, "--out", str(tmp_path / "p.gpkg")])
    one, other = (shapely.from_wkb(pyogrio.raw.read(tmp_path / f"{n}.gpkg")[2]) for n in "mp")
    assert shapely.equals_exact(one, other, tolerance=1e-6).all()


def test_a_world_file_without_a_crs_takes_one(tmp_path, model, caplog):
    scene = write(tmp_path / "w.tif", RGB)
    (tmp_path / "w.tfw").write_text("0.3\n0\n0\n-0.3\n500000.15\n4999999.85\n")
    said = r"w\.tif has coordinates without a CRS: --crs EPSG:\.\.\. says which it is, and outlines"
    with pytest.raises(InputError, match=said):
        main([str(scene), "--model", model, "--out", str(tmp_path / "w.gpkg")])
    main([str(scene), "--model", model, "--out", str(tmp_path / "w_mask.tif")])
    assert "w.tif has coordinates without a CRS: --crs EPSG:... says" in caplog.text
    told = ["--crs", "EPSG:32633", "--out", str(tmp_path / "w.gpkg")]
    main([str(scene), "--model", model, *told])
    meta, _, geometry, _ = pyogrio.raw.read(tmp_path / "w.gpkg")
    assert meta["crs"] == "EPSG:32633" and len(geometry) == 3


@pytest.mark.parametrize(
    "crs, step, said",
    [
        (
            "EPSG:32633",
            2.7e-6,
            r"pixels of 2\.69e-06 m: at least 1/1000 of .*its CRS may be wrong",
        ),
        ("EPSG:4326", 0.3, r"pixels of .* m: at most 8 times .*its CRS may be wrong"),
    ],
)
def test_degrees_for_metres_and_metres_for_degrees_are_said(tmp_path, model, crs, step, said):
    place = Affine(step, 0, 10, 0, -step, 50)
    scene = write(tmp_path / "s.tif", RGB, crs=crs, transform=place)
    with pytest.raises(InputError, match=said):
        main([str(scene), "--model", model, "--out", str(tmp_path / "m.tif")])


def test_a_crs_that_is_not_needed_is_said(tmp_path, model, scene, caplog):
    given = [scene, "--model", model, "--out", str(tmp_path / "m.tif"), "--crs"]
    main([*given, "EPSG:32633"])
    assert not caplog.messages
    main([*given, "EPSG:3857"])
    assert "scene.tif has a CRS of its own: --crs is not taken for it" in caplog.text
    assert rasterio.open(tmp_path / "m.tif").crs == CRS.from_epsg(32633)


def test_sixteen_bits_with_a_model_of_eight(tmp_path, model):
    wide = RGB.astype(np.uint16) * 10 + 300
    scene = write(tmp_path / "s.tif", wide, **UTM)
    for values in (["auto"], ["300", "2850"]):
        out = tmp_path / f"{values[0]}.tif"
        main([str(scene), "--model", model, "--value-range", *values, "--out", str(out)])
        assert ((read(out)[0] == 255) == TRUTH).all()
    main(["--model", model, "--value-range", "auto", str(scene), "--out", str(tmp_path / "b.tif")])
    backwards = write(tmp_path / "b4.tif", np.concatenate([wide[:1], wide[::-1]]), **UTM)
    chosen = ["--bands", "4", "3", "2", "--value-range", "300", "2850"]
    main([str(backwards), "--model", model, *chosen, "--out", str(tmp_path / "c.tif")])
    assert ((read(tmp_path / "c.tif")[0] == 255) == TRUTH).all()


@pytest.mark.parametrize("driver", ["VRT", "JP2OpenJPEG", "GPKG"])
def test_more_drivers_for_ones_own_files_only(tmp_path, model, scene, driver):
    path = tmp_path / "own.bin"
    if driver == "VRT":
        rasterio.shutil.copy(scene, path, driver="VRT")
    elif driver == "GPKG":
        write(path, RGB, driver=driver, crs="EPSG:32633", transform=UTM["transform"])
    else:
        write(path, RGB, driver=driver, QUALITY="100", REVERSIBLE="YES", **UTM)
    main([str(path), "--model", model, "--out", str(tmp_path / "m.tif")])
    assert ((read(tmp_path / "m.tif")[0] == 255) == TRUTH).mean() > 0.97
    with pytest.raises(InputError, match=r"own\.bin is empty or no picture"), open_raster(path):
        pass


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_are_of_equal_work(tmp_path, count):
    scene = tmp_path / "s.tif"
    form = {"compress": "deflate", "tiled": True, "SPARSE_OK": "TRUE"}
    with rasterio.open(
        scene,
        "w",
        driver="GTiff",
        count=3,
        height=10_000,
        width=10_000,
        dtype="uint8",
        **UTM,
        **form,
    ):
        pass
    request = {"pixel_size": None, "overlap": 64, "shards": count}
    plan = shards.plan_of(request, find_scenes([scene], labelled=False), 16)
    work = [sum(p.height * p.width for p in plan.of(shard)) for shard in range(count)]
    assert sum(work) == 10**8 and max(work) <= 1.15 * 10**8 / count


def test_geojson_of_the_antimeridian_through_the_command(tmp_path, model):
    to = pyproj.Transformer.from_crs("OGC:CRS84", "EPSG:32760", always_xy=True)
    x, y = to.transform(180, -16.8)
    place = {"crs": "EPSG:32760", "transform": Affine(0.3, 0, x - 15, 0, -0.3, y + 38)}
    scene, path = write(tmp_path / "fiji.tif", RGB, **place), tmp_path / "b.geojson"
    main([str(scene), "--model", model, "--out", str(path)])
    kinds = [f["geometry"]["type"] for f in json.loads(path.read_text())["features"]]
    assert sorted(kinds) == ["MultiPolygon", "MultiPolygon", "Polygon"]
