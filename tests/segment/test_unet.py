"""The U-Net as a whole: its shape, its counts, its gradients, and PyTorch's U-Net beside it."""

import re
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

import minicnn as mc
from minicnn.gradcheck import check_layer
from segment.unet import UNet

REAL = (16, 32, 64, 128, 256)
SMALL = (3, 4, 5)


def images(rng, net, N=2, H=8, W=12, dtype=np.float32):
    return rng.standard_normal((N, H, W, net.in_channels)).astype(dtype)


def settle(net, rng):
    """Move all that starts at 0 or 1: biases, gammas, betas and running statistics."""
    for name, array in mc.checkpoint.net_arrays(net).items():
        if not name.endswith(".w"):
            array[...] = array + rng.uniform(0.1, 0.3, array.shape)
    return net


# ---------------------------------------------------------------------------- what it is made of


def test_the_published_counts():
    net = UNet()
    counts = mc.summary.count(net)
    assert counts == (3_839_297, 2_944)
    assert counts.total == 3_842_241
    kinds = [type(layer) for _, layer in net.walk()]
    assert kinds.count(mc.ConvBlock) == 18  # a convolution and a batch norm each
    assert kinds.count(mc.ConvTranspose2d) == 4
    assert kinds.count(mc.Conv2d) == 1  # the head, not counted
    assert kinds.count(mc.MaxPool2d) == 4
    assert sum(len(layer.state) == 2 for _, layer in net.walk()) == 18


def test_the_count_with_3x3_kernels():
    assert mc.summary.count(UNet(kernel=3)).total == 2_164_593


def test_summary_rows_and_totals():
    net = UNet()
    lines = mc.summary.table(net.stages((1, 256, 256, 3))).splitlines()
    assert lines[-1] == "3,842,241 parameters: 3,839,297 trainable, 2,944 not"
    rows = {name: rest for name, *rest in (re.split("  +", line) for line in lines[2:-2])}
    assert len(rows) == 18 + 4 + 4 + 1
    assert rows["encoder0.0"] == ["ConvBlock", "256 x 256 x 16", "848"]
    assert rows["encoder4.1"] == ["ConvBlock", "16 x 16 x 256", "1,049,856"]
    assert rows["up3"] == ["ConvTranspose2d", "32 x 32 x 128", "524,416"]
    assert rows["pool0"] == ["MaxPool2d", "128 x 128 x 16", "0"]
    assert rows["head"] == ["Conv2d", "256 x 256 x 1", "17"]
    assert sum(int(row[-1].replace(",", "")) for row in rows.values()) == 3_842_241


def test_stages_tell_the_true_shapes(rng):
    """Each layer's output, as it comes by, has the shape that `stages` foretells."""
    net = UNet(widths=SMALL)
    x = images(rng, net)
    seen = {}
    for name, layer, _ in list(net.stages(x.shape)):
        forward = layer.forward

        def record(*arguments, name=name, forward=forward):
            y = forward(*arguments)
            seen[name] = y.shape
            return y

        layer.forward = record
    net.forward(x)
    assert seen == {name: shape for name, _, shape in net.stages(x.shape)}
    assert list(seen) == [name for name, _, _ in net.stages(x.shape)]  # in the order of use


def test_the_same_seed_gives_the_same_net():
    nets = [UNet(widths=SMALL, seed=seed).parameters() for seed in (0, 0, 1)]
    for name in nets[0]:
        np.testing.assert_array_equal(nets[0][name], nets[1][name])
        assert nets[0][name].dtype == np.float32
        assert not name.endswith("w") or (nets[0][name] != nets[2][name]).all()


def test_a_new_net_has_no_opinion(rng):
    """Half of all pixels at p = 1/2: the loss starts at log 2, whatever the labels."""
    net = UNet()
    x = images(rng, net, 1, 32, 32)
    labels = (rng.random((1, 32, 32, 1)) < 0.2).astype(np.float32)
    loss, _ = mc.losses.bce_with_logits(net.forward(x, training=True), labels)
    assert loss == pytest.approx(np.log(2), rel=0.02)


# ---------------------------------------------------------------------------- what it accepts


