"""What minicnn does when it is timed: through the public interface, as a user would."""

from functools import cached_property

import numpy as np

import minicnn as mc
from benchmarks.scene import batches, scene_side
from minicnn.kernels import cpu
from minicnn.kernels.cpu import conv_block, toom_cook_2d, toom_cook_rows
from segment.model import load_model
from segment.predict.blending import WINDOW
from segment.predict.command import main as predict
from segment.unet import UNet


class Net:
    def __init__(self, batch: int, tile: int) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.random((batch, tile, tile, 3), np.float32)
        self.labels = (rng.random((batch, tile, tile, 1)) > 0.8).astype(np.float32)

    @cached_property
    def net(self) -> UNet:
        return UNet()

    @cached_property
    def optimizer(self) -> mc.optim.Adam:
        return mc.optim.Adam(self.net, lr=1e-3)

    @cached_property
    def model(self) -> mc.Layer:
        """As one that is loaded from a file."""
        return UNet().freeze()

    def train(self) -> None:
        logits = self.net.forward(self.x, training=True)
        _, dlogits = mc.losses.bce_with_logits(logits, self.labels)
        self.net.backward(dlogits)
        self.optimizer.step()

    def predict(self) -> None:
        self.model.predict(self.x)


class Block:
    """One convolution, batch norm and ReLU; or, of kind "up", one transposed convolution.

    how: "rule", as the library chooses; or "windows", "tiles", "readable" whatever it would.
    """

    def __init__(
        self, kind: str, batch: int, size: int, C: int, skip: int, F: int, how: str = "rule"
    ) -> None:
        rng = np.random.default_rng(0)

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32)

        self.x = cpu.lift(normal(batch, size, size, C))
        self.skip = cpu.lift(normal(batch, size, size, skip)) if skip else None
        self.dy = normal(batch, size, size, F)
        self.layer: mc.Layer = mc.ConvBlock(C, F, 4, skip, rng=rng)
        if kind == "up":
            self.layer = mc.ConvTranspose2d(C, F, 4, 2, 1, rng=rng)
            self.dy = normal(batch, 2 * size, 2 * size, F)
        self.args = () if self.skip is None else (self.skip,)
        _force(how)

    def train(self) -> None:
        if isinstance(self.layer, mc.ConvBlock):
            self.layer.forward(self.x, True, *self.args)
            self.layer.backward_both(self.dy)
        else:
            self.layer.forward(self.x, True)
            self.layer.backward(self.dy)

    def forward(self) -> None:
        self.layer.forward(self.x, True, *self.args)

    def weights(self) -> None:
        """A training step that asks for no gradient of the inputs."""
        assert isinstance(self.layer, mc.ConvBlock)
        self.forward()
        self.layer.backward_both(self.dy, need_dx=False)

    def predict(self) -> None:
        self.layer.predict(self.x, *self.args)


def _force(how: str) -> None:
    """Make this process take one path for every shape."""
    if how == "readable":
        conv_block.fits = lambda *_: False
    elif how != "rule":
        method = {"windows": toom_cook_rows.Windows, "tiles": toom_cook_2d.Tiles}[how]
        conv_block.method = lambda K, inputs, F, W, backward: method(K, inputs, [F], W)


class Scene:
    """`segment.predict` of a whole scene, as the command does it."""

    def __init__(self, scene: str, out: str) -> None:
        self.arguments = [scene, "--out", out]
        self.model = load_model(None)
        side = scene_side(scene, self.model.info.pixel_size)
        self.batches = batches(side, self.model.net.multiple)

    def scene(self) -> None:
        predict(self.arguments)

    def network(self) -> None:
        for count in self.batches:
            self.model.predict(np.full((count, WINDOW, WINDOW, 3), 127, np.uint8))
