"""A trained network with what its file says of it: how it reads pixels, and at which pixel size."""

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import minicnn
from minicnn.backend import Array, kernels_for, to_device, to_host
from minicnn.checkpoint import CheckpointError, load, load_net, net_arrays, save
from minicnn.files import digest
from minicnn.losses import sigmoid
from segment.data.ground import SAME_SIZE
from segment.data.reading import Reading
from segment.data.resample import averaged, interpolated
from segment.geo.separate import Separation
from segment.storage.paths import AnyPath, local, to_path
from segment.unet import UNet

BUNDLED = Path(__file__).parent / "weights" / "buildings.safetensors"
BEST = "best.safetensors"
MEAN, SCALE = 127.5, 64.0


def normalise(pixels: Array) -> Array:
    """Bytes 0 ... 255 to float32 around 0: (pixels - 127.5) / 64, on the device they are on."""
    return kernels_for(pixels).normalise(pixels, MEAN, SCALE)


@dataclass(frozen=True)
class ModelInfo:
    """What a model's file says of it, beside the weights.

    `pixel_size` is the ground resolution in metres it was trained at, None if unknown;
    `threshold` the probability from which a pixel is called building, and `separation` what parts
    buildings that touch, in pixels of that size; both are calibrated on validation.
    """

    architecture: dict[str, Any] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    scaling: tuple[float, float] = (MEAN, SCALE)
    pixel_size: float | None = None
    threshold: float = 0.5
    separation: Separation = field(default_factory=Separation)
    trained: dict[str, Any] = field(default_factory=dict)  # data, split, epoch, scores: for people
    version: str = minicnn.__version__

    @property
    def outline_threshold(self) -> float:
        """The probability from which a pixel is in an outline; masks are cut at `threshold`."""
        return max(self.threshold, self.separation.threshold)


def architecture(net: UNet) -> dict[str, Any]:
    """The arguments that build a net of this shape again."""
    return {
        "in_channels": net.in_channels,
        "classes": net.classes,
        "widths": list(net.widths),
        "kernel": net.kernel,
    }


@dataclass
class Model:
    """A net with what its file says of it, on a device; `predict` may run in several threads."""

    net: UNet
    info: ModelInfo
    device: str = "cpu"

    def to(self, device: str) -> "Model":
        """The model on "cpu" or "gpu"; its net moves, not copied."""
        self.net.to(device)
        return replace(self, device=device)

    def reads(self, bands: Any = None, value_range: Any = None) -> "Model":
        """The model, its net shared, for scenes of other bands or values than it was trained on.

        bands: those that are red, green and blue; value_range: what becomes 0 and 255, or "auto".
        """
        reading = self.info.reading.but(bands, value_range)
        return replace(self, info=replace(self.info, reading=reading))

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Probability of a building per pixel: (N, H, W, 3) bytes -> (N, H, W) float32."""
        logits = self.net.predict(normalise(to_device(pixels, self.device)))
        return to_host(sigmoid(logits)[..., 0])

    def at(self, pixel_size: float | None) -> "Model":
        """The model for pictures of another ground resolution (metres): `predict` brings them to
        its own, and what it finds back to theirs. Unknown sizes are taken as the model's."""
        own = self.info.pixel_size
        scale = pixel_size / own if pixel_size and own else 1.0
        if abs(scale - 1) < SAME_SIZE:
            return self
        return _Rescaled(self.net, self.info, self.device, scale)


@dataclass
class _Rescaled(Model):
    """A model whose pixels are `scale` of its own to a side."""

    scale: float = 1.0

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        shape = pixels.shape[1:3]
        whole = self.net.multiple  # of this many pixels the net wants its sides
        rows, cols = (max(1, round(side * self.scale / whole)) * whole for side in shape)
        resampled = averaged if self.scale < 1 else interpolated
        seen = np.stack(
            [np.round(resampled(image, (rows, cols))).astype(np.uint8) for image in pixels]
        )
        return np.stack([interpolated(found, shape) for found in super().predict(seen)])


def save_model(path: str | Path, net: UNet, info: ModelInfo, dtype: Any = np.float32) -> None:
    """Write a net's weights and `info`, whole or not at all; in float16 at half the size."""
    about = asdict(replace(info, architecture=architecture(net)))
    arrays = _within(float(np.finfo(dtype).max), net_arrays(net))
    save(path, {n: a.astype(dtype) for n, a in arrays.items()}, {"model": about})


def _within(largest: float, arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays with each block's convolution halved until its variance is at most `largest`:
    batch norm takes that out again, and float16 ends at 65,504."""
    arrays = dict(arrays)
    for block in [name.removesuffix("var") for name in arrays if name.endswith(".var")]:
        ratio = float(arrays[block + "var"].max()) / largest
        if ratio > 1:
            half = 0.5 ** math.ceil(math.log2(ratio) / 2)
            for name, factor in (("w", half), ("b", half), ("mean", half), ("var", half * half)):
                arrays[block + name] = arrays[block + name] * factor
    return arrays


def load_model(path: str | AnyPath | None = None) -> Model:
    """The model in a run's folder or in a file, on disk or in S3; None: the package's own.

    Its net is frozen, which makes predictions faster; train a copy (`net.astype(np.float32)`).
    """
    file = model_file(path)
    arrays, about = load(file)
    info = _info(about, file)
    try:
        net = UNet(**info.architecture)
    except (TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{file}: the model is no U-Net of ours ({error})") from error
    if (net.in_channels, net.classes) != (3, 1):
        raise CheckpointError(
            f"{file}: a net from red, green and blue to one class was expected, not from "
            f"{net.in_channels} channels to {net.classes} classes"
        )
    load_net(net, arrays, file)
    net.freeze()
    return Model(net, info)


def model_file(path: str | AnyPath | None) -> Path:
    """The file of a model as `load_model` takes it, fetched if it is in a bucket."""
    file = to_path(path) if path is not None else BUNDLED
    if file.is_dir():
        if not (file / BEST).exists():
            raise CheckpointError(f"{file}: expected a run folder with {BEST} in it")
        file = file / BEST
    return local([file])[0]


def model_name(path: str | AnyPath | None) -> str:
    """What a model is called in what it finds: its run's or file's name, and a digest's start."""
    given = to_path(path) if path is not None else BUNDLED
    return f"{given.name.removesuffix('.safetensors')}-{digest(model_file(path))[:8]}"


def _info(about: dict[str, Any], file: Path) -> ModelInfo:
    try:
        fields = dict(about["model"])
        reading = Reading.of(fields.pop("reading"))
        separation = Separation(**fields.pop("separation", {}))  # older files say none
        info = ModelInfo(reading=reading, separation=separation, **fields)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file}: expected a model of segment, with its description"
        ) from error
    if tuple(info.scaling) != (MEAN, SCALE):
        raise CheckpointError(
            f"{file}: pixels are scaled by {(MEAN, SCALE)} here, but the model wants {info.scaling}"
        )
    return info
