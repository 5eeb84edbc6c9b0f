"""Label and image on one ground, and labels in the formats that people have.

Oracles: the label itself, moved by GDAL or by hand; shapely for what lies in a polygon.
"""

import json

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.warp import Resampling, reproject, transform_bounds

from segment.data.labels import Elsewhere, read_buildings
from segment.data.rasters import open_raster
from segment.data.scenes import Scene, find_scenes
from segment.data.tiles import open_store
from segment.errors import InputError
from tests.segment.pictures import photograph, write_picture

pyproj = pytest.importorskip("pyproj")
pyogrio = pytest.importorskip("pyogrio")
shapely = pytest.importorskip("shapely")

PLACE = Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000)
UTM = {"crs": "EPSG:32633", "transform": PLACE}
SHAPE = 200, 260


def town():
    mask = np.zeros(SHAPE, np.uint8)
    mask[20:60, 30:80] = mask[100:130, 150:210] = mask[160:190, 20:50] = 1
    return mask


@pytest.fixture
def image(tmp_path):
    return write_picture(tmp_path / "i.tif", photograph(*SHAPE), **UTM)


def label_of(image, label, notes=None):
    return both_of(image, label, notes)[0]


def both_of(image, label, notes=None):
    """The label, and which building each pixel is of."""
    with open_raster(image) as dataset:
        return read_buildings(Scene(image, label, "s", "s", "c", None), dataset, notes)


def same_buildings(one, other):
    """Whether two arrays number the same buildings, by whatever numbers."""
    pairs = set(zip(one.ravel().tolist(), other.ravel().tolist(), strict=True))
    return len(pairs) == len(np.unique(one)) == len(np.unique(other)) and (0, 0) in pairs


# ---------------------------------------------------------------- one ground


def test_a_label_south_up_is_turned(tmp_path, image):
    up = Affine(0.3, 0, PLACE.c, 0, 0.3, PLACE.f - 0.3 * SHAPE[0])
    label = write_picture(tmp_path / "m.tif", town()[::-1], crs="EPSG:32633", transform=up)
    assert (label_of(image, label) == town()).all()


@pytest.mark.parametrize(("rows", "cols"), [(-30, 40), (12, 0), (0.4, -0.4), (20.3, 7.8)])
def test_a_shifted_label_is_brought_where_it_belongs(tmp_path, image, rows, cols):
    """By half a pixel and less it is left as it is."""
    place = {"crs": "EPSG:32633", "transform": PLACE @ Affine.translation(cols, rows)}
    label = write_picture(tmp_path / "m.tif", town(), **place)
    got = label_of(image, label)
    row, col = round(rows) if abs(rows) > 0.5 else 0, round(cols) if abs(cols) > 0.5 else 0
    expected = np.full(SHAPE, 255, np.uint8)
    to = slice(max(row, 0), SHAPE[0] + min(row, 0)), slice(max(col, 0), SHAPE[1] + min(col, 0))
    at = slice(max(-row, 0), SHAPE[0] - max(row, 0)), slice(max(-col, 0), SHAPE[1] - max(col, 0))
    expected[to] = town()[at]
    assert (got == expected).all()


@pytest.mark.parametrize("crs", ["EPSG:32634", "EPSG:3857", "EPSG:4326"])
def test_a_label_in_another_crs_is_warped(tmp_path, image, crs):
    bounds = rasterio.transform.array_bounds(*SHAPE, PLACE)
    west, south, east, north = transform_bounds("EPSG:32633", crs, *bounds)
    height, width = SHAPE
    place = Affine((east - west) / width, 0, west, 0, (south - north) / height, north)
    fine = place @ Affine.scale(1 / 3)
    moved = np.zeros((height * 3, width * 3), np.uint8)
    reproject(
        town(), moved, src_transform=PLACE, src_crs="EPSG:32633",
        dst_transform=fine, dst_crs=crs, resampling=Resampling.nearest,
    )  # fmt: skip
    label = write_picture(tmp_path / "m.tif", moved, crs=crs, transform=fine)
    got = label_of(image, label)
    union = np.count_nonzero((got == 1) | (town() == 1))
    assert np.count_nonzero((got == 1) & (town() == 1)) / union > 0.97


