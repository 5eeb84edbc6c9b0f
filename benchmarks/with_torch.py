"""The same U-Net in PyTorch, in float32 and the memory layout that suits its CPU kernels best."""

import re

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from rasterio.enums import Resampling
from torch import nn

from benchmarks.scene import batches, scene_side
from minicnn.checkpoint import net_arrays
from segment.model import load_model, normalise
from segment.predict.blending import BATCH, WINDOW, tapers, window_starts
from segment.predict.scene import OVERLAP

LAYOUT = torch.channels_last


class ConvBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 4), nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv(F.pad(x, (1, 2, 1, 2)))))


class UNet(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128, 256)) -> None:
        super().__init__()

        def pair(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(ConvBlock(inputs, outputs), ConvBlock(outputs, outputs))

        upper = widths[:-1]
        self.encoder = nn.ModuleList(map(pair, (3, *upper), widths))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 4, 2, 1) for w in upper)
        self.decoder = nn.ModuleList(pair(2 * w, w) for w in upper)
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level, pair in enumerate(self.encoder):
            if level > 0:
                skips.append(x)
                x = F.max_pool2d(x, 2)
            x = pair(x)
        for up, pair in reversed(list(zip(self.ups, self.decoder, strict=True))):
            x = pair(torch.cat([up(x), skips.pop()], 1))
        return self.head(x)


def name_here(name: str) -> str:
    """What minicnn calls `encoder0.1.gamma` is `encoder.0.1.norm.weight` in the net above."""
    layer, _, array = name.rpartition(".")
    words = {"w": "weight", "b": "bias", "gamma": "norm.weight", "beta": "norm.bias"}
    words |= {"mean": "norm.running_mean", "var": "norm.running_var"}
    for part in ("encoder", "decoder", "up"):
        layer = re.sub(rf"^{part}(\d)", rf"{part}{'s' * (part == 'up')}.\1", layer)
    in_block = layer.startswith(("encoder", "decoder")) and array in "wb"
    return f"{layer}.{'conv.' * in_block}{words[array]}"


def copy_in(net: UNet, arrays: dict[str, np.ndarray]) -> None:
    """Give the net a minicnn U-Net's arrays; weights (K, K, C, F) become (F, C, K, K)."""
    state = net.state_dict()
    for name, array in arrays.items():
        turned = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        state[name_here(name)].copy_(torch.tensor(np.ascontiguousarray(turned)))


def copy_out(net: UNet, arrays: dict[str, np.ndarray]) -> None:
    """Overwrite a minicnn U-Net's arrays with the net's."""
    state = net.state_dict()
    for name, array in arrays.items():
        theirs = state[name_here(name)].numpy()
        array[...] = theirs.transpose(2, 3, 1, 0) if array.ndim == 4 else theirs


class Net:
    def __init__(self, batch: int, tile: int) -> None:
        torch.manual_seed(0)
        self.net = UNet().to(memory_format=LAYOUT)
        self.x = torch.rand(batch, 3, tile, tile).contiguous(memory_format=LAYOUT)
        self.labels = (torch.rand(batch, 1, tile, tile) > 0.8).float()
        self.optimizer = torch.optim.Adam(self.net.parameters(), 1e-3)

    def train(self) -> None:
        self.net.train()
        self.optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(self.net(self.x), self.labels)
        loss.backward()
        self.optimizer.step()
        loss.item()

    def predict(self) -> None:
        self.net.eval()
        with torch.inference_mode():
            self.net(self.x)


