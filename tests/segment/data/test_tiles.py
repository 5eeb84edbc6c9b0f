"""The tile store against slices of the pictures, and against damage, haste and full disks."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from pictures import UTM, mask, photograph, write_pair, write_picture

from segment.data import tiles
from segment.data.rasters import open_raster
from segment.data.reading import Reading, read_pixels
from segment.data.resample import in_the_middle
from segment.data.scenes import find_scenes
from segment.data.tiles import (
    FULL,
    TILE,
    classes,
    covered,
    default_cache,
    open_store,
)
from segment.errors import InputError

BUILD = """
import sys
from segment.data.scenes import find_scenes
from segment.data.tiles import open_store
try:
    print(len(open_store(find_scenes([sys.argv[1]]), cache=sys.argv[2])))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def folder(tmp_path):
    """Two scenes, one placed: 2 + 4 tiles and a remainder."""
    write_pair(tmp_path / "set", "austin1", 300, 600)
    write_pair(tmp_path / "set", "austin2", 520, 530, **UTM)
    return tmp_path / "set"


def pixels_of(folder, kind, stem):
    height, width = {"austin1": (300, 600), "austin2": (520, 530)}[stem]
    draw = photograph if kind == "images" else mask
    return draw(height, width, seed=sum(stem.encode()))


def built(cache):
    return {path: path.stat().st_ino for path in cache.glob("*/*.u8")}


def test_tiles_are_slices_of_the_pictures(folder, tmp_path):
    store = open_store(find_scenes([folder]), cache=tmp_path / "cache")
    assert store.images[[0, 5]].shape == (2, TILE, TILE, 3) and len(store) == len(store.images) == 6
    assert store.labels[:].shape == (6, TILE, TILE) and store.labels[3].dtype == np.uint8
    assert len({tile.id for tile in store.tiles}) == 6
    for tile, image, label in zip(store.tiles, store.images, store.labels, strict=True):
        at = np.s_[tile.row : tile.row + TILE, tile.col : tile.col + TILE]
        assert (image == pixels_of(folder, "images", tile.stem)[at]).all()
        assert (label == (pixels_of(folder, "gt", tile.stem)[at] == 255)).all()
    assert store.tiles[-1].id == "austin/austin2/256_256"
    assert store.pixel_size == pytest.approx(0.3, rel=1e-3) and store.reading == Reading()
    whole = store.picture(store.tiles[0]).pixels  # the remainder too, which crops may show
    assert (whole == pixels_of(folder, "images", "austin1")).all()
    assert isinstance(whole, np.memmap) and not whole.flags.writeable


def test_a_pixel_size_resamples_the_scenes_that_have_one(tmp_path):
    blocks = photograph(260, 270).repeat(2, axis=0).repeat(2, axis=1)  # pairs of equal pixels
    roofs = mask(260, 270).repeat(2, axis=0).repeat(2, axis=1)
    write_picture(tmp_path / "images" / "a1.tif", blocks, **UTM)
    write_picture(tmp_path / "gt" / "a1.tif", roofs, **UTM)
    write_pair(tmp_path, "b1", 300, 300)
    scenes = find_scenes([tmp_path])
    store = open_store(scenes, pixel_size=0.6, cache=tmp_path / "cache")
    assert [tile.stem for tile in store.tiles] == ["a1", "b1"] and store.pixel_size == 0.6
    assert (store.images[0] == photograph(260, 270)[:TILE, :TILE]).all()
    assert (store.labels[0] == (mask(260, 270)[:TILE, :TILE] == 255)).all()
    finer = open_store(scenes[:1], pixel_size=0.15, cache=tmp_path / "cache")
    assert len(finer) == 16  # 1040 x 1080 pixels
    assert (finer.labels[0] == (roofs.repeat(2, 0).repeat(2, 1)[:TILE, :TILE] == 255)).all()


@pytest.mark.parametrize(("old", "new"), [((12, 10), (6, 5)), ((13, 9), (8, 4)), ((5, 6), (9, 12))])
def test_coverage_averages_a_label_over_each_pixel(rng, old, new):
    """Against the plain sum over a fine grid that both sizes divide."""
    label = rng.choice(np.array([0, 1, 255], np.uint8), old, p=[0.5, 0.4, 0.1])
    fine = label.repeat(new[0], 0).repeat(new[1], 1).astype(float)  # each old pixel in new x new
    cells = fine.reshape(new[0], old[0], new[1], old[1])
    known, building = (cells != 255).mean((1, 3)), (cells == 1).mean((1, 3))
    expected = np.where(known < 0.5, 255, FULL * building / np.maximum(known, 1e-9))
    assert np.abs(covered(label, new) - expected).max() <= 0.501
    assert (classes(covered(label, new)) == 1).sum() > 0