def test_one_crs_spelled_otherwise_is_one(tmp_path, image):
    crs = rasterio.crs.CRS.from_epsg(32633)
    spelled = crs.to_wkt(version="WKT1_ESRI"), crs.to_proj4(), "EPSG:32633+5773"
    for text in spelled:
        label = write_picture(tmp_path / "m.tif", town(), crs=text, transform=PLACE)
        assert (label_of(image, label) == town()).all()


@pytest.mark.parametrize("form", [
    {"crs": "EPSG:32633", "transform": PLACE @ Affine.translation(100_000, 0)},
    {"crs": "EPSG:32733", "transform": PLACE},
])  # fmt: skip
def test_a_label_of_another_place_is_refused(tmp_path, image, form):
    label = write_picture(tmp_path / "m.tif", town(), **form)
    with pytest.raises(Elsewhere, match=r"m\.tif lies elsewhere than its image .*i\.tif"):
        label_of(image, label)


@pytest.mark.parametrize("which", ["image", "label"])
def test_a_label_without_a_place_goes_by_its_pixels(tmp_path, image, which):
    plain = {"image": ({}, UTM), "label": (UTM, {})}[which]
    image = write_picture(tmp_path / "p.tif", photograph(*SHAPE), **plain[0])
    label = write_picture(tmp_path / "m.tif", town(), **plain[1])
    assert (label_of(image, label) == town()).all()


# ---------------------------------------------------------------- masks


def test_white_is_building_whatever_its_number(tmp_path, image):
    inverted = write_picture(tmp_path / "w.tif", (1 - town()) * 255, photometric="MINISWHITE")
    assert (label_of(image, inverted) == town()).all()
    bits = write_picture(tmp_path / "b.tif", 1 - town(), photometric="MINISWHITE", nbits=1)
    assert (label_of(image, bits) == town()).all()
    pil = pytest.importorskip("PIL.Image")
    for name, colours, values in (
        ("reversed", [255, 255, 255, 0, 0, 0], 1 - town()),
        ("usual", [0, 0, 0, 255, 255, 255], town()),
        ("maroon", [0, 0, 0, 128, 0, 0], town()),
    ):
        picture = pil.fromarray(values, mode="P")
        picture.putpalette(colours)
        picture.save(tmp_path / f"{name}.png")
        assert (label_of(image, tmp_path / f"{name}.png") == town()).all(), name
    red = town()[..., None] * np.array([200, 10, 0], np.uint8)
    assert (label_of(image, write_picture(tmp_path / "red.tif", red)) == town()).all()
    pil.fromarray(town() > 0).save(tmp_path / "bilevel.png")
    assert (label_of(image, tmp_path / "bilevel.png") == town()).all()


def test_labels_come_in_the_formats_that_pictures_come_in(tmp_path, image):
    """Here JPEG 2000, without loss, and a VRT that names it."""
    lossless = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
    wavelets = write_picture(tmp_path / "w.jp2", town() * np.uint8(255), **lossless, **UTM)
    assert (label_of(image, wavelets) == town()).all()
    source = "<SourceFilename relativeToVRT='1'>w.jp2</SourceFilename><SourceBand>1</SourceBand>"
    (tmp_path / "v.vrt").write_text(
        f"<VRTDataset rasterXSize='{SHAPE[1]}' rasterYSize='{SHAPE[0]}'><VRTRasterBand "
        f"dataType='Byte' band='1'><SimpleSource>{source}</SimpleSource></VRTRasterBand>"
        "</VRTDataset>"
    )
    assert (label_of(image, tmp_path / "v.vrt") == town()).all()


def test_a_palette_of_classes_is_refused(tmp_path, image):
    pil = pytest.importorskip("PIL.Image")
    picture = pil.fromarray(town() + (town() > 0) * np.uint8(1) + 0, mode="P")
    picture.putpixel((0, 0), 1)
    picture.putpalette([0, 0, 0, 0, 255, 0, 255, 0, 0])
    picture.save(tmp_path / "c.png")
    with pytest.raises(InputError, match=r"c\.png is no mask: its palette shows 3 colours"):
        label_of(image, tmp_path / "c.png")


