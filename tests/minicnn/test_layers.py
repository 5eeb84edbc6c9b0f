"""Layers: each one's gradients, its memory, its two modes, and blocks against their parts."""

import numpy as np
import pytest

import minicnn as mc
from minicnn.gradcheck import check_layer
from minicnn.layers import update_running
from minicnn.ops import Statistics, same_pad

LOPSIDED = ((0, 2), (1, 0))
LAYERS = {
    "conv": lambda rng: mc.Conv2d(3, 4, 3, stride=2, pad=LOPSIDED, rng=rng),
    "transposed": lambda rng: mc.ConvTranspose2d(3, 4, 4, crop=((1, 1), (0, 1)), rng=rng),
    "norm": lambda rng: mc.BatchNorm2d(3),
    "relu": lambda rng: mc.ReLU(),
    "pool": lambda rng: mc.MaxPool2d(2),
    "block": lambda rng: mc.ConvBlock(3, 4, 4, rng=rng),
    "row": lambda rng: mc.Sequential(
        mc.Conv2d(3, 4, 3, rng=rng), mc.BatchNorm2d(4), mc.ReLU(), mc.MaxPool2d(3)
    ),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def draw(name, rng, dtype=np.float64):
    """A layer whose parameters and statistics are all random, and an image for it."""
    layer = LAYERS[name](rng).astype(dtype)
    for array in mc.checkpoint.net_arrays(layer).values():
        array[...] = rng.uniform(0.2, 1.2, array.shape)
    return layer, rng.standard_normal((2, 7, 6, 3)).astype(dtype)


@every_layer
@pytest.mark.parametrize("training", [True, False])
def test_gradients_along_a_random_direction(rng, name, training):
    layer, x = draw(name, rng)
    check_layer(layer, x, rng=rng, training=training)


@every_layer
def test_a_forward_pass_serves_one_backward_pass(rng, name):
    layer, x = draw(name, rng)
    y = layer.forward(x, training=True)
    layer.backward(np.ones_like(y))
    with pytest.raises(RuntimeError, match="needs a forward pass of its own first"):
        layer.backward(np.ones_like(y))


@every_layer
def test_backward_before_forward_raises(rng, name):
    layer, x = draw(name, rng)
    y = layer.predict(x)  # which keeps nothing
    with pytest.raises(RuntimeError, match="needs a forward pass of its own first"):
        layer.backward(y)


@every_layer
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predict_is_forward_in_inference(rng, name, dtype):
    layer, x = draw(name, rng, dtype)
    before = {key: b.copy() for key, b in layer.buffers().items()}
    y = layer.predict(x)
    assert y.dtype == dtype
    assert y.shape == layer.output_shape(x.shape)
    np.testing.assert_allclose(y, layer.forward(x), rtol=1e-5, atol=1e-5)
    for key, buffer in layer.buffers().items():
        np.testing.assert_array_equal(buffer, before[key])


@every_layer
def test_gradients_bear_the_names_of_the_parameters(rng, name):
    layer, x = draw(name, rng)
    layer.backward(layer.forward(x, training=True))
    shapes = {key: p.shape for key, p in layer.parameters().items()}
    assert {key: g.shape for key, g in layer.gradients().items()} == shapes


@every_layer
def test_moving_keeps_values_and_converts_all(rng, name):
    layer, _ = draw(name, rng)
    before = {key: a.copy() for key, a in mc.checkpoint.net_arrays(layer).items()}
    assert layer.to("cpu") is layer
    layer.astype(np.float32)
    for key, array in mc.checkpoint.net_arrays(layer).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, before[key].astype(np.float32))


def test_on_another_device(xp, rng):
    """The same layer, the same numbers; the host's copy comes back as NumPy's."""
    layer, x = draw("row", rng)
    expected = layer.predict(x)
    device = "cpu" if xp is np else "gpu"
    layer.to(device)
    y = layer.predict(mc.to_device(x, device))
    assert mc.array_module(y) is xp
    np.testing.assert_allclose(mc.to_host(y), expected, atol=1e-9)


# ---------------------------------------------------------------------------- batch norm's modes


@pytest.mark.parametrize("name", ["norm", "block"])
def test_running_statistics_move_a_tenth_of_the_way(rng, name):
    layer, x = draw(name, rng)
    mean, var = (layer.state[key].copy() for key in ("mean", "var"))
    z = x
    if name == "block":
        z, _ = mc.ops.conv2d(x, layer.params["w"], layer.params["b"], 1, same_pad(4))
    layer.forward(x, training=True)
    np.testing.assert_allclose(layer.state["mean"], 0.9 * mean + 0.1 * z.mean((0, 1, 2)))
    np.testing.assert_allclose(layer.state["var"], 0.9 * var + 0.1 * z.var((0, 1, 2), ddof=1))
    assert layer.buffers().keys() == {"mean", "var"}


