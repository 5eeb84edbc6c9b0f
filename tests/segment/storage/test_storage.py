"""Paths in a bucket behave as paths do, on a stand-in and on a real server, and under faults."""

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from buckets import KEYS, client, refusal
from pictures import UTM, photograph, write_pair, write_picture

from segment.data.rasters import open_raster
from segment.data.reading import read_pixels
from segment.data.scenes import find_scenes
from segment.errors import InputError
from segment.run_folder import Run
from segment.storage import paths, s3
from segment.storage.paths import join, local, part, to_path, writing
from segment.storage.s3 import ABSENT, Changed, Missing, S3Path

ROOT = Path(__file__).parents[3]
MEGABYTE = 1 << 20


def put_folder(folder, home):
    """Put a folder's files into a bucket; returns the path of the whole."""
    for file in folder.rglob("*"):
        if file.is_file():
            s3.S3Path(home.bucket, file.relative_to(folder.parent).as_posix()).upload(file)
    return home / folder.name


# ---------------------------------------------------------------- as a Path


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("s3://b/a/c.tif", "s3://b/a/c.tif"),
        (Path("s3://b/a/c.tif"), "s3://b/a/c.tif"),  # pathlib makes s3:/b/a/c.tif of it
        ("s3://b/a//c/", "s3://b/a/c"),
        ("s3://b", "s3://b/"),
    ],
)
def test_a_uri_is_a_path_in_a_bucket(name, shown):
    assert isinstance(to_path(name), S3Path) and str(to_path(name)) == shown


@pytest.mark.parametrize("name", ["s3://", "s3://b/../c", "s3://b/a/.."])
def test_a_uri_without_a_bucket_or_upwards_is_refused(name):
    with pytest.raises(InputError, match="expected s3://bucket/key"):
        to_path(name)


@pytest.mark.parametrize("name", ["a/b.tif", "/a/b.tif", "s3", "s3x://b/c"])
def test_any_other_name_is_a_path_here(name):
    assert to_path(name) == Path(name)


def test_names_are_those_of_pathlib():
    here, there = Path("/b/dir.d/pic.tar.gz"), to_path("s3://b/dir.d/pic.tar.gz")
    for what in ("name", "stem", "suffix"):
        assert getattr(here, what) == getattr(there, what)
    assert str(there.parent) == "s3://b/dir.d" and str(there.with_name("x")) == "s3://b/dir.d/x"
    assert str(there.parent.parent / "y") == "s3://b/y" and to_path("s3://b").name == "b"


def test_a_name_in_a_table_counts_from_its_folder_unless_it_is_whole():
    assert join(Path("/a"), "b/c") == "/a/b/c" and join(Path("/a"), "/b") == "/b"
    assert join(Path("/a"), "s3://b/c") == "s3://b/c"
    assert join(to_path("s3://b/a"), "c/d") == "s3://b/a/c/d"
    assert join(to_path("s3://b/a"), "/c") == "/c"
    with pytest.raises(InputError):
        to_path(join(to_path("s3://b/a"), "../../c"))


def test_a_folder_holds_what_a_folder_holds(bucket, tmp_path):
    """Against pathlib on the same tree; names that are each other's beginnings among them."""
    tree = tmp_path / "tree"
    names = ("a", "a.b/c", "ab", "images/1.tif", "images-2/1.tif", "x/images/2.tif", "x/y/z/deep")
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    there = put_folder(tree, bucket)

    def both(ask):
        return [sorted(str(p).removeprefix(str(root)) for p in ask(root)) for root in (tree, there)]

    for pattern in ("*", "images*", "*/images*", "*/*/images*", "x/*", "*.tif", "*/*"):
        ours, theirs = both(lambda root, pattern=pattern: root.glob(pattern))
        assert ours == theirs, pattern
    ours, theirs = both(lambda root: root.iterdir())
    assert ours == theirs
    for name in (*names, "images", "x", "x/y", "a.b", "nothing", "imag", "images/1", "x/images"):
        for ask in ("is_file", "is_dir", "exists"):
            path = to_path(f"{there}/{name}")
            assert getattr(path, ask)() == getattr(tree / name, ask)(), (name, ask)
    for child in there.iterdir():
        assert child.is_dir() == (tree / child.name).is_dir() == (not child.is_file())


