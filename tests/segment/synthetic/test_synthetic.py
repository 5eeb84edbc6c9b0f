"""The drawn scenes: repeatable, placed on the map, hard for a threshold, lit by one sun."""

import hashlib
import math
import os
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import assume, given
from hypothesis import strategies as st
from rasterio.features import rasterize, shapes
from rasterio.warp import transform_bounds
from shapely import affinity
from shapely.geometry import Point, Polygon, box, shape

from segment.data.scenes import find_scenes
from segment.errors import InputError
from segment.synthetic import buildings, camera, canvas, town
from segment.synthetic import scenes as synthetic
from segment.synthetic.canvas import PIXEL
from segment.synthetic.draw import MAX_SIZE, draw_scene, sun_position
from segment.synthetic.scenes import write_scenes
from segment.synthetic.town import CITIES

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def scenes():
    """Three scenes of each city: {city: [(image, mask), ...]}."""
    return {city: [draw_scene(city, number, 640) for number in (1, 2, 3)] for city in CITIES}


def run(*args, **options):
    """A process in the repository's folder."""
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, capture_output=True, text=True, **options
    )


def digest(image, mask):
    return hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()


# --- what is drawn --------------------------------------------------------------------------------


def test_same_scene_in_other_processes():
    """Neither the process, nor its hash seed, nor what it drew before changes a scene."""
    code = (
        "import sys; sys.path.insert(0, 'tests/segment/synthetic')\n"
        "from test_synthetic import digest, draw_scene\n"
        "draw_scene('dornfeld', 7, 64)\n"
        "print(digest(*draw_scene('corvo', 4, 300, seed=5)))"
    )
    here = digest(*draw_scene("corvo", 4, 300, seed=5))
    for hash_seed in "12":
        done = run("-c", code, env=os.environ | {"PYTHONHASHSEED": hash_seed}, check=True)
        assert done.stdout.strip() == here


def test_city_number_and_seed_each_make_another_scene():
    drawn = [("corvo", 1, 0), ("corvo", 2, 0), ("corvo", 1, 1), ("eastport", 1, 0)]
    masks = [draw_scene(city, number, 256, seed)[1] for city, number, seed in drawn]
    assert all((a != b).mean() > 0.05 for a, b in combinations(masks, 2))
    assert len({sun_position(city, n, seed) for city, n, seed in drawn}) == len(drawn)


@pytest.mark.parametrize(("size", "city"), list(zip((1, 2, 17, 256, 301), CITIES, strict=True)))
def test_any_size(size, city):
    image, mask = draw_scene(city, 1, size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert mask.shape == (size, size) and mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("atlantis", 1, 64), "atlantis"),
        (("corvo", 0, 64), "scene 0"),
        (("corvo", 1, 0), "not 0"),
        (("corvo", 1, MAX_SIZE + 1), "5001"),
        (("corvo", 1, 64, -1), "seed -1"),
    ],
)
def test_what_cannot_be_drawn(arguments, word):
    with pytest.raises(InputError, match=word):
        draw_scene(*arguments)


def test_building_shares_differ_by_city(scenes):
    share = {c: np.mean([mask > 0 for _, mask in drawn]) for c, drawn in scenes.items()}
    assert all(0.07 < s < 0.37 for s in share.values()), share
    assert max(share.values()) - min(share.values()) > 0.12
    tiles = [m[:256, :256] for drawn in scenes.values() for _, m in drawn]
    assert min((tile > 0).mean() for tile in tiles) < 0.03  # sparse ground is there as well


def footprints(masks):
    """Polygons in metres of the separate buildings that no edge of a scene cuts."""
    inner = box(0, 0, len(masks[0]), len(masks[0])).buffer(-1)
    found = [shape(s) for m in masks for s, v in shapes(m, m > 0) if v]
    return [affinity.scale(p, PIXEL, PIXEL) for p in found if inner.contains(p)]


def test_buildings_have_plausible_sizes(scenes):
    houses = [p.area for p in footprints([m for _, m in scenes["ashford"]]) if p.area > 50]
    assert 90 < np.median(houses) < 260
    halls = [p.area for p in footprints([m for _, m in scenes["eastport"]])]
    assert max(halls) > 800


