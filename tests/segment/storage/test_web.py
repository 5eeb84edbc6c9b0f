"""Scenes on a web server: a real one on this machine, with and without what a server should do."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from segment.data import rasters
from segment.data.rasters import open_raster
from segment.data.reading import read_pixels
from segment.errors import InputError
from segment.storage.paths import to_source
from tests.segment.pictures import UTM, photograph, write_picture
from tests.segment.storage.web_server import asked, serving

RED = ["--device", "cpu", "--threshold", "0.5"]


@pytest.fixture
def folder(tmp_path):
    """A scene of 4 MB in blocks of 128 pixels."""
    pixels = photograph(1100, 1300)
    blocks = {"tiled": True, "blockxsize": 128, "blockysize": 128}
    write_picture(tmp_path / "web/town 1.tif", pixels, **UTM, **blocks)
    return tmp_path / "web"


def read(address):
    with open_raster(address, own=True) as dataset:
        return read_pixels(dataset)[0]


@pytest.mark.parametrize("query", ["", "?signature=a%2Fb&x=.tif"])
def test_a_scene_is_read_where_it_lies(folder, tmp_path, query):
    with serving(folder, tmp_path / "log") as address:
        name = f"{address}/town%201.tif{query}"
        np.testing.assert_array_equal(read(name), photograph(1100, 1300))
        whole = [entry for entry in asked(tmp_path / "log") if entry[::2] == ["GET", None]]
        assert not [entry for entry in whole if "town" in entry[1] and ".tif" in entry[1][-4:]]
        source = to_source(name)
        assert (source.name, source.stem) == ("town 1.tif", "town 1")
        (tmp_path / "log").unlink()
        with open_raster(name, own=True) as dataset:
            dataset.read(window=((0, 100), (0, 100)))
        ranges = [entry[2] for entry in asked(tmp_path / "log") if entry[2]]
        parts = [re.match(r"bytes=(\d+)-(\d+)", wanted).groups() for wanted in ranges]
        assert sum(int(last) - int(first) for first, last in parts) < 200_000  # of 4 MB


def test_a_mask_beside_the_scene_counts(folder, tmp_path):
    """As it does on a disk."""
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(folder / "town 1.tif", "r+") as out,
    ):
        out.write_mask(np.arange(1300) < np.full((1100, 1), 600))
    assert (folder / "town 1.tif.msk").is_file()
    with (
        serving(folder, tmp_path / "log") as address,
        open_raster(f"{address}/town%201.tif", own=True) as dataset,
    ):
        valid = read_pixels(dataset)[1]
    np.testing.assert_array_equal(np.flatnonzero(valid.any(axis=0)), np.arange(600))


@pytest.mark.parametrize(
    "name, how, said",
    [
        ("none.tif", {}, r"none\.tif: the server has no such file \(HTTP 404\)"),
        ("town%201.tif", {"forbids": True}, r"denies access.*\(HTTP 403\)"),
        ("town%201.tif", {"ranges": False}, r"gives whole files only, no parts.*fetch it first"),
        ("virtual.vrt", {}, r"virtual\.vrt is empty or no picture"),
        ("empty.tif", {}, r"empty\.tif is empty or no picture"),
        ("cut.tif", {}, r"cut\.tif is cut off"),
    ],
)
def test_what_a_server_will_not_do_is_said(folder, tmp_path, monkeypatch, name, how, said):
    monkeypatch.setattr(rasters, "_PAUSES", (0.01,))
    (folder / "virtual.vrt").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'/>")
    (folder / "empty.tif").touch()
    (folder / "cut.tif").write_bytes((folder / "town 1.tif").read_bytes()[:5000])
    with serving(folder, tmp_path / "log", **how) as address, pytest.raises(InputError, match=said):
        read(f"{address}/{name}")


def test_a_server_that_is_not_there(folder, tmp_path):
    with serving(folder, tmp_path / "log") as address:
        pass
    with pytest.raises(InputError, match=r"town\.tif: the server can't be reached \(.*refused"):
        read(f"{address}/town.tif")


def test_only_whoever_runs_the_command_names_addresses(folder, tmp_path):
    """The service opens rasters without `own`: no file makes it ask another server."""
    with serving(folder, tmp_path / "log") as address:
        scene = open_raster(f"{address}/town%201.tif")
        with pytest.raises(InputError, match="only a scene to predict may be on"), scene:
            pass
    assert not asked(tmp_path / "log")


def predict(*arguments, **environment):
    command = [sys.executable, "-m", "segment.predict", *map(str, arguments), *RED]
    told = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=told)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_the_command_predicts_over_https(folder, tmp_path):
    """The same mask as of the file; in a CSV of scenes, too; other options take no address."""
    write_picture(folder / "small.tif", photograph(100, 150), **UTM)
    write_picture(folder / "other.tif", photograph(50, 60), **UTM)
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-days", "2"]
    alone = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(["openssl", *made, *alone], cwd=tmp_path, check=True, capture_output=True)
    both = tmp_path / "both.pem"
    both.write_text((tmp_path / "key.pem").read_text() + (tmp_path / "cert.pem").read_text())
    trust = {"SSL_CERT_FILE": str(tmp_path / "cert.pem")}
    with serving(folder, tmp_path / "log", both) as address:
        url = f"{address}/small.tif?token=x"
        (tmp_path / "scenes.csv").write_text(f"image\n{url}\nweb/other.tif\n")
        done = predict(tmp_path / "scenes.csv", "--out", tmp_path / "masks", **trust)
        assert done.returncode == 0, done.stderr
        refused = predict(folder / "small.tif", "--out", f"{address}/mask.tif", **trust)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"error: {address}/mask.tif: only a scene to predict")
    predict(folder / "small.tif", "--out", tmp_path / "mask.tif")
    with (
        open_raster(tmp_path / "masks/small.tif") as ours,
        open_raster(tmp_path / "mask.tif") as theirs,
    ):
        np.testing.assert_array_equal(ours.read(), theirs.read())
        assert ours.transform == theirs.transform and ours.crs == theirs.crs
    assert (tmp_path / "masks/other.tif").is_file()