@pytest.mark.parametrize(
    ("dtype", "first"),
    [("uint8", 1), ("uint16", 900), ("int32", 70_000), ("int64", 5_000_000_000)],
)
def test_numbers_of_buildings_are_a_label(tmp_path, image, dtype, first):
    numbers = np.zeros(SHAPE, dtype)
    places = [(r, c) for r in range(5, 190, 30) for c in range(5, 250, 30)]
    for number, (row, col) in enumerate(places, start=first):
        numbers[row : row + 20, col : col + 30] = number  # they touch
    label = write_picture(tmp_path / "n.tif", numbers, **UTM)
    got, number = both_of(image, label)
    assert (got == (numbers != 0)).all()
    assert same_buildings(number, numbers) and number.max() == len(places)


def test_numbers_are_brought_where_they_belong(tmp_path, image):
    """By whole pixels, and to a grid twice as fine."""
    numbers = np.zeros(SHAPE, np.uint16)
    numbers[20:60, 30:80], numbers[20:60, 80:120] = 11, 12  # they touch
    shifted = {"crs": "EPSG:32633", "transform": PLACE @ Affine.translation(10, 5)}
    label = write_picture(tmp_path / "s.tif", numbers, **shifted)
    _, number = both_of(image, label)
    expected = np.zeros(SHAPE, int)
    expected[5:, 10:] = numbers[:-5, :-10]
    assert same_buildings(number, expected)
    half = {"crs": "EPSG:32633", "transform": PLACE @ Affine.scale(2, 2)}
    label = write_picture(tmp_path / "h.tif", numbers[::2, ::2], **half)
    got, number = both_of(image, label)
    assert same_buildings(number, numbers) and (got == (numbers > 0)).all()


def test_a_mask_tells_no_buildings_apart(tmp_path, image):
    assert both_of(image, write_picture(tmp_path / "m.tif", town(), **UTM))[1] is None


def test_photographs_classes_and_soft_edges_are_no_labels(tmp_path, image):
    rng = np.random.default_rng(0)
    classes = np.kron(rng.integers(0, 4, (20, 26)), np.ones((10, 10), int)).astype(np.uint8)
    soft = np.kron(town()[::4, ::4], np.ones((4, 4), int)).astype(float) * 200
    for _ in range(3):
        soft = (soft + np.roll(soft, 1, 0) + np.roll(soft, 1, 1)) / 3
    two_colours = np.stack([town(), np.roll(town(), 40, 1), 0 * town()], axis=-1) * np.uint8(255)
    for wrong in (
        photograph(*SHAPE)[..., 0],
        photograph(*SHAPE),
        two_colours,
        classes,
        soft.astype(np.uint8),
        soft.astype("float32"),
    ):
        label = write_picture(tmp_path / "x.tif", wrong, **UTM)
        with pytest.raises(InputError, match=r"x\.tif is no mask"):
            label_of(image, label)


# ---------------------------------------------------------------- polygons


def box(col, row, width, height):
    corners = ((0, 0), (width, 0), (width, height), (0, height))
    return shapely.Polygon([PLACE @ (col + x, row + y) for x, y in corners])


SHAPES = [box(30.2, 20.2, 50, 40), box(150.2, 100.2, 60, 30), box(20.2, 160.2, 30, 30)]


def inside(*shapes):
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    x, y = PLACE @ (cols + 0.5, rows + 0.5)
    return shapely.contains_xy(shapely.union_all(shapes), x, y)


def write_layer(path, shapes, layer=None, crs="EPSG:32633"):
    drivers = {".gpkg": "GPKG", ".shp": "ESRI Shapefile", ".fgb": "FlatGeobuf"}
    if path.suffix == ".parquet":
        return write_geoparquet(path, shapes)
    pyogrio.raw.write(
        path, geometry=shapely.to_wkb(shapes), field_data=[np.arange(len(shapes))], fields=["n"],
        crs=crs, geometry_type="Polygon", driver=drivers[path.suffix], layer=layer,
        append=path.exists(),
    )  # fmt: skip
    return path


