"""Right angles: known buildings come back from unsteady outlines, and no outline gets worse."""

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.features import rasterize, shapes

from segment.geo import footprints, right_angles
from segment.geo.right_angles import right_angled

PIXEL = 0.3
FINE = Affine.scale(PIXEL)
RECTANGLE = shapely.box(0, 0, 14, 9)
L_SHAPE = shapely.Polygon([(0, 0), (18, 0), (18, 8), (9, 8), (9, 15), (0, 15)])
COURTYARD = shapely.box(0, 0, 20, 16) - shapely.box(6, 5, 13, 11)
TOWER = shapely.Point(10, 10).buffer(9)


def masked(*buildings, angle=0.0, unsteady=0, seed=0, size=120):
    """Outlines of a mask of the buildings, as a network's would be: pixels, and frayed edges."""
    centre = shapely.Point(size * PIXEL / 2, size * PIXEL / 2)
    whole = shapely.GeometryCollection(list(buildings))
    box = shapely.box(*whole.bounds).centroid
    placed = shapely.affinity.translate(whole, centre.x - box.x, centre.y - box.y)
    placed = shapely.affinity.rotate(placed, angle, origin=centre)
    fine = Affine.scale(PIXEL)
    mask = rasterize(placed.geoms, (size, size), transform=fine).astype(bool)
    rng = np.random.default_rng(seed)
    for _ in range(unsteady):
        rim = mask ^ np.roll(mask, rng.choice([-1, 1]), rng.integers(2))
        mask ^= rim & (rng.random(mask.shape) < 0.4)
    found = shapes(mask.astype(np.uint8), mask=mask, connectivity=4, transform=fine)
    outlines = np.array([shapely.geometry.shape(shape) for shape, _ in found], dtype=object)
    return outlines[shapely.area(outlines) > 2], placed


def angles(polygon):
    """Of every corner of every ring, in degrees."""
    for ring in (polygon.exterior, *polygon.interiors):
        corners = np.array(ring.coords)[:-1]
        before, after = np.roll(corners, 1, 0) - corners, np.roll(corners, -1, 0) - corners
        cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
        yield from np.degrees(np.arctan2(abs(cross), (before * after).sum(axis=1)))


def iou(a, b):
    return a.intersection(b).area / a.union(b).area


@pytest.mark.parametrize("angle", [0, 7, 30, 45, 81])
@pytest.mark.parametrize(
    "building, corners", [(RECTANGLE, 4), (L_SHAPE, 6), (COURTYARD, 8)], ids=["box", "L", "court"]
)
def test_a_building_comes_back_from_an_unsteady_outline(building, corners, angle):
    outlines, truth = masked(building, angle=angle, unsteady=2, seed=angle)
    (raw,), (found,) = outlines, right_angled(outlines, 1.0)
    assert sum(1 for _ in angles(raw)) > 30
    assert list(angles(found)) == pytest.approx([90] * corners)
    assert len(found.interiors) == len(building.interiors if building is COURTYARD else ())
    assert iou(found, truth.geoms[0]) > 0.9
    assert abs(found.area / raw.area - 1) < 0.05


def test_what_is_round_stays_round():
    outlines, truth = masked(TOWER, unsteady=1)
    (found,) = right_angled(outlines, 1.0)
    assert iou(found, truth.geoms[0]) > 0.9
    assert any(abs(angle - 90) > 10 for angle in angles(found))
    assert found.equals(shapely.simplify(outlines[0], 1.0))


def test_a_jog_below_the_tolerance_goes_and_one_above_stays():
    def jogged(depth):
        corners = [(0, 0), (20, 0), (20, 10), (2, 10), (2, 10 + depth), (0, 10 + depth)]
        return np.array([shapely.Polygon(corners)])

    (small,), (large,) = right_angled(jogged(0.8), 1.0), right_angled(jogged(1.2), 1.0)
    assert len(list(angles(small))) == 4 and len(list(angles(large))) == 6
    assert small.area == pytest.approx(jogged(0.8)[0].area, rel=0.01)


