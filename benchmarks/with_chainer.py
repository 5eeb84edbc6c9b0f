"""The same U-Net in Chainer 7.8.1 on NumPy: what this project's forerunners were built on."""

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np


class ConvBlock(chainer.Chain):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        with self.init_scope():
            self.conv = L.Convolution2D(inputs, outputs, 4)
            self.norm = L.BatchNormalization(outputs)

    def forward(self, x):
        sides = (0, 0), (0, 0), (1, 2), (1, 2)
        return F.relu(self.norm(self.conv(F.pad(x, sides, "constant"))))


class UNet(chainer.Chain):
    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128, 256)) -> None:
        super().__init__()

        def pair(inputs: int, outputs: int) -> chainer.Sequential:
            return chainer.Sequential(ConvBlock(inputs, outputs), ConvBlock(outputs, outputs))

        upper = widths[:-1]
        with self.init_scope():
            self.encoder = chainer.ChainList(*map(pair, (3, *upper), widths))
            self.ups = chainer.ChainList(*(L.Deconvolution2D(2 * w, w, 4, 2, 1) for w in upper))
            self.decoder = chainer.ChainList(*(pair(2 * w, w) for w in upper))
            self.head = L.Convolution2D(widths[0], 1, 1)

    def forward(self, x):
        skips = []
        for level, pair in enumerate(self.encoder):
            if level > 0:
                skips.append(x)
                x = F.max_pooling_2d(x, 2)
            x = pair(x)
        for up, pair in reversed(list(zip(self.ups, self.decoder, strict=True))):
            x = pair(F.concat([up(x), skips.pop()], 1))
        return self.head(x)


class Net:
    def __init__(self, batch: int, tile: int) -> None:
        rng = np.random.default_rng(0)
        self.net = UNet()
        self.x = rng.random((batch, 3, tile, tile), np.float32)
        self.labels = (rng.random((batch, 1, tile, tile)) > 0.8).astype(np.int32)
        self.optimizer = chainer.optimizers.Adam().setup(self.net)

    def train(self) -> None:
        self.net.cleargrads()
        F.sigmoid_cross_entropy(self.net(self.x), self.labels).backward()
        self.optimizer.update()

    def predict(self) -> None:
        with chainer.using_config("train", False), chainer.no_backprop_mode():
            self.net(self.x)