def write_geoparquet(path, shapes):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    crs = pyproj.CRS.from_epsg(32633).to_json_dict()
    about = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": crs}
    geo = {"version": "1.1.0", "primary_column": "outline", "columns": {"outline": about}}
    table = arrow.table({"n": list(range(len(shapes))), "outline": list(shapely.to_wkb(shapes))})
    parquet.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)
    return path


def test_polygons_that_touch_are_two_buildings(tmp_path, image):
    shapes = [box(30.2, 20.2, 50, 40), box(80.2, 20.2, 30, 40), box(150.2, 100.2, 60, 30)]
    label, number = both_of(image, write_layer(tmp_path / "b.gpkg", shapes))
    expected = sum(n * inside(shape).astype(int) for n, shape in enumerate(shapes, start=1))
    assert same_buildings(number, expected) and (label == (expected > 0)).all()


@pytest.mark.parametrize("ending", [".gpkg", ".shp", ".fgb", ".parquet"])
def test_vector_formats(tmp_path, image, ending):
    path = write_layer(tmp_path / f"buildings{ending}", SHAPES)
    assert (label_of(image, path) == inside(*SHAPES)).all()


def test_the_layer_of_buildings_is_taken(tmp_path, image):
    path = write_layer(tmp_path / "a.gpkg", [box(0, 0, 100, 100)], "parks")
    write_layer(path, SHAPES, "buildings")
    assert (label_of(image, path) == inside(*SHAPES)).all()
    other = write_layer(tmp_path / "b.gpkg", [box(0, 0, 100, 100)], "parks")
    write_layer(other, SHAPES, "houses")
    with pytest.raises(InputError, match=r"b\.gpkg has 2 layers \(parks, houses\)"):
        label_of(image, other)


def test_a_shapefile_without_a_crs_is_refused(tmp_path, image):
    path = write_layer(tmp_path / "a.shp", SHAPES)
    (tmp_path / "a.prj").unlink()
    with pytest.raises(InputError, match=r"a\.shp has no CRS \(a Shapefile's is in its \.prj\)"):
        label_of(image, path)


@pytest.mark.parametrize("content", [b"PAR1 and no more", b"fgb\x03fgb\x00", b"\x00\x00\x27\x0a"])
def test_what_is_cut_off_is_refused(tmp_path, image, content):
    (tmp_path / "cut.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"cut\.bin is cut off or no"):
        label_of(image, tmp_path / "cut.bin")


def geojson(path, *geometries, crs="urn:ogc:def:crs:EPSG::32633"):
    features = [{"type": "Feature", "properties": {}, "geometry": g} for g in geometries]
    named = {"crs": {"type": "name", "properties": {"name": crs}}} if crs else {}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **named}))
    return path


def test_what_is_no_polygon_is_counted_and_named(tmp_path, image):
    shapes = [shapely.geometry.mapping(shape) for shape in SHAPES]
    line = {"type": "LineString", "coordinates": shapes[0]["coordinates"][0]}
    point = {"type": "Point", "coordinates": shapes[0]["coordinates"][0][0]}
    flat = {"type": "Polygon", "coordinates": [shapes[0]["coordinates"][0][:3]]}
    nested = {"type": "GeometryCollection", "geometries": [shapes[1], point]}
    whole = {"type": "GeometryCollection", "geometries": [nested, shapes[2]]}
    path = geojson(tmp_path / "g.geojson", shapes[0], line, point, flat, whole, None)
    notes = []
    assert (label_of(image, path, notes) == inside(*SHAPES)).all()
    assert notes == [f"{path}: left out what is no polygon (1 LineString, 2 Point, 1 Polygon)"]
    with pytest.raises(InputError, match=r"g\.geojson holds a faulty shape or a LineString, Point"):
        label_of(image, geojson(path, line, point))


@pytest.mark.parametrize("laps", [2, 3, 4])
def test_a_ring_run_round_more_than_once_is_full(tmp_path, image, laps):
    ring = [list(point) for point in SHAPES[0].exterior.coords]
    often = {"type": "Polygon", "coordinates": [ring + ring[1:] * (laps - 1)]}
    assert (label_of(image, geojson(tmp_path / "g.geojson", often)) == inside(SHAPES[0])).all()


