"""The U-Net: an encoder that sees ever more context, a decoder that brings back the detail.

Ronneberger, Fischer, Brox 2015, arXiv:1505.04597, with 'same' padding and batch normalisation.
"""

from collections.abc import Iterator

import numpy as np

from minicnn.backend import Array, kernels_for
from minicnn.layers import Conv2d, ConvBlock, ConvTranspose2d, Layer, MaxPool2d, Shape

HEAD_STD = 0.01  # nearly no opinion at first: every pixel starts at p = 1/2, the loss at log 2


class UNet(Layer):
    """Images (N, H, W, in_channels) to logits (N, H, W, classes); H and W divisible by `multiple`.

    Each level has two blocks on the way down and two on the way up; between levels the image is
    halved by max-pooling and doubled by a transposed convolution. The way up sees, beside what
    comes from below, what the way down saw at its level: the skip. With the defaults the net has
    3,842,241 parameters, 3,839,297 of them trainable.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1,
        widths: tuple[int, ...] = (16, 32, 64, 128, 256),
        kernel: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.in_channels, self.classes = in_channels, classes
        self.widths, self.kernel = tuple(widths), kernel
        rng = np.random.default_rng(seed)  # NumPy's, so that CPU and GPU start from the same net

        def pair(C: int, F: int, skip: int = 0) -> tuple[ConvBlock, ConvBlock]:
            first = ConvBlock(C, F, kernel, skip, rng=rng)
            return first, ConvBlock(F, F, kernel, rng=rng)

        upper = self.widths[:-1]
        self.encoder = [pair(C, F) for C, F in zip((in_channels, *upper), self.widths, strict=True)]
        self.pools = [MaxPool2d(2) for _ in upper]
        crop = (kernel - 1) // 2, kernel - 2 - (kernel - 1) // 2  # doubles H and W exactly
        self.ups = [
            ConvTranspose2d(below, F, kernel, 2, (crop, crop), rng=rng)
            for F, below in zip(upper, self.widths[1:], strict=True)
        ]
        self.decoder = [pair(F, F, skip=F) for F in upper]
        self.head = Conv2d(self.widths[0], classes, 1, rng=rng)
        head = rng.standard_normal(self.head.params["w"].shape) * HEAD_STD
        self.head.params["w"] = head.astype(np.float32)

    @property
    def multiple(self) -> int:
        """What H and W must be divisible by: 2 for every level below the first."""
        return 2 ** len(self.pools)

    def forward(self, x: Array, training: bool = False) -> Array:
        self._check(x)
        x = kernels_for(x).lift(x)
        skips = []
        for level, (first, second) in enumerate(self.encoder):
            if level > 0:
                skips.append(x)
                x = self.pools[level - 1].forward(x, training)
            x = second.forward(first.forward(x, training), training)
        for up, (first, second) in reversed(list(zip(self.ups, self.decoder, strict=True))):
            x = first.forward(up.forward(x, training), training, skips.pop())
            x = second.forward(x, training)
        return self.head.forward(x, training)

    def backward(self, dlogits: Array, need_dx: bool = False) -> Array:
        """The mirror image of `forward`. The images' own gradient only on demand, else None."""
        dx = self.head.backward(dlogits)
        dskips = []
        for up, (first, second) in zip(self.ups, self.decoder, strict=True):
            dx, dskip = first.backward_both(second.backward(dx))
            dskips.append(dskip)
            dx = up.backward(dx)
        for level, (first, second) in reversed(list(enumerate(self.encoder))):
            dx, _ = first.backward_both(second.backward(dx), need_dx=level > 0 or need_dx)
            if level > 0:
                dx = self.pools[level - 1].backward(dx, dskips.pop())
        return dx

    def predict(self, x: Array) -> Array:
        self._check(x)
        x = kernels_for(x).lift(x)
        skips = []
        for level, (first, second) in enumerate(self.encoder):
            if level > 0:
                skips.append(x)
                x = self.pools[level - 1].predict(x)
            x = second.predict(first.predict(x))
        for up, (first, second) in reversed(list(zip(self.ups, self.decoder, strict=True))):
            x = second.predict(first.predict(up.predict(x), skips.pop()))
        return self.head.predict(x)

    def _check(self, x: Array) -> None:
        _, H, W, C = x.shape
        if C != self.in_channels or 0 in (H, W) or H % self.multiple or W % self.multiple:
            raise ValueError(
                f"expected images (N, H, W, {self.in_channels}) with H and W above 0 and divisible "
                f"by {self.multiple}, not {x.shape}"
            )

    def output_shape(self, shape: Shape) -> Shape:
        return *shape[:3], self.classes

    def children(self) -> dict[str, Layer]:
        return {name: layer for name, layer, _ in self.stages((1, self.multiple, self.multiple, 0))}

    def stages(self, shape: Shape) -> Iterator[tuple[str, Layer, Shape]]:
        """Every layer in the order of the forward pass, with its name and its output's shape."""
        for level, blocks in enumerate(self.encoder):
            if level > 0:
                shape = self.pools[level - 1].output_shape(shape)
                yield f"pool{level - 1}", self.pools[level - 1], shape
            for index, block in enumerate(blocks):
                shape = block.output_shape(shape)
                yield f"encoder{level}.{index}", block, shape
        for level in reversed(range(len(self.ups))):
            shape = self.ups[level].output_shape(shape)
            yield f"up{level}", self.ups[level], shape
            for index, block in enumerate(self.decoder[level]):
                shape = block.output_shape(shape)
                yield f"decoder{level}.{index}", block, shape
        yield "head", self.head, self.head.output_shape(shape)