def test_sizes(rng):
    net = UNet(widths=(2, 3, 4), in_channels=4, classes=2)
    assert net.multiple == 4
    for H, W in ((4, 4), (4, 12), (20, 8)):
        assert net.forward(images(rng, net, 1, H, W)).shape == (1, H, W, 2)
    for H, W in ((6, 8), (8, 2), (7, 7), (0, 4)):
        for run in (net.forward, net.predict):
            with pytest.raises(ValueError, match=r"divisible by 4|does not fit"):
                run(images(rng, net, 1, H, W))
    with pytest.raises(ValueError, match=r"\(N, H, W, 4\)"):
        net.forward(np.zeros((1, 8, 8, 3), np.float32))


def test_other_dtypes_raise():
    net = UNet(widths=(2, 3))
    for dtype in (np.uint8, np.float16, np.float64):
        with pytest.raises(TypeError, match="float32"):
            net.forward(np.zeros((1, 4, 4, 3), dtype))


def test_backward_needs_a_forward(rng):
    net = UNet(widths=SMALL)
    dlogits = np.ones((2, 8, 12, 1), np.float32)
    with pytest.raises(RuntimeError, match="forward pass"):
        net.backward(dlogits)
    net.forward(images(rng, net), training=True)
    net.backward(dlogits)
    with pytest.raises(RuntimeError, match="forward pass"):
        net.backward(dlogits)


def test_a_layer_in_two_places_raises(rng):
    net = UNet(widths=(4, 4))
    net.encoder[0] = (net.encoder[0][0], net.decoder[0][1])
    y = net.forward(images(rng, net), training=True)
    with pytest.raises(RuntimeError, match="one place"):
        net.backward(y)


# ---------------------------------------------------------------------------- inference


@pytest.mark.parametrize("kernel", [3, 4])
def test_predict_is_forward_in_inference(rng, kernel):
    net = settle(UNet(widths=SMALL, kernel=kernel), rng)
    x = images(rng, net)
    before = {name: array.copy() for name, array in mc.checkpoint.net_arrays(net).items()}
    logits = net.predict(x)
    for _, layer in net.walk():
        assert layer.cache is None  # nothing is kept
    np.testing.assert_allclose(logits, net.forward(x), rtol=1e-4, atol=1e-4)
    for image, expected in zip(x, logits, strict=True):  # each image on its own
        np.testing.assert_allclose(net.predict(image[None])[0], expected, rtol=1e-4, atol=1e-4)
    for name, array in mc.checkpoint.net_arrays(net).items():
        np.testing.assert_array_equal(array, before[name])


def test_predict_sees_new_weights(rng):
    """Whatever is folded in advance must not outlive the weights."""
    net = settle(UNet(widths=SMALL), rng)
    x = images(rng, net)
    net.predict(x)
    net.backward(net.forward(x, training=True))
    mc.optim.SGD(net, lr=0.1).step()
    np.testing.assert_allclose(net.predict(x), net.forward(x), rtol=1e-4, atol=1e-4)


