"""Checkpoints come back bit for bit, or are refused with a sentence that names the file."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest
from safetensors.numpy import save_file

import minicnn as mc
from minicnn import checkpoint
from minicnn.checkpoint import CheckpointError

ABOUT = {"name": "Gebäude", "threshold": 0.25, "bands": [1, 2, 3], "nested": {"b": None, "a": 1}}


@pytest.fixture
def arrays(rng):
    return {
        "w": rng.standard_normal((2, 2, 1, 3)).astype(np.float32),
        "b": np.array([np.nan, np.inf, -0.0]),
        "steps": np.array(7, np.int64),
        "strided": rng.standard_normal((4, 6))[::2, ::3],
        "empty": np.zeros((0, 3), np.float32),
    }


@pytest.fixture
def file(tmp_path, arrays):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, arrays, ABOUT)
    return path


def refuses(path, match="checkpoint"):
    """`load` raises, in one line that starts with the file's name."""
    with pytest.raises(CheckpointError, match=match) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def test_a_round_trip_is_bit_for_bit(file, arrays):
    loaded, about = checkpoint.load(file)
    assert about == ABOUT
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes()


def test_equal_content_makes_equal_bytes(file, arrays, tmp_path):
    """Whatever order the names come in."""
    again = tmp_path / "again.safetensors"
    checkpoint.save(again, dict(reversed(arrays.items())), dict(reversed(ABOUT.items())))
    assert again.read_bytes() == file.read_bytes()
    checkpoint.save(again, arrays, {**ABOUT, "threshold": 0.5})
    assert again.read_bytes() != file.read_bytes()


def test_a_file_cut_off_anywhere_is_refused(file):
    whole = file.read_bytes()
    for size in (*range(0, len(whole), 37), len(whole) - 1):
        file.write_bytes(whole[:size])
        refuses(file)
    file.write_bytes(whole + b"\0")
    refuses(file)


@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_a_flipped_byte_anywhere_is_refused(file, flip):
    whole = bytearray(file.read_bytes())
    for index in range(len(whole)):
        whole[index] ^= flip
        file.write_bytes(whole)
        refuses(file)
        whole[index] ^= flip
    file.write_bytes(whole)
    checkpoint.load(file)


def test_a_file_that_may_not_be_read_is_not_called_missing(file, monkeypatch):
    def refuse(*args, **kwargs):
        raise FileNotFoundError  # as safetensors does

    monkeypatch.setattr("safetensors.safe_open", refuse)
    with pytest.raises(CheckpointError, match="it can't be read"):
        checkpoint.load(file)


def test_files_that_are_no_checkpoint_of_ours(tmp_path):
    refuses(tmp_path / "missing.safetensors", "there is no such checkpoint")
    refuses(tmp_path, "expected")  # a folder
    path = tmp_path / "foreign.safetensors"
    for content in (b"", b"not a checkpoint at all", b"\xff" * 100, b"PK\x03\x04" + b"\0" * 60):
        path.write_bytes(content)
        refuses(path, "expected")
    weights = {"w": np.ones(3, np.float32)}
    save_file(weights, path)
    refuses(path, "expected a checkpoint that minicnn wrote")
    save_file(weights, path, metadata={"format": "pt"})
    refuses(path, "expected a checkpoint that minicnn wrote")


@pytest.mark.parametrize(
    "envelope", ["", "7", "[]", "null", "{}", '{"about": 1, "sha256": "0"}', '{"about": "{}"}']
)
def test_forged_metadata_is_refused(tmp_path, envelope):
    path = tmp_path / "forged.safetensors"
    save_file({"w": np.ones(3, np.float32)}, path, metadata={"minicnn": envelope})
    refuses(path)


def test_other_tools_read_our_files(file, arrays):
    """Plain safetensors: what is inside needs none of our code."""
    safetensors = pytest.importorskip("safetensors.numpy")
    assert safetensors.load_file(file).keys() == arrays.keys()


@contextmanager
def little_space(size):
    """No file may grow above `size` bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_old_file(file, tmp_path):
    before = file.read_bytes()
    with little_space(1000), pytest.raises(OSError) as caught:
        checkpoint.save(file, {"w": np.zeros(5000)}, {})
    assert caught.value.filename == str(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


# ---------------------------------------------------------------------------- nets


def net(F=4, seed=0):
    rng = np.random.default_rng(seed)
    return mc.Sequential(mc.Conv2d(3, F, 3, rng=rng), mc.BatchNorm2d(F))


def test_a_net_comes_back(tmp_path, rng):
    path = tmp_path / "net.safetensors"
    one, other = net(), net(seed=1)
    one.forward(rng.standard_normal((1, 5, 5, 3)).astype(np.float32), training=True)
    checkpoint.save(path, checkpoint.net_arrays(one), {})
    checkpoint.load_net(other, checkpoint.load(path)[0], path)
    for name, array in checkpoint.net_arrays(one).items():
        np.testing.assert_array_equal(array, checkpoint.net_arrays(other)[name])


@pytest.mark.parametrize(
    "make",
    [
        lambda: net(F=5),  # other shapes
        lambda: mc.Sequential(net()),  # other names
        lambda: mc.Sequential(*net().layers, mc.BatchNorm2d(4)),  # more than the file has
        lambda: mc.Sequential(net().layers[0]),  # less
    ],
)
def test_another_architecture_is_refused_whole(make):
    arrays = checkpoint.net_arrays(net())
    other = make()
    before = {name: array.copy() for name, array in checkpoint.net_arrays(other).items()}
    with pytest.raises(CheckpointError, match=r"^a/b\.safetensors: .*another architecture"):
        checkpoint.load_net(other, arrays, "a/b.safetensors")
    for name, array in checkpoint.net_arrays(other).items():
        np.testing.assert_array_equal(array, before[name])


def test_what_json_can_not_say_is_refused_before_writing(tmp_path):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "x.safetensors", {}, {"array": np.zeros(1)})
    assert not list(tmp_path.iterdir())