def test_crs_members_of_all_ages(tmp_path, image):
    shapes = [shapely.geometry.mapping(shape) for shape in SHAPES]
    path = geojson(tmp_path / "g.geojson", *shapes)
    document = json.loads(path.read_text())
    for crs in (
        {"type": "EPSG", "properties": {"code": 32633}},
        {"type": "name", "properties": {"name": "EPSG:32633"}},
    ):
        path.write_text(json.dumps(document | {"crs": crs}))
        assert (label_of(image, path) == inside(*SHAPES)).all()
    path.write_text(json.dumps({**document["features"][0], "crs": document["crs"]}))
    assert (label_of(image, path) == inside(SHAPES[0])).all()


def test_polygons_across_180_degrees(tmp_path):
    """Cut there or not, in degrees or in metres, on an image in degrees or in metres."""
    to = pyproj.Transformer.from_crs("OGC:CRS84", "EPSG:32760", always_xy=True)
    x, y = to.transform(180, -16.8)
    metres = Affine(0.3, 0, x - 39, 0, -0.3, y + 30)
    ring = [
        metres @ corner for corner in ((100.2, 60.2), (180.2, 60.2), (180.2, 90.2), (100.2, 90.2))
    ]
    lon, lat = to.transform(*zip(*ring, strict=True), direction="INVERSE")
    jumping = {"type": "Polygon", "coordinates": [[*map(list, zip(lon, lat, strict=True))]]}
    jumping["coordinates"][0].append(jumping["coordinates"][0][0])
    image = write_picture(
        tmp_path / "m.tif", photograph(200, 260), crs="EPSG:32760", transform=metres
    )
    expected = np.zeros((200, 260), np.uint8)
    expected[60:90, 100:180] = 1
    assert (label_of(image, geojson(tmp_path / "j.geojson", jumping, crs=None)) == expected).all()

    degrees = {"crs": "EPSG:4326", "transform": Affine(1e-5, 0, 179.999, 0, -1e-5, -16.799)}
    image = write_picture(tmp_path / "d.tif", photograph(200, 200), **degrees)
    east = shapely.geometry.mapping(shapely.box(-179.9999, -16.8, -179.9995, -16.7996))
    expected = np.zeros((200, 200), np.uint8)
    expected[60:100, 110:150] = 1
    assert (label_of(image, geojson(tmp_path / "e.geojson", east, crs=None)) == expected).all()


# ---------------------------------------------------------------- sets


def pairs(folder, count, polygons):
    """A set of images side by side with labels in degrees, drawn by `polygons(lon, lat)`."""
    back = pyproj.Transformer.from_crs("EPSG:32633", "OGC:CRS84", always_xy=True)
    for i in range(count):
        place = PLACE @ Affine.translation(300 * i, 0)
        name = f"town_{'abc'[i]}"
        write_picture(
            folder / "images" / f"{name}.tif",
            photograph(256, 256),
            crs="EPSG:32633",
            transform=place,
        )
        ring = [polygons(i, *back.transform(*(place @ c))) for c in ((20, 20), (90, 20), (90, 70))]
        shape = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        (folder / "labels").mkdir(exist_ok=True)
        geojson(folder / "labels" / f"{name}.geojson", shape, crs=None)
    return folder


def test_a_set_of_which_no_label_meets_its_image_is_refused(tmp_path):
    folder = pairs(tmp_path / "set", 3, lambda i, lon, lat: [lat, lon])
    with pytest.raises(InputError, match="latitude seems to stand before longitude"):
        open_store(find_scenes([folder]), cache=tmp_path / "cache")


def test_a_scene_whose_label_lies_elsewhere_is_left_out_and_named(tmp_path, caplog):
    folder = pairs(tmp_path / "set", 3, lambda i, lon, lat: [lon + 3 * (i == 1), lat])
    for _ in range(2):  # cut, and found in the cache
        caplog.clear()
        store = open_store(find_scenes([folder]), cache=tmp_path / "cache")
        assert sorted({tile.stem for tile in store.tiles}) == ["town_a", "town_c"]
        (message,) = caplog.messages
        assert "town_b.geojson lies elsewhere than its image" in message and "left out" in message