def test_predict_from_several_threads(rng):
    net = settle(UNet(widths=(8, 16, 16)), rng)
    batches = [images(rng, net, 1, 32, 32 + 4 * (i % 3)) for i in range(12)]
    expected = [net.predict(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        for logits, alone in zip(pool.map(net.predict, batches), expected, strict=True):
            np.testing.assert_allclose(logits, alone, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kernel", "widths"), [(4, SMALL), (3, SMALL), (4, (3,)), (2, (2, 3))])
def test_gradients_of_the_whole_net(rng, kernel, widths, training):
    """Of the images and of every parameter, along random directions, in float64."""
    net = settle(UNet(widths=widths, kernel=kernel, seed=1), rng).astype(np.float64)
    x = images(rng, net, dtype=np.float64)
    check_layer(net, x, rng=rng, training=training, need_dx=True)


def test_every_parameter_learns(rng):
    """A direction weighs all gradients at once; this asks each for itself."""
    net = settle(UNet(widths=SMALL, seed=1), rng).astype(np.float64)
    x = images(rng, net, dtype=np.float64)
    y = net.forward(x, training=True)
    dy = rng.standard_normal(y.shape)
    assert net.backward(dy) is None  # the images' own gradient only on demand
    parameters, gradients = net.parameters(), net.gradients()
    assert parameters.keys() == gradients.keys()
    for name, p in parameters.items():
        assert gradients[name].shape == p.shape
        flat, index = p.reshape(-1), int(np.abs(gradients[name]).argmax())
        start, step = flat[index], 1e-6
        flat[index] = start + step
        ahead = net.forward(x, training=True)
        flat[index] = start - step
        behind = net.forward(x, training=True)
        flat[index] = start
        numeric = ((ahead - behind) * dy).sum() / (2 * step)
        assert gradients[name].reshape(-1)[index] == pytest.approx(numeric, rel=1e-5, abs=1e-6)
        assert (numeric != 0) or name.endswith(".b"), name


def reach(levels, kernel, pixel):
    """First and last input pixel of an axis that a logit can see: its cone, walked backwards."""
    before, after = (kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2

    def pair_of_convolutions(span):
        return span[0] - 2 * before, span[1] + 2 * after

    def encoder(level, span):
        span = pair_of_convolutions(span)
        return span if level == 0 else encoder(level - 1, (2 * span[0], 2 * span[1] + 1))

    def decoder(level, span):
        if level == levels - 1:
            return encoder(level, span)
        span = pair_of_convolutions(span)
        # below's pixel i paints 2 i - before .. 2 i - before + kernel - 1
        below = -((kernel - 1 - before - span[0]) // 2), (span[1] + before) // 2
        a, b = encoder(level, span), decoder(level + 1, below)
        return min(a[0], b[0]), max(a[1], b[1])

    return decoder(0, (pixel, pixel))


@pytest.mark.parametrize(("levels", "kernel"), [(1, 4), (2, 4), (3, 3), (3, 4)])
def test_receptive_field(rng, levels, kernel):
    """One logit's gradient reaches the cone of pixels that it can see, and not one beyond.

    In float64: the fast float32 kernels compute blocks of pixels together, and their rounding
    leaves 1e-7 where exactly 0 belongs.
    """
    net = settle(UNet(widths=(4,) * levels, kernel=kernel), rng).astype(np.float64)
    size, pixel = 96, 42
    first, last = reach(levels, kernel, pixel)
    assert 0 < first and last < size - 1
    seen = np.zeros((size, size), bool)
    for _ in range(8):  # a pool passes on one pixel of four: several images show all
        y = net.forward(images(rng, net, 1, size, size, np.float64))
        one = np.zeros_like(y)
        one[0, pixel, pixel] = 1
        seen |= (net.backward(one, need_dx=True)[0] != 0).any(2)
    rows, columns = np.nonzero(seen.any(1))[0], np.nonzero(seen.any(0))[0]
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (first, last, first, last)


# ---------------------------------------------------------------------------- PyTorch's


class TorchUNet:
    """The same network in PyTorch, from the same arrays; its tensors are (N, C, H, W)."""

    def __init__(self, torch, net):
        self.torch, self.f, self.net = torch, torch.nn.functional, net
        self.parameters = {
            name: torch.tensor(self.theirs(p), requires_grad=True)
            for name, p in net.parameters().items()
        }
        self.buffers = {name: torch.tensor(b) for name, b in net.buffers().items()}

    @staticmethod
    def theirs(array):
        """Weights (K, K, C, F) become (F, C, K, K), those of a transposed one (C, F, K, K)."""
        return array.transpose(3, 2, 0, 1).copy() if array.ndim == 4 else array

    @staticmethod
    def ours(array):
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array

    def block(self, name, x, training):
        w, b, gamma, beta = (self.parameters[f"{name}.{k}"] for k in ("w", "b", "gamma", "beta"))
        running = self.buffers[f"{name}.mean"], self.buffers[f"{name}.var"]
        K = w.shape[2]
        before, after = (K - 1) // 2, K - 1 - (K - 1) // 2
        z = self.f.conv2d(self.f.pad(x, (before, after, before, after)), w, b)
        return self.f.batch_norm(z, *running, gamma, beta, training, 0.1, 1e-5).relu()

    def pair(self, name, x, training):
        return self.block(f"{name}.1", self.block(f"{name}.0", x, training), training)

    def up(self, level, x):
        w, b = self.parameters[f"up{level}.w"], self.parameters[f"up{level}.b"]
        size, before = 2 * x.shape[2], (w.shape[2] - 1) // 2
        y = self.f.conv_transpose2d(x, w, b, 2)[:, :, before:, before:]
        return y[:, :, :size, : 2 * x.shape[3]]

    def forward(self, x, training):
        skips = []
        for level in range(len(self.net.widths)):
            if level:
                skips.append(x)
                x = self.f.max_pool2d(x, 2)
            x = self.pair(f"encoder{level}", x, training)
        for level in reversed(range(len(self.net.widths) - 1)):
            joined = self.torch.cat((self.up(level, x), skips.pop()), 1)
            x = self.pair(f"decoder{level}", joined, training)
        return self.f.conv2d(x, self.parameters["head.w"], self.parameters["head.b"])


def largest(a):
    return np.abs(a).max()


def compare_with_torch(torch, net, x, training, rng, digits, gradient_digits, size=largest):
    """Logits, loss, running statistics and every gradient, each relative to its scale.

    `size` measures gradients and their errors.
    """
    reference = TorchUNet(torch, net)
    tx = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    expected = reference.forward(tx, training)
    labels = (rng.random((*x.shape[:3], 1)) < 0.4).astype(x.dtype)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        expected, torch.tensor(labels.transpose(0, 3, 1, 2))
    )
    loss.backward()

    logits = net.forward(x, training)
    mine, dlogits = mc.losses.bce_with_logits(logits, labels)
    dx = net.backward(dlogits, need_dx=True)

    def close(name, actual, expected, digits=digits, size=largest):
        error = size(actual - expected) / size(expected)
        assert error < digits, f"{name} is off by {error:.1e} of its scale"

    close("logits", logits, expected.detach().numpy().transpose(0, 2, 3, 1))
    assert mine == pytest.approx(loss.item(), rel=digits)
    close("dx", dx, tx.grad.numpy().transpose(0, 2, 3, 1), gradient_digits, size)
    for name, gradient in net.gradients().items():
        if training and name.endswith(".b") and ("encoder" in name or "decoder" in name):
            assert not gradient.any(), name  # the norm takes the bias out; theirs is rounding
        else:
            expected = TorchUNet.ours(reference.parameters[name].grad.numpy())
            close(name, gradient, expected, gradient_digits, size)
    for name, buffer in net.buffers().items():
        close(name, buffer, reference.buffers[name].numpy())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize(("dtype", "digits"), [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_a_narrow_net_is_pytorchs(torch, rng, kernel, dtype, digits, training):
    net = settle(UNet(widths=SMALL, kernel=kernel, seed=2), rng).astype(dtype)
    x = images(rng, net, 2, 16, 12, dtype)
    compare_with_torch(torch, net, x, training, rng, digits, digits)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("dtype", "digits", "gradient_digits", "size"),
    # Of a million inputs of a ReLU, in float32 a few are so near 0 that rounding decides whether
    # they pass their gradient on: two right answers, far apart in single values, so the norm is
    # compared (up to 3 % apart in five draws). In float64 there is only one answer.
    [(np.float64, 1e-9, 1e-9, largest), (np.float32, 1e-4, 4e-2, np.linalg.norm)],
)
def test_the_real_net_is_pytorchs(torch, rng, dtype, digits, gradient_digits, size, training):
    net = settle(UNet(seed=3), rng).astype(dtype)
    x = images(rng, net, 2, 64, 64, dtype)
    compare_with_torch(torch, net, x, training, rng, digits, gradient_digits, size)


# ---------------------------------------------------------------------------- learning


def test_it_overfits_one_tile(rng):
    """If forward, backward, loss and optimiser agree, one image is learnt by heart."""
    net = UNet(widths=(8, 16), seed=0)
    rows, columns = np.mgrid[:24, :24]
    labels = ((rows // 7 + columns // 9) % 2).astype(np.float32)[None, :, :, None]
    x = labels * 0.5 + rng.standard_normal((1, 24, 24, 3)).astype(np.float32) * 0.3
    optimizer = mc.optim.Adam(net, lr=1e-2)
    losses = []
    for _ in range(60):
        loss, dlogits = mc.losses.bce_with_logits(net.forward(x, training=True), labels)
        net.backward(dlogits)
        optimizer.step()
        losses.append(loss)
    assert all(later < earlier for earlier, later in pairwise(losses[::20]))
    predicted = net.forward(x, training=True) > 0
    known = labels > 0
    assert (predicted & known).sum() / (predicted | known).sum() > 0.99