def test_colours_are_those_of_photographs(scenes):
    """Neither black nor burnt out; mean and contrast as measured on real 0.3 m tiles."""
    for image, _ in (pair for drawn in scenes.values() for pair in drawn):
        grey = image.mean(2)
        assert 75 < grey.mean() < 165
        assert 25 < grey.std() < 70
        assert (image == 255).mean() < 0.08 and (image == 0).mean() < 0.02
        assert 5 < np.abs(np.diff(grey, axis=1)).mean() < 20


def features(image):
    """What one might threshold, as integers from 0 to 1023."""
    r, g, b = np.moveaxis(image.astype(float) + 1, -1, 0)
    total = r + g + b
    saturation = (image.max(2).astype(float) - image.min(2)) / total
    values = {
        "brightness": total, "red": 3 * r, "green": 3 * g, "blue": 3 * b,
        "red - green": 384 + r - g, "red - blue": 384 + r - b, "green - blue": 384 + g - b,
        "red share": 1000 * r / total, "green share": 1000 * g / total,
        "blue share": 1000 * b / total, "saturation": 900 * saturation,
    }  # fmt: skip
    return {name: np.clip(v, 0, 1023).astype(int) for name, v in values.items()}


def best_iou(values, mask):
    """The best IoU of any threshold on the values, from above or from below."""
    inside = np.bincount(values[mask], minlength=1024)
    outside = np.bincount(values[~mask], minlength=1024)
    found = 0.0
    for hit, wrong in ((inside, outside), (inside[::-1], outside[::-1])):
        found = max(found, (hit.cumsum() / (wrong.cumsum() + mask.sum())).max())
    return found


def test_best_iou_finds_a_perfect_threshold():
    mask = np.arange(100) < 30
    assert best_iou(np.where(mask, 700, 200), mask) == 1
    assert best_iou(np.where(mask, 200, 700), mask) == 1
    assert best_iou(np.zeros(100, int), mask) == pytest.approx(0.3)


def test_thresholds_fail(scenes):
    """A network has something to learn: no threshold on a colour comes near."""
    images = {c: np.concatenate([i for i, _ in drawn]) for c, drawn in scenes.items()}
    masks = {c: np.concatenate([m for _, m in drawn]) > 0 for c, drawn in scenes.items()}
    for city in CITIES:
        scores = {k: best_iou(v, masks[city]) for k, v in features(images[city]).items()}
        assert scores["brightness"] < 0.45, city
        assert max(scores.values()) < 0.55, (city, scores)
    whole = np.concatenate(list(masks.values()))
    pooled = features(np.concatenate(list(images.values())))
    assert max(best_iou(v, whole) for v in pooled.values()) < 0.4


# --- light ----------------------------------------------------------------------------------------


def direction(azimuth, elevation):
    """Unit vector (east, south, up) towards the sun."""
    azimuth, elevation = math.radians(azimuth), math.radians(elevation)
    level = math.cos(elevation)
    east, north = level * math.sin(azimuth), level * math.cos(azimuth)
    return np.array([east, -north, math.sin(elevation)])


@pytest.mark.parametrize("azimuth", range(0, 360, 24))
@pytest.mark.parametrize("elevation", [30, 45, 60])
def test_a_pole_is_a_sundial(azimuth, elevation):
    """Its shadow points away from the sun and is h / tan(elevation) long."""
    height = np.zeros((161, 161), np.float32)
    height[80, 80] = 9.0
    shadow = camera.cast_shadows(height, direction(azimuth, elevation)) > 0.5
    rows, cols = np.nonzero(shadow)
    reach = np.hypot(rows - 80, cols - 80)
    length = 9.0 / math.tan(math.radians(elevation)) / PIXEL
    assert abs(reach.max() - length) < 3
    tip = reach.argmax()
    bearing = math.degrees(math.atan2(cols[tip] - 80, -(rows[tip] - 80)))
    assert abs((bearing - azimuth - 180 + 180) % 360 - 180) < 6
    assert len(rows) > 0.9 * length / math.sqrt(2)  # no gaps


def test_a_wall_shades_what_is_lower_only():
    """A step of 6 m shades the ground, and of a roof 4 m high behind it only what lies deep."""
    height = np.zeros((10, 100), np.float32)
    height[:, 40:45], height[:, 45:] = 6.0, 4.0
    shadow = camera.cast_shadows(height, direction(270, 45))
    assert (shadow[:, :45] == 0).all()  # the sun is in the west
    lit = 45 + round(2 / PIXEL)
    assert (shadow[:, 45 : lit - 3] == 1).all() and (shadow[:, lit + 2 :] == 0).all()
    assert not camera.cast_shadows(np.zeros((5, 5), np.float32), direction(200, 40)).any()