@pytest.mark.slow
def test_more_than_a_page_is_listed(bucket):
    names = [f"{n:04}" for n in range(1003)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: (bucket / "many" / name).write(b""), names))
    assert [path.name for path in (bucket / "many").iterdir()] == names


def test_some_bytes_of_a_file(bucket, tmp_path):
    data = bytes(range(100))
    (tmp_path / "f").write_bytes(data)
    (bucket / "f").write(data)
    (bucket / "empty").write(b"")
    for start, count in ((0, 8), (90, 30), (-1, 10), (-1, 1000)):
        assert part(bucket / "f", start, count) == part(tmp_path / "f", start, count)
    assert part(bucket / "empty", 0, 8) == b""
    with pytest.raises(Missing, match="f2: no such file"):
        part(bucket / "f2", 0, 8)


# ---------------------------------------------------------------- conditional writes


def test_of_many_first_writers_one_is_first(bucket):
    def write(n):
        try:
            return (bucket / "k").write(str(n).encode(), ABSENT) and n
        except Changed:
            return None

    with ThreadPoolExecutor(8) as pool:
        (winner,) = {n for n in pool.map(write, range(8)) if n is not None}
    assert (bucket / "k").read_bytes() == str(winner).encode()


def test_a_version_is_replaced_and_removed_by_who_knows_it(bucket):
    path = bucket / "k"
    first = path.write(b"1", ABSENT)
    assert path.read() == (b"1", first)
    second = path.write(b"2", first)
    for stale in (lambda: path.write(b"3", first), lambda: path.delete(first)):
        with pytest.raises(Changed, match=f"{path}: another writer"):
            stale()
    assert path.read() == (b"2", second)
    path.delete(second)
    with pytest.raises(Missing):
        path.read()
    with pytest.raises(Changed):
        path.write(b"4", second)
    assert not path.exists()


def test_an_answer_that_got_lost_is_no_conflict(bucket, faults):
    """The retry meets its own write: it must not be taken for another's."""
    faults.script = [("deaf",)]
    version = (bucket / "k").write(b"1", ABSENT)
    assert faults.met == 1 and (bucket / "k").read() == (b"1", version)
    s3._connection.cache_clear()
    faults.script = [("deaf",)]
    version = (bucket / "k").write(b"2", version)
    assert faults.met == 2 and (bucket / "k").read() == (b"2", version)


# ---------------------------------------------------------------- files of any size


@pytest.fixture
def large(tmp_path):
    """A file of several parts."""
    file = tmp_path / "large"
    file.write_bytes(np.random.default_rng(0).bytes(21 * MEGABYTE + 5))
    return file


