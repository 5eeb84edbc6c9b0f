"""Model files: what comes back, and which files are refused."""

import numpy as np
import pytest

from minicnn.checkpoint import CheckpointError, net_arrays, save
from minicnn.losses import sigmoid
from segment.data.reading import Reading
from segment.model import Model, ModelInfo, load_model, normalise, save_model
from segment.unet import UNet


def narrow(**sizes):
    return UNet(widths=(2, 3), **sizes)


def test_a_model_comes_back(tmp_path):
    info = ModelInfo(reading=Reading((3, 2, 1), (0.0, 9.0)), pixel_size=0.3, threshold=0.25)
    net, path = narrow(), tmp_path / "m.safetensors"
    save_model(path, net, info)
    model = load_model(path)
    assert model.net.widths == (2, 3)
    for name in ("reading", "pixel_size", "threshold"):
        assert getattr(model.info, name) == getattr(info, name)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    scaled = ((pixels.astype(float) - 127.5) / 64).astype(np.float32)
    expected = 1 / (1 + np.exp(-net.predict(scaled)[..., 0].astype(float)))
    np.testing.assert_allclose(model.predict(pixels), expected, atol=1e-6)


def test_float16_holds_a_variance_that_is_larger_than_it_goes(tmp_path):
    """float16 ends at 65,504: the convolution is made smaller, which its batch norm undoes."""
    net, path, rng = narrow(), tmp_path / "m.safetensors", np.random.default_rng(0)
    arrays = net_arrays(net)
    arrays["encoder0.1.w"] *= 1000
    arrays["encoder0.1.b"][...] = 300, -200
    arrays["encoder0.1.mean"][...] = 100, -100
    arrays["encoder0.1.var"][...] = 2e6, 70
    pixels = rng.integers(0, 256, (1, 8, 8, 3), np.uint8)
    save_model(path, net, ModelInfo())
    exact = load_model(path).predict(pixels)
    save_model(path, net, ModelInfo(), np.float16)
    np.testing.assert_allclose(load_model(path).predict(pixels), exact, atol=2e-3)
    assert arrays["encoder0.1.var"][0] == 2e6  # the net itself stays as it is


@pytest.mark.parametrize("architecture", ["unet", {"depth": 3}, {"widths": 3}, {"widths": []}, [1]])
def test_a_net_that_is_none_of_ours_is_refused(tmp_path, architecture):
    path = tmp_path / "m.safetensors"
    about = {"model": {"architecture": architecture, "reading": {}}}
    save(path, net_arrays(narrow()), about)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: the model is no U-Net of ours"):
        load_model(path)


def test_the_weights_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save(path, net_arrays(narrow()), {"model": {"architecture": {}, "reading": {}}})
    with pytest.raises(CheckpointError, match=r"m\.safetensors: .*another architecture"):
        load_model(path)


@pytest.mark.parametrize("sizes", [{"in_channels": 5}, {"classes": 2}])
def test_other_channels_and_classes_are_refused(tmp_path, sizes):
    path = tmp_path / "m.safetensors"
    save_model(path, narrow(**sizes), ModelInfo())
    with pytest.raises(
        CheckpointError, match=r"m\.safetensors: .*red, green and blue to one class"
    ):
        load_model(path)


def test_other_scaling_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, narrow(), ModelInfo(scaling=(0.0, 255.0)))
    with pytest.raises(CheckpointError, match=r"m\.safetensors: pixels are scaled"):
        load_model(path)


def test_a_model_at_another_pixel_size_sees_averages_and_answers_at_that_size(rng):
    """A net that passes red on, made for 0.6 m, on pictures of 0.3 m."""
    seen = []

    class Red(UNet):
        def predict(self, x):
            seen.append(x)
            return x[..., :1]

    pixels = rng.integers(0, 256, (2, 32, 96, 3), dtype=np.uint8)
    found = Model(Red(), ModelInfo(pixel_size=0.6)).at(0.3).predict(pixels)
    halves = pixels.reshape(2, 16, 2, 48, 2, 3).mean((2, 4))
    assert seen[0].shape == (2, 16, 48, 3)
    assert np.abs(seen[0] - normalise(np.round(halves).astype(np.uint8))).max() < 0.02
    assert found.shape == (2, 32, 96)
    centres = found.reshape(2, 16, 2, 48, 2).mean((2, 4))  # of bilinear shares: 9, 3, 3 and 1 of 16
    np.testing.assert_allclose(
        centres[:, 1:-1, 1:-1].mean(), sigmoid(seen[0][..., 0]).mean(), atol=0.02
    )


def test_a_model_at_its_own_or_an_unknown_size_is_itself():
    model = Model(UNet(), ModelInfo(pixel_size=0.6))
    assert model.at(0.6) is model and model.at(None) is model and model.at(0.605) is model
    unknown = Model(UNet(), ModelInfo())
    assert unknown.at(0.3) is unknown