def test_slopes_towards_the_sun_are_brighter():
    """At an elevation of 45 degrees: sqrt(2) of the level light straight on, none edge on."""
    sun = direction(180, 45)
    slopes = np.array([-1.0, 0.0, 1.0])  # dh/d(south): down to the south, level, up
    light = canvas.sunlight(np.zeros(3), slopes, sun)
    np.testing.assert_allclose(light, [math.sqrt(2), 1, 0], atol=1e-12)


def test_shadows_fall_away_from_the_sun(scenes):
    """Ground 2 m beyond a roof is darker on the far side, though the photograph tells no height."""
    for city, number in product(CITIES, (1, 2, 3)):
        image, mask = scenes[city][number - 1]
        roofs, grey = mask > 0, image.mean(2)
        east, south, _ = direction(sun_position(city, number)[0], 0)
        row, col = round(-south * 2 / PIXEL), round(-east * 2 / PIXEL)
        away = np.roll(roofs, (row, col), (0, 1)) & ~roofs
        towards = np.roll(roofs, (-row, -col), (0, 1)) & ~roofs
        assert grey[away].mean() < 0.8 * grey[towards].mean(), (city, number)


# --- label ----------------------------------------------------------------------------------------


def land(size=200):
    rng = np.random.default_rng(0)
    return canvas.Drawing(town.STYLES["ashford"], size, direction(150, 40), rng)


@pytest.mark.parametrize("kind", ["flat", "gable", "hip"])
@pytest.mark.parametrize("angle", [0, 20, 77, 130, 250])
def test_light_on_a_roof_is_that_of_its_slopes(angle, kind):
    """Against the slopes measured on the height field, away from ridges and edges."""
    d, frame = land(), town.Frame(31, 28, math.radians(angle))
    d.solid(frame, 24, 16, 5, canvas.MATERIALS["slate"], kind, 0.5, building=True)
    south, east = np.gradient(d.height.astype(float), PIXEL)
    normal = np.stack([-east, -south, np.ones_like(east)], -1)
    cosine = (normal / np.linalg.norm(normal, axis=-1, keepdims=True)) @ d.sun
    # Where the slope is the same two pixels around, it is that of one plane.
    around = [np.roll(cosine, shift, (0, 1)) for shift in product((-2, 0, 2), repeat=2)]
    plane = (d.mask > 0) & (np.ptp(around, axis=0) < 1e-3)
    assert plane.sum() > 0.5 * (d.mask > 0).sum()
    np.testing.assert_allclose(d.light[plane], cosine[plane] / d.sun[2], atol=0.01)


@pytest.mark.parametrize("angle", [0, 20, 77, 130])
def test_label_is_the_footprint(angle):
    """The polygon, rasterised by other code: no shadow, no tree, no parapet, whatever hides it."""
    d, turn = land(), math.radians(angle)
    frame = town.Frame(31.03, 28.07, turn)
    for y in (24, 34):
        for x in range(20, 44, 4):
            d.tree(x, y)
        d.solid(frame, 21.3, 11.7, 4, canvas.MATERIALS["slate"], "hip", 0.3, building=True)
    assert (d.height[d.mask > 0] > 6.5).any()  # a crown hangs over the roof
    house = box(-21.3 / 2, -11.7 / 2, 21.3 / 2, 11.7 / 2)
    house = affinity.translate(affinity.rotate(house, angle, origin=(0, 0)), 31.03, 28.07)
    expected = rasterize([affinity.scale(house, 1 / PIXEL, 1 / PIXEL, origin=(0, 0))], (200, 200))
    assert (d.mask > 0).sum() == pytest.approx(21.3 * 11.7 / PIXEL**2, rel=0.01)
    np.testing.assert_array_equal(d.mask > 0, expected > 0)


def test_only_buildings_are_labelled():
    d = land()
    lot = town.Lot(town.Frame(30, 30, 0.3), 50, 50)
    buildings.car_park(d, lot.frame, 40, 30, canvas.WORN)
    buildings.plant(d, lot, 200)
    assert (d.height > 1).mean() > 0.05 and not d.mask.any()