@pytest.mark.parametrize(("old", "new"), [((12, 10), (6, 5)), ((13, 9), (8, 4)), ((5, 6), (9, 12))])
def test_a_pixel_is_of_the_building_in_its_middle(rng, old, new):
    """Against a fine grid that both sizes divide, four times over, which has a pixel there."""
    number = rng.integers(0, 99, old).astype(np.uint32)
    fine = number.repeat(4 * new[0], 0).repeat(4 * new[1], 1)
    expected = fine[2 * old[0] :: 4 * old[0], 2 * old[1] :: 4 * old[1]]
    np.testing.assert_array_equal(in_the_middle(number, new), expected)


def test_buildings_that_labels_tell_apart(tmp_path):
    """Numbered ones at half the size, on two tiles; the mask between them has no numbers."""
    numbers = np.zeros((1040, 560), np.uint16)
    for index, (row, col) in enumerate(product(range(8, 1000, 80), range(8, 500, 80)), start=1):
        numbers[row : row + 80, col : col + 60] = 40 * index  # they touch
    for stem in ("a1", "c1"):
        write_picture(tmp_path / "images" / f"{stem}.tif", photograph(*numbers.shape), **UTM)
        write_picture(tmp_path / "gt" / f"{stem}.tif", numbers, **UTM)
    write_pair(tmp_path, "b1", 300, 600)
    store = open_store(find_scenes([tmp_path]), pixel_size=0.6, cache=tmp_path / "cache")
    small = numbers[1::2, 1::2] / 40  # the pixel below and right of a middle
    assert [tile.stem for tile in store.tiles] == ["a1", "a1", "b1", "b1", "c1", "c1"]
    for first in (0, 4):
        two = [small[:256, :256], small[256:512, :256]]
        assert (store.numbers[first : first + 2] == two).all()
    assert not store.numbers[[2, 3]].any() and store.numbers[:].dtype == np.uint32
    whole = store.picture(store.tiles[4]).number
    assert isinstance(whole, np.memmap) and (whole == small).all()


