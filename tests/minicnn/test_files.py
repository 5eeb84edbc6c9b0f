"""A file appears whole or not at all."""

import hashlib
import os
import stat
import threading

import pytest

from minicnn.files import atomic_write, digest, stamp


def test_the_file_appears_at_the_end(tmp_path):
    path = tmp_path / "out.csv"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".csv"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_leaves_what_was(tmp_path, error):
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(error), atomic_write(str(path)) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_replaces_the_temporary_file(tmp_path):
    """GDAL deletes and creates anew."""
    path = tmp_path / "out.tif"
    with atomic_write(path) as temporary:
        temporary.unlink()
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_system_errors_name_the_file(tmp_path):
    missing = tmp_path / "no" / "such" / "out.csv"
    with pytest.raises(FileNotFoundError) as caught, atomic_write(missing):
        pass
    assert caught.value.filename == str(missing)
    folder = tmp_path / "folder"
    (folder / "full").mkdir(parents=True)
    with pytest.raises(OSError) as caught, atomic_write(folder):
        pass
    assert caught.value.filename == str(folder)
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "out.csv"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "out.csv")


def test_errors_about_other_files_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "out.csv"):
        (tmp_path / "other.csv").read_text()
    assert caught.value.filename == str(tmp_path / "other.csv")
    with (
        pytest.raises(OSError, match=r"^a driver's own words$"),
        atomic_write(tmp_path / "out.csv"),
    ):
        raise OSError("a driver's own words")


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_it_is_as_readable_as_any_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "out.csv") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.csv").stat().st_mode) == 0o666 & ~mask


def test_writers_at_once_do_not_mix(tmp_path):
    path = tmp_path / "out.csv"
    texts = [str(i) * 10_000 for i in range(8)]

    def write(text):
        with atomic_write(path) as temporary:
            temporary.write_text(text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [0, 7, (1 << 20) + 3])
def test_a_digest_is_that_of_all_bytes(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_stamp_changes_with_the_bytes_even_if_the_times_are_put_back(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    before, times = stamp(path), path.stat()
    assert stamp(path) == before
    path.write_bytes(b"new")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert stamp(path) != before