def test_a_large_file_there_and_back(bucket, large, tmp_path):
    (bucket / "large").upload(large)
    assert (bucket / "large").listed().etag.endswith('-3"')  # parts of 8 MiB
    (bucket / "large").download(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


def test_bytes_that_changed_on_the_way_are_refused(bucket, tmp_path):
    wrong = {"sha256": "0" * 64}
    client(os.environ["AWS_ENDPOINT_URL"]).put_object(
        Bucket=bucket.bucket, Key="k", Body=b"1", Metadata=wrong
    )
    with pytest.raises(InputError, match="k: it arrived damaged"):
        (bucket / "k").download(tmp_path / "k")
    assert list(tmp_path.glob("k*")) == []


def test_an_output_appears_whole_or_not_at_all(bucket, tmp_path):
    for home in (bucket, tmp_path):
        with writing(home / "out.txt") as file:
            file.write_text("whole")
            assert home == tmp_path or not (home / "out.txt").exists()
        assert (home / "out.txt").read_bytes() == b"whole"
    with pytest.raises(ZeroDivisionError), writing(bucket / "half.txt") as file:
        file.write_text("half")
        _ = 1 / 0
    assert not (bucket / "half.txt").exists() and not file.exists()


def test_files_are_fetched_once_a_version(bucket, tmp_path):
    def fetched():
        return local([bucket / "f/a", Path("/x"), bucket / "f/b"], tmp_path)

    (bucket / "f/a").write(b"1")
    (bucket / "f/b").write(b"2")
    a, x, b = fetched()
    assert x == Path("/x") and (a.read_bytes(), b.read_bytes()) == (b"1", b"2")
    stamps = [f.stat().st_mtime_ns for f in (a, b)]
    assert fetched() == [a, x, b] and [f.stat().st_mtime_ns for f in (a, b)] == stamps
    (bucket / "f/a").write(b"3")  # as long as before
    assert fetched()[0].read_bytes() == b"3" and b.stat().st_mtime_ns == stamps[1]
    b.write_bytes(b"x")  # as long, damaged on the disk
    assert fetched()[2].read_bytes() == b"2"
    with pytest.raises(Missing, match="f/c: no such file"):
        local([bucket / "f/a", bucket / "f/c"], tmp_path)


def test_no_key_makes_a_file_outside_the_cache(bucket, tmp_path):
    put = client(os.environ["AWS_ENDPOINT_URL"]).put_object
    try:
        put(Bucket=bucket.bucket, Key="images/../../../../escaped.tif", Body=b"1")
    except Exception:
        pytest.skip("the server refuses such keys itself")
    path = S3Path(bucket.bucket, "images/../../../../escaped.tif", '"etag"')
    with pytest.raises(InputError, match="no file of this name"):
        paths._kept(path, tmp_path / "cache" / "s3")
    assert not list(tmp_path.rglob("escaped*")) and not list(tmp_path.parent.glob("escaped*"))


# ---------------------------------------------------------------- errors


def sentence(action):
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_bucket(bucket):
    missing = S3Path("no-such-bucket-here", "a/b")
    for ask in (missing.exists, missing.read, lambda: local([missing])):
        assert sentence(ask) == "s3://no-such-bucket-here/a/b: there is no such bucket".replace(
            "/a/b:", "/a:" if ask not in (missing.exists, missing.read) else "/a/b:"
        )


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "AccessDenied", "access is denied"),
        (400, "ExpiredToken", "credentials have expired"),
        (403, "InvalidAccessKeyId", "doesn't know this access key"),
        (403, "SignatureDoesNotMatch", "secret key doesn't belong"),
        (400, "AuthorizationHeaderMalformed", "another region"),
        (418, "Teapot", "answers Teapot"),
    ],
)
def test_what_the_server_refuses_is_one_sentence(bucket, faults, tmp_path, status, code, words):
    faults.always = refusal(status, code)
    (tmp_path / "f").write_bytes(b"1")
    assert words in sentence((bucket / "k").exists)
    assert words in sentence(lambda: (bucket / "k").write(b""))
    assert words in sentence(lambda: (bucket / "k").upload(tmp_path / "f"))
    assert f"s3://{bucket.bucket}/k: " in sentence((bucket / "k").read)