def test_the_highest_is_seen():
    """Whichever is drawn first, the tower hides the shed; the label keeps both."""
    tower, shed = canvas.MATERIALS["membrane"], canvas.MATERIALS["felt"]
    drawn = []
    for order in (1, -1):
        d = land()
        for size, height, material in ((20, 4, shed), (8, 12, tower))[::order]:
            d.solid(town.Frame(30, 30, 0.2), size, size, height, material, building=True)
        drawn.append(d)
    np.testing.assert_array_equal(drawn[0].colour, drawn[1].colour)
    assert drawn[0].height[100, 100] == 12 and drawn[0].height[100, 125] == 4
    assert (drawn[0].mask > 0).sum() == pytest.approx(400 / PIXEL**2, rel=0.02)


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    """Two scenes of each of two cities, 48 px."""
    return write_scenes(tmp_path, ("ashford", "eastport"), 2, 48, seed=3)


def read(path):
    with rasterio.open(path) as source:
        return source.read(), source.profile, source.bounds


def test_files_hold_the_scene_on_the_map(pairs, tmp_path):
    assert [p.name for p in pairs] == [
        "ashford1.tif", "ashford2.tif", "eastport1.tif", "eastport2.tif",
    ]  # fmt: skip
    image, mask = draw_scene("ashford", 2, 48, seed=3)
    pixels, profile, _ = read(tmp_path / "images" / "ashford2.tif")
    np.testing.assert_array_equal(np.moveaxis(pixels, 0, -1), image)
    labels, label_profile, _ = read(tmp_path / "gt" / "ashford2.tif")
    np.testing.assert_array_equal(labels, mask[None])
    assert profile["crs"] == label_profile["crs"]
    assert profile["transform"] == label_profile["transform"]
    assert profile["crs"].is_projected and profile["crs"].linear_units == "metre"
    assert tuple(profile["transform"])[:6:4] == (0.3, -0.3)  # north up
    assert profile["transform"].is_rectilinear and profile["driver"] == "GTiff"


def test_the_reader_finds_them(pairs, tmp_path):
    found = find_scenes([tmp_path])
    assert {(s.city, s.scene, s.stem) for s in found} == {
        (p.stem[:-1], p.stem, p.stem) for p in pairs
    }
    assert all(s.label is not None and s.pixel_size == pytest.approx(0.3, rel=1e-3) for s in found)


def test_places_do_not_overlap(tmp_path):
    """Not even scenes of the largest size; and each city lies far from the others."""
    paths = write_scenes(tmp_path, CITIES, 3, 1)
    squares, degrees = {}, {}
    for path in paths:
        _, profile, (west, _, _, north) = read(path)
        squares[path.stem] = box(west, north - MAX_SIZE * PIXEL, west + MAX_SIZE * PIXEL, north)
        bounds = squares[path.stem].bounds
        degrees[path.stem] = box(*transform_bounds(profile["crs"], "EPSG:4326", *bounds))
    for a, b in combinations(squares, 2):
        if a[:-1] == b[:-1]:
            assert squares[a].distance(squares[b]) > 0
        else:
            assert degrees[a].distance(degrees[b]) > 1


def stamps(folder):
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*.tif"))}


def test_a_complete_folder_is_left_alone(pairs, tmp_path):
    before = stamps(tmp_path)
    assert write_scenes(tmp_path, ("ashford", "eastport"), 2, 48, seed=3) == pairs
    assert stamps(tmp_path) == before and len(before) == 8


def test_an_incomplete_folder_is_finished(pairs, tmp_path):
    lost, before = tmp_path / "gt" / "eastport1.tif", stamps(tmp_path)
    content = read(lost)[0]
    lost.unlink()
    write_scenes(tmp_path, ("ashford", "eastport"), 2, 48, seed=3)
    changed = {p.name for p, stamp in stamps(tmp_path).items() if stamp != before[p]}
    assert changed == {"eastport1.tif"}
    np.testing.assert_array_equal(read(lost)[0], content)