def test_nobody_is_drawn_into_a_neighbour():
    """A box in the bay of a C, where the bay's slanting wall, made level, would rise into it."""
    bay = [(0, 0), (30, 0), (30, 3), (10, 5), (10, 12), (30, 12), (30, 16), (0, 16)]
    thing = [(24, 3.8), (29.8, 3.2), (29.8, 11), (24, 11)]
    outlines = np.array([shapely.Polygon(bay), shapely.Polygon(thing)])
    alone = [right_angled(outlines[i : i + 1], 1.0)[0] for i in (0, 1)]
    assert alone[0].intersection(alone[1]).area > 1
    both = right_angled(outlines, 1.0)
    assert both[0].intersection(both[1]).area < 1e-6
    assert shapely.is_valid(both).all()


@pytest.mark.parametrize("angle", [10, 37, 60])
def test_houses_in_a_row_that_share_walls_get_few_corners(angle):
    """Their steps of pixels fit together, so straight walls reach over them: one gives way."""
    turn = {"angle": angle, "origin": (15, 15)}
    houses = [shapely.affinity.rotate(shapely.box(x, 8, x + 7, 18), **turn) for x in (2, 9, 16)]
    numbered = list(zip(houses, (1, 2, 3), strict=True))
    labels = rasterize(numbered, (110, 110), transform=FINE, dtype=np.uint8)
    found = shapes(labels, mask=labels > 0, connectivity=4, transform=FINE)
    outlines = np.array([shapely.geometry.shape(shape) for shape, _ in found], dtype=object)
    drawn = right_angled(outlines, 1.0)
    assert len(drawn) == 3 and shapely.get_num_coordinates(outlines).min() > 30
    for new, raw in zip(drawn, outlines, strict=True):
        assert shapely.get_num_coordinates(new) <= 12 and iou(new, raw) > 0.85
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert drawn[i].intersection(drawn[j]).area < 1e-6


@settings(max_examples=100)
@given(
    seed=st.integers(0, 10_000),
    share=st.floats(0.3, 0.7),
    tolerance=st.sampled_from([0.4, 1.0, 3.0]),
)
def test_whatever_the_mask_outlines_stay_valid_apart_and_near(seed, share, tolerance):
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((10, 12)) < share, np.ones((4, 4), bool))
    mask ^= rng.random(mask.shape) < 0.03
    found = shapes(mask.astype(np.uint8), mask=mask, connectivity=4)
    outlines = np.array([shapely.geometry.shape(shape) for shape, _ in found], dtype=object)
    outlines = shapely.transform(outlines, lambda xy: xy * PIXEL)
    drawn = right_angled(outlines, tolerance)
    assert shapely.is_valid(drawn).all() and (shapely.get_type_id(drawn) == 3).all()
    for i in range(len(drawn)):
        for j in range(i):
            assert drawn[i].intersection(drawn[j]).area < 2e-6
    simple = shapely.simplify(outlines, tolerance)
    for new, plain, raw in zip(drawn, simple, outlines, strict=True):
        squared = iou(new, raw) >= 0.8 and np.allclose(list(angles(new)), 90)
        apart = iou(new, plain) > 0.5 or iou(new, raw) > 0.5  # gave way to a neighbour
        assert squared or new.equals(plain) or apart
        sizes = [shapely.Polygon(ring).area for ring in raw.interiors]
        large = sum(size > 2 * tolerance**2 for size in sizes)
        within = len(sizes) + len(outlines) - 1  # where a notch closes over a neighbour
        assert large <= len(new.interiors) <= within


def test_nothing_gives_nothing():
    assert len(right_angled(np.array([], dtype=object), 1.0)) == 0


def test_footprints_are_drawn_in_metres_on_the_ground():
    """In Web Mercator at 60 degrees north a metre on the ground is two on the map."""
    outlines, _ = masked(L_SHAPE, angle=20, unsteady=2)
    mask = rasterize(outlines, (120, 120), transform=Affine.scale(PIXEL), default_value=255)
    place = Affine(0.6, 0, 2_226_389, 0, -0.6, 8_399_737)
    found = footprints.polygons(
        mask.astype(np.uint8), place, CRS.from_epsg(3857), right_angles=True
    )
    assert list(angles(found.outlines[0])) == pytest.approx([90] * 6, abs=0.1)
    assert found.area_m2[0] == pytest.approx(L_SHAPE.area, rel=0.05)
    coarse = footprints.polygons(
        mask.astype(np.uint8), place, CRS.from_epsg(3857), simplify=8.5, right_angles=True
    )
    assert len(list(angles(coarse.outlines[0]))) != 6  # no wall of 7 m is left
    assert right_angles.LEAST_IOU == 0.8