def test_one_pixel_has_no_variance():
    state = {"mean": np.zeros(1), "var": np.ones(1)}
    update_running(state, Statistics(np.array([5.0]), np.array([0.0])), pixels=1)
    np.testing.assert_allclose([state["mean"], state["var"]], [[0.5], [0.9]])


def test_inference_does_not_depend_on_the_batch(rng):
    layer, x = draw("block", rng)
    together = layer.predict(x)
    apart = np.concatenate([layer.predict(image[None]) for image in x])
    np.testing.assert_allclose(together, apart, atol=1e-12)
    assert np.abs(layer.forward(x, training=True) - together).max() > 0.1


# ---------------------------------------------------------------------------- blocks


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("skip", [0, 2])
def test_block_equals_the_plain_layers(rng, skip, training):
    block = mc.ConvBlock(3, 4, 4, skip, rng=rng).astype(np.float64)
    for array in mc.checkpoint.net_arrays(block).values():
        array[...] = rng.uniform(-1, 1, array.shape) + (array == 1)
    conv, norm = mc.Conv2d(3 + skip, 4, 4, pad=same_pad(4), rng=rng), mc.BatchNorm2d(4)
    plain = mc.Sequential(conv, norm, mc.ReLU())
    conv.params = {key: block.params[key].copy() for key in ("w", "b")}
    norm.params = {key: block.params[key].copy() for key in ("gamma", "beta")}
    norm.state = {key: s.copy() for key, s in block.state.items()}
    x, second = rng.standard_normal((2, 5, 6, 3)), rng.standard_normal((2, 5, 6, skip))

    y = block.forward(x, training, second if skip else None)
    joined = np.concatenate((x, second), 3)
    np.testing.assert_allclose(y, plain.forward(joined, training), atol=1e-10)
    dy = rng.standard_normal(y.shape)
    dx, dskip = block.backward_both(dy)
    dboth = plain.backward(dy)
    np.testing.assert_allclose(dx, dboth[..., :3], atol=1e-10)
    if skip:
        np.testing.assert_allclose(dskip, dboth[..., 3:], atol=1e-10)
    else:
        assert dskip is None
    for key in ("w", "b"):
        np.testing.assert_allclose(block.grads[key], conv.grads[key], atol=1e-10)
    for key in ("gamma", "beta"):
        np.testing.assert_allclose(block.grads[key], norm.grads[key], atol=1e-10)
    for key in ("mean", "var"):
        np.testing.assert_allclose(block.state[key], norm.state[key], atol=1e-12)


def test_block_without_dx(rng):
    layer, x = draw("block", rng)
    y = layer.forward(x, training=True)
    assert layer.backward_both(y, need_dx=False) == (None, None)
    assert layer.gradients().keys() == layer.parameters().keys()


# ---------------------------------------------------------------------------- rows of layers


def test_a_layer_stands_only_once_in_a_row(rng):
    layer = mc.ReLU()
    with pytest.raises(ValueError, match="only once"):
        mc.Sequential(layer, mc.MaxPool2d(), layer)
    hidden = mc.Sequential(layer, mc.Sequential(layer))
    y = hidden.forward(rng.standard_normal((1, 2, 2, 1)), training=True)
    with pytest.raises(RuntimeError, match="one place"):
        hidden.backward(y)


def test_names_of_a_row(rng):
    layer, _ = draw("row", rng)
    assert list(layer.parameters()) == ["0.w", "0.b", "1.gamma", "1.beta"]
    assert list(layer.buffers()) == ["1.mean", "1.var"]
    nested = mc.Sequential(layer)
    assert list(nested.buffers()) == ["0.1.mean", "0.1.var"]


# ---------------------------------------------------------------------------- first weights


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: mc.Conv2d(64, 128, 3, pad=1, rng=rng),
        lambda rng: mc.ConvTranspose2d(64, 128, 4, stride=2, crop=1, rng=rng),
    ],
)
def test_he_weights_keep_the_signal(rng, make):
    """Values of variance 1, through a ReLU and the layer, have variance 1 again."""
    x = rng.standard_normal((1, 24, 24, 64)).astype(np.float32)
    layer = make(rng)
    y = layer.predict(np.maximum(x, 0))[:, 4:-4, 4:-4]  # the border sees less
    assert np.mean(y**2) == pytest.approx(1, rel=0.1)
    assert all(p.dtype == np.float32 for p in layer.parameters().values())