def test_half_a_pixel_of_building_is_building():
    coverage = np.array([0, FULL // 2 - 1, FULL // 2, FULL, 255], np.uint8)
    assert classes(coverage).tolist() == [0, 0, 1, 1, 255]


def test_invalid_ground_is_ignored_and_empty_tiles_are_dropped(tmp_path):
    pixels, alpha = photograph(512, 512), np.full((512, 512), 255, np.uint8)
    alpha[:256, :256] = 0
    alpha[:100, 256:] = 0
    write_picture(tmp_path / "a1.png", np.dstack([pixels, alpha]), "PNG")
    write_picture(tmp_path / "a1_gt.png", mask(512, 512), "PNG")
    store = open_store(find_scenes([tmp_path]), cache=tmp_path / "cache")
    assert [(tile.row, tile.col) for tile in store.tiles] == [(0, 256), (256, 0), (256, 256)]
    assert (store.labels[0][:100] == 255).all() and (store.images[0][:100] == 0).all()
    assert (store.labels[0][100:] == (mask(512, 512)[100:256, 256:] == 255)).all()
    write_picture(tmp_path / "a1.png", np.dstack([pixels, alpha * 0]), "PNG")
    with pytest.raises(InputError, match="valid"):
        open_store(find_scenes([tmp_path]), cache=tmp_path / "cache")


@pytest.mark.parametrize("pixel_size", [0.3, 0.6])
def test_a_scene_smaller_than_a_tile_is_one_whose_rest_is_ignored(tmp_path, pixel_size):
    write_pair(tmp_path, "a1", 200, 240, **UTM)
    scenes = find_scenes([tmp_path])
    store = open_store(scenes, pixel_size=pixel_size, cache=tmp_path / "cache")
    height, width = round(200 * 0.3 / pixel_size), round(240 * 0.3 / pixel_size)
    assert [(tile.row, tile.col) for tile in store.tiles] == [(0, 0)]
    inside = np.zeros((256, 256), bool)
    inside[:height, :width] = True
    assert (store.labels[0][~inside] == 255).all() and (store.images[0][~inside] == 0).all()
    assert (store.labels[0][inside] != 255).all()
    with open_raster(scenes[0].image) as dataset:
        pixels, _ = read_pixels(dataset, shape=(height, width))
    assert (store.images[0][:height, :width] == pixels).all()


def test_what_cannot_be_cut_is_refused(tmp_path):
    write_pair(tmp_path, "a1", 256, 256, **UTM)
    with pytest.raises(InputError, match=r"a1\.tif has no mask"):
        open_store(find_scenes([tmp_path], labelled=False), cache=tmp_path / "cache")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        open_store(find_scenes([tmp_path]), cache=tmp_path / "file")
    assert not list((tmp_path / "cache").glob("*.part"))


# ---------------------------------------------------------------- the cache


def test_a_store_is_built_once_and_named_by_content(folder, tmp_path, monkeypatch):
    scenes, cache = find_scenes([folder]), tmp_path / "cache"
    first = open_store(scenes, cache=cache)
    before, read = built(cache), []
    digest = tiles.digest
    monkeypatch.setattr(tiles, "digest", lambda path: read.append(path) or digest(path))
    assert open_store(scenes, cache=cache).key == first.key
    assert built(cache) == before and read == []  # neither built nor even read again
    os.utime(scenes[0].image)  # touched, but the same bytes: read, not built
    assert open_store(scenes, cache=cache).key == first.key
    assert built(cache) == before and read == [scenes[0].image]
    other = open_store(scenes, Reading(bands=(3, 2, 1)), cache=cache)
    keys = {first.key, other.key, open_store(scenes, pixel_size=0.6, cache=cache).key}
    write_picture(scenes[0].label, 255 - pixels_of(folder, "gt", "austin1"))
    changed = open_store(scenes, cache=cache)
    assert len(keys | {changed.key}) == 4
    assert (changed.labels[0] == 1 - first.labels[0]).all()
    assert (other.images[0] == first.images[0][..., ::-1]).all()


def test_a_sidecar_that_changes_the_picture_changes_the_store(tmp_path):
    image = write_picture(tmp_path / "images" / "a1.png", photograph(256, 256), "PNG")
    write_picture(tmp_path / "gt" / "a1.png", mask(256, 256), "PNG")
    first = open_store(find_scenes([tmp_path]), cache=tmp_path / "cache")
    bands = "".join(
        f'<PAMRasterBand band="{band}"><NoDataValue>0</NoDataValue></PAMRasterBand>'
        for band in (1, 2, 3)
    )
    Path(f"{image}.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    second = open_store(find_scenes([tmp_path]), cache=tmp_path / "cache")
    assert (first.labels[:] != 255).all() and (second.labels[:] == 255).any()


@pytest.mark.parametrize("name", [*tiles.FILES, "digests.json", "checked.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "empty"])
def test_a_damaged_store_is_built_again(folder, tmp_path, name, damage):
    numbers = (np.arange(520, dtype=np.uint16) // 64).repeat(530).reshape(520, 530)
    write_picture(folder / "gt" / "austin2.tif", numbers, **UTM)  # a label that tells apart
    scenes, cache = find_scenes([folder]), tmp_path / "cache"
    store = open_store(scenes, cache=cache)
    images, labels, apart = store.images[:], store.labels[:], store.numbers[:]
    assert apart.any()
    path = cache / store.key / name
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "flip":
        at = len(content) // 2
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        os.utime(path, ns=times)  # as if it had never been touched
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    again = open_store(scenes, cache=cache)
    assert (again.images[:] == images).all() and (again.labels[:] == labels).all()
    assert (again.numbers[:] == apart).all()
    assert again.tiles == store.tiles and again.key == store.key


def test_two_processes_build_at_once(folder, tmp_path):
    command = [sys.executable, "-c", BUILD, str(folder), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["6\n", "6\n"]
    assert len(list((tmp_path / "cache").glob("*/store.json"))) == 1


def test_a_builder_killed_at_work_blocks_nobody(folder, tmp_path):
    slow = BUILD.replace("try:", "import time, segment.data.tiles as t\nt.read_label = lambda *_: "
                         "time.sleep(60)\ntry:")  # fmt: skip
    cache = tmp_path / "cache"
    builder = subprocess.Popen([sys.executable, "-c", slow, str(folder), str(cache)])
    while not list(cache.glob("*.part/*.u8")):
        assert builder.poll() is None
        time.sleep(0.02)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    assert list(cache.glob("*.part"))  # it left its half-built store behind
    assert len(open_store(find_scenes([folder]), cache=cache)) == 6
    assert not list(cache.glob("*.part"))


def test_a_full_disk_is_named_and_leaves_nothing(folder, tmp_path):
    """A limit on file sizes stands for the full disk: writes fail in the same way."""
    cache = tmp_path / "cache"
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (300_000, -1))\n" + BUILD
    done = subprocess.run(
        [sys.executable, "-c", limited, str(folder), str(cache)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith(f"InputError: {cache}")
    assert len(done.stderr.splitlines()) == 1
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_source_that_cannot_be_read_is_not_blamed_on_the_cache(folder, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(tiles, "digest", refuse)
    with pytest.raises(PermissionError, match=str(folder)):
        open_store(find_scenes([folder]), cache=tmp_path / "cache")


def test_an_interrupted_build_leaves_nothing(folder, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiles, "read_buildings", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_store(find_scenes([folder]), cache=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "minicnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Path.home() in default_cache().parents


def test_the_store_tells_what_it_is(folder, tmp_path):
    reading = Reading(bands=(1, 2, 3), value_range=(0.0, 200.0))
    store = open_store(find_scenes([folder]), reading, cache=tmp_path / "cache")
    assert store.reading == reading
    about = json.loads((tmp_path / "cache" / store.key / "store.json").read_text())
    assert len(about["tiles"]) == 6