def test_no_network_no_credentials_no_profile_no_boto3(bucket, monkeypatch):
    def told(**environment):
        s3._connection.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(s3, "RETRIES", 1)
            for name, value in environment.items():
                patch.setenv(name, value) if value else patch.delenv(name)
            return sentence((bucket / "k").exists)

    assert "no answer from http://127.0.0.1:9" in told(AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert "there are no AWS credentials" in told(
        AWS_ACCESS_KEY_ID="", AWS_EC2_METADATA_DISABLED="true"
    )
    assert "profile (nobody)" in told(AWS_PROFILE="nobody")
    assert "nonsense" in told(AWS_ENDPOINT_URL="nonsense")
    monkeypatch.setitem(sys.modules, "boto3", None)  # as if it were not installed
    assert sentence((bucket / "k").exists) == "s3:// needs boto3: pip install boto3"


def test_the_endpoint_may_be_in_the_profile(bucket, tmp_path):
    """~/.aws/config, as AWS has it: keys, region and endpoint under a name."""
    endpoint = os.environ.pop("AWS_ENDPOINT_URL")
    for name in KEYS:
        os.environ.pop(name)
    (tmp_path / "config").write_text(
        f"[profile mine]\nregion = eu-west-3\nservices = local\n"
        f"aws_access_key_id = {KEYS['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {KEYS['AWS_SECRET_ACCESS_KEY']}\n"
        f"[services local]\ns3 =\n  endpoint_url = {endpoint}\n"
    )
    os.environ.update(AWS_CONFIG_FILE=str(tmp_path / "config"), AWS_PROFILE="mine")
    s3._connection.cache_clear()
    scene = write_picture(tmp_path / "scene.tif", photograph(40, 50), **UTM)
    (bucket / "scene.tif").upload(scene)
    assert s3.gdal_options(bucket / "s")["AWS_REGION"] == "eu-west-3"
    with open_raster(bucket / "scene.tif") as there:
        assert there.shape == (40, 50)


@pytest.mark.parametrize(
    ("endpoint", "host", "https", "in_path"),
    [
        ("", "s3.eu-west-3.amazonaws.com", "YES", False),
        ("http://storage:9000", "storage:9000", "NO", True),
        ("https://s3.example.org", "s3.example.org", "YES", True),
    ],
)
def test_gdal_is_told_the_same_endpoint(monkeypatch, endpoint, host, https, in_path):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    s3._connection.cache_clear()
    monkeypatch.setattr(S3Path, "beside", lambda self: [])
    options = s3.gdal_options(S3Path("b", "k"))
    assert (options["AWS_S3_ENDPOINT"], options["AWS_HTTPS"]) == (host, https)
    assert (options.get("AWS_VIRTUAL_HOSTING") == "FALSE") == in_path
    s3._connection.cache_clear()


# ---------------------------------------------------------------- scenes


READ = """
import hashlib, sys
from segment.data.rasters import Window, open_raster
from segment.data.reading import read_pixels
side, corners = int(sys.argv[2]), [map(int, corner.split(",")) for corner in sys.argv[3:]]
with open_raster(sys.argv[1]) as dataset:
    for row, col in corners:
        pixels, valid = read_pixels(dataset, window=Window(col, row, side, side))
        print(hashlib.sha256(pixels.tobytes() + valid.tobytes()).hexdigest())
"""


def read_elsewhere(path, side, *corners):
    """Windows of a scene, read in another process: what it printed of each, its errors."""
    command = [sys.executable, "-c", READ, path, side, *(f"{row},{col}" for row, col in corners)]
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    return done.stdout.splitlines(), done.stderr


def test_a_remote_scene_is_read_in_windows(bucket, faults, tmp_path):
    """Of 27 MB a window takes what it needs; and its pixels are those of the file here."""
    form = {"tiled": True, "blockxsize": 256, "blockysize": 256, **UTM}
    scene = write_picture(tmp_path / "scene.tif", photograph(3000, 3000), **form)
    (bucket / "scene.tif").upload(scene)
    faults.bytes_down = 0
    corners = ((0, 0), (1500, 700), (2744, 2744))
    there, _ = read_elsewhere(bucket / "scene.tif", 256, *corners)
    assert there == read_elsewhere(scene, 256, *corners)[0] and len(there) == 3
    assert 0 < faults.bytes_down < scene.stat().st_size / 4


def test_a_scene_that_was_replaced_is_read_anew(bucket, tmp_path):
    for seed in (1, 2):
        pixels = photograph(64, 64, seed)
        (bucket / "s.tif").upload(write_picture(tmp_path / f"{seed}.tif", pixels, **UTM))
        with open_raster(bucket / "s.tif") as dataset:
            assert np.array_equal(read_pixels(dataset)[0], pixels)


def test_what_is_no_picture_is_refused_as_it_is_here(bucket, tmp_path):
    write_picture(tmp_path / "p.png", photograph(64, 64), "PNG")
    files = {"text.tif": b"no picture", "cut.png": (tmp_path / "p.png").read_bytes()[:500]}
    files |= {"empty.tif": b"", "cut.tif": b"II*\0" + bytes(30)}
    for name, data in files.items():
        (bucket / name).write(data)
        (tmp_path / name).write_bytes(data)
        told = []
        for home in (bucket, tmp_path):
            with pytest.raises(InputError) as caught, open_raster(home / name):
                pass
            text = str(caught.value).removeprefix(str(home)).lstrip("/")
            told.append(text.replace(", or the connection breaks", ""))
        assert told[0] == told[1]


@pytest.fixture
def three_layouts(tmp_path):
    """INRIA's folders, a flat folder, a table; with a mask and a place beside the pictures."""
    folder = tmp_path / "sets"
    for stem in ("austin1", "austin2", "vienna1"):
        write_pair(folder / "inria/train", stem, 256, 256, **UTM)
    flat = write_picture(folder / "flat/bingham4.tif", photograph(256, 256), **UTM)
    write_picture(folder / "flat/bingham4_gt.tif", photograph(256, 256)[..., 0] * 0, **UTM)
    write_picture(folder / "flat/bingham4.tif.msk", photograph(256, 256)[..., 0] | 255, **UTM)
    (folder / "table.csv").write_text(
        "image,mask,city\ninria/train/images/austin1.tif,inria/train/gt/austin1.tif,north\n"
    )
    assert flat.exists()
    return folder


def test_the_same_scenes_are_found(bucket, three_layouts):
    there = put_folder(three_layouts, bucket)
    for name in ("inria", "inria/train", "inria/train/images", "flat", "table.csv"):
        for labelled in (True, False):
            ours, theirs = (
                find_scenes([f"{home}/{name}"], labelled) for home in (there, three_layouts)
            )
            for a, b in zip(ours, theirs, strict=True):
                assert (a.stem, a.scene, a.city, a.pixel_size) == (
                    b.stem,
                    b.scene,
                    b.city,
                    b.pixel_size,
                )
                assert isinstance(a.image, Path) == labelled  # fetched, or left where it is
                if labelled:
                    assert a.image.read_bytes() == b.image.read_bytes()
                    assert a.label.read_bytes() == b.label.read_bytes()
    (flat,) = find_scenes([f"{there}/flat"])
    assert flat.image.with_name("bingham4.tif.msk").exists()


def test_a_table_here_may_name_pictures_there(bucket, three_layouts, tmp_path):
    there = put_folder(three_layouts, bucket) / "inria/train"
    table = tmp_path / "t.csv"
    table.write_text(f"image,mask\n{there}/images/austin1.tif,{there}/gt/austin1.tif\n")
    (scene,) = find_scenes([table])
    assert scene.city == "austin" and scene.label.is_file()


# ---------------------------------------------------------------- a run's folder


def test_a_run_is_mirrored_in_order_and_fetched_back(bucket):
    ours = Run(bucket / "run")
    for file in (ours.metrics, ours.last, ours.best, ours.config):
        file.write_text(file.name)
    ours.mirror()
    names = {path.name for path in (bucket / "run").iterdir()}
    assert names == {"metrics.json", "last.safetensors", "best.safetensors", "config.json"}
    ours.mirror()  # nothing has changed
    ours.last.write_text("more")
    ours.mirror()
    back = Run(f"s3://{bucket.bucket}/run")
    back.fetch()
    assert back.last.read_text() == "more" and back.folder != ours.folder
    back.last.write_text("other")
    back.mirror()
    ours.last.write_text("late")
    assert "does another process write this run?" in sentence(ours.mirror)
    assert (bucket / "run/last.safetensors").read_bytes() == b"other"


def test_best_is_there_before_last_that_relies_on_it(bucket, monkeypatch):
    written = []
    monkeypatch.setattr(S3Path, "write", lambda self, data, replaces: written.append(self.name))
    ours = Run(bucket / "run")
    for file in (ours.metrics, ours.last, ours.best, ours.history, ours.config, ours.split):
        file.write_text(file.name)
    ours.mirror()
    order = ["config.json", "split.json", "best.safetensors", "last.safetensors", "history.csv"]
    assert written == [*order, "metrics.json"]


def test_a_patient_mirror_tells_and_tries_again(bucket, faults, caplog):
    ours = Run(bucket / "run")
    ours.last.write_text("1")
    faults.always = refusal(400, "ExpiredToken")
    with caplog.at_level(logging.WARNING):
        ours.mirror(patient=True)
    assert "credentials have expired" in caplog.text and str(ours.folder) in caplog.text
    assert f"the run is kept in {ours.folder}" in sentence(ours.mirror)
    faults.always = None
    ours.mirror()
    assert (bucket / "run/last.safetensors").read_bytes() == b"1"
    folder = ours.folder
    del ours
    assert folder.exists()  # it was said to be kept
    again = Run(bucket / "run")
    folder = again.folder
    del again
    assert not folder.exists()


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("cut", [1, 200_000, 5 * MEGABYTE])
def test_an_upload_whose_connections_break_arrives(bucket, faults, large, cut):
    faults.script = [("up", cut), ("up", cut), None, ("up", cut)]
    (bucket / "large").upload(large)
    assert faults.met
    assert (bucket / "large").read_bytes() == large.read_bytes()


@pytest.mark.parametrize("cut", [0, 200_000, 5 * MEGABYTE])
def test_a_download_whose_connections_break_arrives(bucket, faults, large, tmp_path, cut):
    (bucket / "large").upload(large)
    s3._connection.cache_clear()
    faults.script = [None, *[("down", cut)] * 3]
    (bucket / "large").download(tmp_path / "back")
    assert faults.met and (tmp_path / "back").read_bytes() == large.read_bytes()


@pytest.mark.parametrize("cut", [15, 60])
def test_an_answer_cut_in_its_head_is_no_answer(bucket, faults, tmp_path, cut):
    """A full folder is not taken for an empty one, nor a file for a shorter one."""

    def broken(ask, cut=cut):
        faults.cut()
        faults.script, faults.met = [("down", cut)] * 2, 0
        answer = ask()
        assert faults.met == 2
        return answer

    file = bucket / "a/k"
    version = broken(lambda: file.write(b"1" * 1000, ABSENT), 60)  # beyond its 100 Continue
    assert broken(lambda: list((bucket / "a").iterdir())) == [S3Path(bucket.bucket, "a/k")]
    assert broken((bucket / "a").is_dir) and broken(file.is_file)
    assert broken(file.read) == (b"1" * 1000, version)
    assert broken(lambda: part(file, 10, 20)) == b"1" * 20
    broken(lambda: file.download(tmp_path / "k"))
    assert (tmp_path / "k").read_bytes() == b"1" * 1000


def test_a_busy_server_is_asked_again(bucket, faults, large, tmp_path):
    busy = refusal(503, "SlowDown")
    faults.script = [busy] * 3
    (bucket / "large").upload(large)
    faults.script = [busy] * 3
    s3._connection.cache_clear()
    (bucket / "large").download(tmp_path / "back")
    assert faults.met >= 4 and (tmp_path / "back").read_bytes() == large.read_bytes()


@pytest.mark.parametrize("fault", [("up", MEGABYTE), refusal(503, "SlowDown")])
def test_what_never_gets_through_leaves_nothing(bucket, faults, large, monkeypatch, fault):
    """No object, no part of one, and the version before is still there."""
    monkeypatch.setattr(s3, "RETRIES", 2)
    s3._connection.cache_clear()
    (bucket / "large").write(b"before")
    s3._connection.cache_clear()
    faults.always = fault
    assert str(bucket / "large") in sentence(lambda: (bucket / "large").upload(large))
    faults.always = None
    assert (bucket / "large").read_bytes() == b"before"


def test_expired_in_the_middle_of_an_upload(bucket, faults, large):
    """The first request gets through, all others meet expired credentials."""
    (bucket / "large").write(b"before")
    s3._connection.cache_clear()
    faults.script = [None] + [refusal(400, "ExpiredToken")] * 40
    assert "credentials have expired" in sentence(lambda: (bucket / "large").upload(large))
    faults.script = []
    assert (bucket / "large").read_bytes() == b"before"


@pytest.mark.parametrize("fault", [refusal(503, "SlowDown"), ("down", 2000), ("down", 300_000)])
def test_a_scene_is_read_through_a_bad_network(bucket, faults, tmp_path, fault):
    scene = write_picture(tmp_path / "s.tif", photograph(700, 700), **UTM)
    (bucket / "s.tif").upload(scene)
    faults.script = [fault] * 4
    there, errors = read_elsewhere(bucket / "s.tif", 700, (0, 0))
    assert there == read_elsewhere(scene, 700, (0, 0))[0] and len(there) == 1, errors
    assert faults.met == 4


def test_a_scene_that_cannot_be_read_on_is_one_sentence(bucket, faults, tmp_path):
    scene = write_picture(tmp_path / "s.tif", photograph(2000, 2000), **UTM)
    (bucket / "s.tif").upload(scene)
    s3._connection.cache_clear()
    faults.script = [None] + [("down", 300_000)] * 1000
    there, errors = read_elsewhere(bucket / "s.tif", 2000, (0, 0))
    last = errors.splitlines()[-1]
    assert there == [] and last.startswith("segment.errors.InputError: ") and "s.tif" in last