class Block:
    """As with_minicnn.Block."""

    def __init__(self, kind: str, batch: int, size: int, C: int, skip: int, outputs: int) -> None:
        def normal(side: int, channels: int) -> torch.Tensor:
            return torch.randn(batch, channels, side, side).contiguous(memory_format=LAYOUT)

        up = kind == "up"
        layer = nn.ConvTranspose2d(C, outputs, 4, 2, 1) if up else ConvBlock(C + skip, outputs)
        self.layer = layer.to(memory_format=LAYOUT)
        self.inputs = [normal(size, c).requires_grad_() for c in (C, skip) if c]
        self.dy = normal(size * (2 if up else 1), outputs)

    def apply(self) -> torch.Tensor:
        return self.layer(torch.cat(self.inputs, 1) if len(self.inputs) > 1 else self.inputs[0])

    def train(self) -> None:
        self.layer.train()
        for array in (*self.inputs, *self.layer.parameters()):
            array.grad = None
        self.apply().backward(self.dy)

    def forward(self) -> None:
        self.layer.train()
        self.apply()

    def weights(self) -> None:
        for array in self.inputs:
            array.requires_grad_(False)
        self.train()
        for array in self.inputs:
            array.requires_grad_()

    def predict(self) -> None:
        self.layer.eval()
        with torch.inference_mode():
            self.apply()


class Scene:
    """A whole scene as a user of PyTorch and rasterio would write it, with minicnn's weights."""

    def __init__(self, scene: str, out: str) -> None:
        self.path, self.out = scene, out
        model = load_model(None)
        self.threshold = model.info.threshold
        self.side = scene_side(scene, model.info.pixel_size)
        self.batches = batches(self.side, model.net.multiple)
        net = UNet()
        with torch.no_grad():
            copy_in(net, net_arrays(model.net))
        example = torch.rand(BATCH, 3, WINDOW, WINDOW).contiguous(memory_format=LAYOUT)
        traced = torch.jit.trace(net.eval().to(memory_format=LAYOUT), example)
        self.net = torch.jit.optimize_for_inference(torch.jit.freeze(traced))

    def probabilities(self, windows: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) bytes to (N, H, W)."""
        with torch.inference_mode():
            x = torch.from_numpy(normalise(windows)).permute(0, 3, 1, 2)
            return torch.sigmoid(self.net(x))[:, 0].numpy()

    def network(self) -> None:
        for count in self.batches:
            self.probabilities(np.full((count, WINDOW, WINDOW, 3), 127, np.uint8))

    def scene(self) -> None:
        with rasterio.open(self.path) as dataset:
            size = (3, self.side, self.side)
            pixels = dataset.read(out_shape=size, resampling=Resampling.average)
            profile = {"crs": dataset.crs, "transform": dataset.transform}
            whole = dataset.shape
        # A mirrored rim, so that the side is one the net can pool and every window is full.
        starts = window_starts(-(-self.side // 16) * 16, WINDOW, OVERLAP, 16)
        rim = starts[-1] + WINDOW - self.side
        pixels = np.pad(np.moveaxis(pixels, 0, -1), ((0, rim), (0, rim), (0, 0)), "symmetric")
        weights = tapers(starts, WINDOW, OVERLAP)
        found = np.zeros(pixels.shape[:2], np.float32)
        for top, down in zip(starts, weights, strict=True):
            for i in range(0, len(starts), BATCH):
                lefts = starts[i : i + BATCH]
                windows = [pixels[top : top + WINDOW, left : left + WINDOW] for left in lefts]
                parts = self.probabilities(np.stack(windows))
                for left, across, part in zip(lefts, weights[i : i + BATCH], parts, strict=True):
                    found[top : top + WINDOW, left : left + WINDOW] += down[:, None] * across * part
        found = found[: self.side, : self.side]
        full = F.interpolate(torch.from_numpy(found)[None, None], whole, mode="bilinear")[0, 0]
        mask = np.where(full.numpy() >= self.threshold, np.uint8(255), np.uint8(0))
        form = {"driver": "COG", "height": whole[0], "width": whole[1], "count": 1}
        form |= {"compress": "deflate", "num_threads": "all_cpus", **profile}
        with rasterio.open(self.out, "w", dtype="uint8", **form) as out:
            out.write(mask, 1)
