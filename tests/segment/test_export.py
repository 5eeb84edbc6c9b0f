"""The exported graph, run by ONNX Runtime, against the network it was made from."""

import json
import sys

import numpy as np
import pytest

from segment import export
from segment.data.reading import Reading
from segment.errors import InputError
from segment.model import Model, ModelInfo, load_model, save_model
from segment.synthetic.draw import draw_scene
from segment.unet import UNet


@pytest.fixture(scope="module")
def session(oracle):
    """`session(file)`: ONNX Runtime with a model."""
    runtime = oracle("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return lambda source: runtime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"]
    )


def lively(net, seed=0):
    """A net as a training leaves it: no scale 1, no mean 0, and an opinion."""
    rng = np.random.default_rng(seed)
    for _, layer in net.walk():
        for name, array in (*layer.params.items(), *layer.state.items()):
            if name in ("gamma", "var"):
                array[...] = rng.uniform(0.5, 2, array.shape)
            elif name != "w":
                array[...] = rng.normal(0, 0.3, array.shape)
    net.head.params["w"] *= 100
    return net


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
@pytest.mark.parametrize("widths", [(3, 4), (3, 5, 4)])
def test_every_shape_of_network_is_repeated(session, kernel, widths, rng):
    model = Model(lively(UNet(widths=widths, kernel=kernel, seed=2)), ModelInfo())
    run = session(export.onnx_model(model).SerializeToString()).run
    for shape in ((1, 16, 16, 3), (3, 24, 40, 3), (2, 40, 8, 3)):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        (found,) = run(None, {"pixels": pixels})
        expected = model.predict(pixels)
        assert found.dtype == np.float32 and found.shape == shape[:3] and expected.std() > 0.05
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_bundled_model_finds_the_same_in_noise_and_in_scenes(tmp_path, session, capsys, rng):
    out = tmp_path / "new" / "model.onnx"
    export.main(["--format", "onnx", "--out", str(out)])
    assert capsys.readouterr().out == f"{out}\n" and list(out.parent.iterdir()) == [out]
    run, model = session(str(out)).run, load_model()
    drawn = np.stack([draw_scene(city, 101, 256)[0] for city in ("corvo", "dornfeld")])
    for pixels in (drawn, rng.integers(0, 256, (1, 96, 160, 3), dtype=np.uint8)):
        (found,) = run(None, {"pixels": pixels})
        np.testing.assert_allclose(found, model.predict(pixels), atol=1e-4)


def test_deepness_finds_the_same_in_its_own_form(tmp_path, session, rng):
    """One input and one output of four axes and square sides, bands first; values from 0 to 1."""
    out = tmp_path / "model.onnx"
    export.main(["--format", "deepness", "--out", str(out)])
    run, model = session(str(out)), load_model()
    (given,), (found,) = run.get_inputs(), run.get_outputs()
    assert given.shape[1:] == [3, 512, 512] and given.type == "tensor(float)"
    assert found.shape[1:] == [1, 512, 512]
    pixels = rng.integers(0, 256, (1, 512, 512, 3), dtype=np.uint8)
    tiles = np.transpose(np.float32(pixels / 255.0), (0, 3, 1, 2))
    (probability,) = run.run(None, {given.name: tiles})
    np.testing.assert_allclose(probability[:, 0], model.predict(pixels), atol=1e-4)
    about = run.get_modelmeta().custom_metadata_map
    told = {name: json.loads(value) for name, value in about.items()}
    assert told["model_type"] == "Segmentor" and told["tile_size"] == 512
    assert told["class_names"] == {"0": "background", "1": "building"}
    assert told["resolution"] == pytest.approx(100 * model.info.pixel_size, abs=0.01)
    assert told["seg_thresh"] == model.info.outline_threshold >= model.info.threshold


def test_the_file_says_what_its_user_must_know(tmp_path, session):
    trained = {"data": ["x"], "split": "city"}
    info = ModelInfo(
        reading=Reading((4, 3, 2), (0.0, 3000.0)), threshold=0.375, pixel_size=0.3, trained=trained
    )
    save_model(tmp_path / "m.safetensors", UNet(widths=(3, 4, 4)), info)
    out = tmp_path / "m.onnx"
    export.main(["--model", str(tmp_path / "m.safetensors"), "--out", str(out)])
    told = session(str(out)).get_modelmeta()
    assert {name: json.loads(value) for name, value in told.custom_metadata_map.items()} == {
        "threshold": 0.375,
        "outline_threshold": 0.375,
        "pixel_size": 0.3,
        "multiple": 4,
        "bands": [4, 3, 2],
        "value_range": [0.0, 3000.0],
        "trained": trained,
    }
    assert told.producer_name == "minicnn" and "8-bit RGB" in told.description
    assert "pixel_size" not in export.metadata(Model(UNet(widths=(3, 4)), ModelInfo()))
    (pixels,), (probability,) = session(str(out)).get_inputs(), session(str(out)).get_outputs()
    assert (pixels.name, pixels.shape, pixels.type) == (
        "pixels", ["N", "H", "W", 3], "tensor(uint8)"
    )  # fmt: skip
    assert (probability.name, probability.shape) == ("probability", ["N", "H", "W"])


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"onnx: pip install onnx"):
        export.main(["--out", str(tmp_path / "m.onnx")])
    assert not list(tmp_path.iterdir())