@pytest.mark.parametrize(("size", "seed"), [(49, 3), (48, 4)])
def test_other_parameters_draw_anew(pairs, tmp_path, size, seed):
    write_scenes(tmp_path, ("ashford", "eastport"), 2, size, seed)
    for path in pairs:
        image, _ = draw_scene(path.stem[:-1], int(path.stem[-1]), size, seed)
        np.testing.assert_array_equal(np.moveaxis(read(path)[0], 0, -1), image)


@pytest.mark.parametrize("content", [b"", b"II*\0 half a file", None])
def test_the_raster_of_another_is_never_overwritten(pairs, tmp_path, content):
    foreign = tmp_path / "gt" / "ashford1.tif"
    if content is None:
        with rasterio.open(foreign) as source:
            profile = source.profile
        with rasterio.open(foreign, "w", **profile) as target:
            target.write(np.zeros((1, 48, 48), np.uint8))
        content = foreign.read_bytes()
    else:
        foreign.write_bytes(content)
    with pytest.raises(InputError, match="ashford1"):
        write_scenes(tmp_path, ("ashford", "eastport"), 2, 48, seed=3)
    assert foreign.read_bytes() == content


def test_an_interrupted_run_leaves_whole_pairs(tmp_path, monkeypatch):
    drawn = []

    def draw(*arguments):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(arguments)
        return draw_scene(*arguments)

    monkeypatch.setattr(synthetic, "draw_scene", draw)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path, ("corvo",), 4, 40)
    assert [p.name for p in sorted(tmp_path.rglob("*.*"))] == ["corvo1.tif", "corvo2.tif"] * 2
    monkeypatch.undo()
    assert len(write_scenes(tmp_path, ("corvo",), 4, 40)) == len(find_scenes([tmp_path])) == 4


def test_default_scenes_are_many_and_of_every_city(tmp_path, monkeypatch):
    blank = np.zeros((512, 512, 3), np.uint8), np.zeros((512, 512), np.uint8)
    monkeypatch.setattr(synthetic, "draw_scene", lambda *arguments: blank)
    paths = synthetic.default_scenes(tmp_path)
    found = find_scenes(paths)
    assert {s.city for s in found} == set(CITIES)
    assert len(found) == 40 and all(s.image.is_relative_to(tmp_path) for s in found)


# --- command --------------------------------------------------------------------------------------


def test_command(tmp_path):
    out = tmp_path / "made" / "here"
    words = "--size 33 --scenes 2 --cities 3 --seed 9"
    done = run("-m", "segment.synthetic", "--out", str(out), *words.split())
    assert done.returncode == 0 and done.stderr == "" and str(out) in done.stdout
    assert {s.stem for s in find_scenes([out])} == {f"{c}{n}" for c in CITIES[:3] for n in (1, 2)}
    image, _ = draw_scene(CITIES[2], 2, 33, seed=9)
    pixels = read(out / "images" / f"{CITIES[2]}2.tif")[0]
    np.testing.assert_array_equal(np.moveaxis(pixels, 0, -1), image)


@pytest.mark.parametrize("words", ["--size 0", "--size 9999", "--scenes 0", "--seed -1"])
def test_command_refuses(tmp_path, words):
    done = run("-m", "segment.synthetic", "--out", str(tmp_path / "x"), *words.split())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.tif"))


@given(st.lists(st.tuples(st.floats(-5, 25), st.floats(-5, 25)), min_size=3, max_size=7))
def test_pixels_within_an_outline_are_those_that_gdal_burns(points):
    outline = Polygon(points)
    assume(outline.is_valid and outline.area > 0)
    burnt = rasterize([outline], out_shape=(20, 18), dtype="uint8") > 0
    found = canvas.within(np.array(points), burnt.shape)
    differing = [Point(column + 0.5, row + 0.5) for row, column in np.argwhere(found != burnt)]
    assert all(outline.exterior.distance(centre) < 1e-6 for centre in differing)


@pytest.mark.slow
def test_the_largest_scene_fits():
    """5000 px in under a minute of one core and 2 GB, the libraries included."""
    code = (
        "import resource, time\n"
        "from segment.synthetic.draw import draw_scene\n"
        "image, mask = draw_scene('birkdale', 1, 5000)\n"
        "assert image.shape == (5000, 5000, 3) and 0.1 < (mask > 0).mean() < 0.36\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(time.process_time(), peak * 1024)"
    )
    seconds, peak = map(float, run("-c", code, check=True).stdout.split())
    assert seconds < 60 and peak < 2e9
